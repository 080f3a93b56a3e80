"""A model over test sets: inference once, any number of metrics, flat results."""

import copy
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from detectron2.config import instantiate
from detectron2.data import DatasetCatalog, MetadataCatalog
from omegaconf import ListConfig
from torch import nn

from d2ext.data.records.records import image_ids_of
from d2ext.errors import UserError
from d2ext.evaluation.instances import Detections, GroundTruth, ground_truth_columns
from d2ext.evaluation.metric import checked_results
from d2ext.evaluation.predictions import predict

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Evaluation:
    """The outcome of evaluating one dataset.

    Attributes:
        dataset: its name.
        records: Detectron2 dataset dicts.
        ground_truth: the objects in them.
        detections: of the model.
        results: `<dataset>/<metric>/<task>/<name>` to a number, NaN where undefined.
    """

    dataset: str
    records: Sequence[dict]
    ground_truth: GroundTruth
    detections: Detections
    results: dict[str, float]


def test_sets(loader_cfg: Any) -> list[str]:
    """Return the names of the datasets of a test loader's config; a list means separate sets."""
    names = loader_cfg.dataset.names
    return list(names) if isinstance(names, (ListConfig, list, tuple)) else [names]


def metrics_of(evaluators: Mapping[str, Any], names: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Return the metrics of each test set, by name.

    Args:
        evaluators: the config's section: metric name to its config, for all test sets; or a test
            set's name to such a section, which that set has instead.
        names: of the test sets.

    Raises:
        UserError: an entry is neither a metric nor named as a dataset.
    """
    common = {key: value for key, value in evaluators.items() if "_target_" in value}
    own = {key: value for key, value in evaluators.items() if key not in common}
    if unknown := [key for key in own if key not in names and key not in DatasetCatalog.list()]:
        raise UserError(
            f"evaluators.{unknown[0]} is not a metric (L(CocoMetric)(), for example), and there is"
            f" no dataset of this name; tested are {', '.join(names)}"
        )
    return {name: dict(own.get(name, common)) for name in names}


class Suite:
    """The test sets of a loader's config and the metrics to compute on each.

    Args:
        loader_cfg: for example `dataloader.val`.
        evaluators: of `metrics_of`.
    """

    def __init__(self, loader_cfg: Any, evaluators: Mapping[str, Any]):
        names = test_sets(loader_cfg)
        metrics = metrics_of(evaluators, names)
        self._sets = []
        for name in names:
            one_set = copy.deepcopy(loader_cfg)  # keeps its parent, which interpolations need
            one_set.dataset.names = name
            made = {metric: instantiate(cfg) for metric, cfg in metrics[name].items()}
            self._sets.append((name, instantiate(one_set), DatasetCatalog.get(name), made))
        self._ground_truths: dict[str, GroundTruth] = {}

    def evaluate(
        self, model: nn.Module, before_batch: Callable[[], None] = lambda: None
    ) -> list[Evaluation]:
        """Run the model over every set and every metric over its predictions.

        Args:
            model: takes Detectron2's inputs; its training mode is put back.
            before_batch: is called before each batch.

        Returns:
            One Evaluation a set, on the main process; an empty list elsewhere.
        """
        evaluations = []
        for name, loader, records, metrics in self._sets:
            start = time.perf_counter()
            detections = predict(model, loader, image_ids_of(records), before_batch)
            if detections is None:  # on other ranks than 0
                continue
            logger.info(
                "%s: %d images, %d detections, %.1f s",
                name,
                len(records),
                len(detections.scores),
                time.perf_counter() - start,
            )
            ground_truth = self._ground_truth(name, records)
            results = {
                f"{name}/{metric_name}/{key}": value
                for metric_name, metric in metrics.items()
                for key, value in checked_results(
                    f"evaluators.{metric_name}", metric(ground_truth, detections)
                ).items()
            }
            evaluations.append(Evaluation(name, records, ground_truth, detections, results))
        return evaluations

    def _ground_truth(self, name: str, records: Sequence[dict]) -> GroundTruth:
        if name not in self._ground_truths:
            metadata = MetadataCatalog.get(name)
            counts = metadata.get("class_image_count")  # of Detectron2's LVIS
            frequencies = counts and [
                _frequency(entry["image_count"]) for entry in sorted(counts, key=lambda c: c["id"])
            ]
            self._ground_truths[name] = ground_truth_columns(
                records, metadata.thing_classes, frequencies
            )
        return self._ground_truths[name]


def _frequency(images: int) -> str:
    """LVIS's group of a class with so many training images (Gupta et al. 2019)."""
    return "r" if images <= 10 else "c" if images <= 100 else "f"
