"""Evaluate a model on test sets: one inference, any number of metrics, flat results."""

import copy
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from detectron2.config import instantiate
from detectron2.data import DatasetCatalog, MetadataCatalog
from omegaconf import ListConfig, OmegaConf
from torch import nn

from d2ext.data.records.records import image_ids_of
from d2ext.errors import UserError, errors_located
from d2ext.evaluation.instances import Detections, GroundTruth, ground_truth_columns
from d2ext.evaluation.metric import Metric, checked_results
from d2ext.evaluation.predictions import predict

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Evaluation:
    """Evaluation of one dataset.

    Attributes:
        dataset: Name of the dataset.
        records: Detectron2 dataset dicts.
        ground_truth: Objects in the records.
        detections: Detections of the model.
        results: Numbers by `<dataset>/<metric>/<task>/<name>`; NaN if undefined.
    """

    dataset: str
    records: Sequence[dict]
    ground_truth: GroundTruth
    detections: Detections
    results: dict[str, float]


def test_sets(loader_cfg: Any) -> list[str]:
    """Return the dataset names of a loader's config; a list means separate test sets.

    A loader of your own that has no `dataset.names` has none.
    """
    names = OmegaConf.select(loader_cfg, "dataset.names")
    if isinstance(names, (ListConfig, list, tuple)):
        return list(names)
    return [] if names is None else [names]


def metrics_of(evaluators: Mapping[str, Any], names: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Return the metrics of each test set, by name.

    Args:
        evaluators: Section `evaluators` of the config. It maps metric names to configs, for all
            test sets, and may map the name of a test set to such a section, which replaces the
            common metrics for that set.
        names: Names of the test sets.

    Raises:
        UserError: An entry is neither a metric nor the name of a dataset.
    """
    common = {key: value for key, value in evaluators.items() if "_target_" in value}
    own = {key: value for key, value in evaluators.items() if key not in common}
    if unknown := [key for key in own if key not in names and key not in DatasetCatalog.list()]:
        raise UserError(
            f"evaluators.{unknown[0]} is neither a metric (such as L(CocoMetric)()) nor the name of"
            f" a dataset; the test sets are {', '.join(names)}"
        )
    return {name: dict(own.get(name, common)) for name in names}


class Suite:
    """Test sets of a loader's config and the metrics to compute on each of them.

    Args:
        loader_cfg: Config of a test loader, such as `dataloader.val`.
        evaluators: Argument of `metrics_of`.
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
        """Run the model on every test set, and every metric on its predictions.

        Args:
            model: Detectron2 model; its training mode is restored.
            before_batch: Function to call before each batch.

        Returns:
            One Evaluation per test set on rank 0; an empty list on other ranks.
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
                for key, value in _results(metric_name, metric, ground_truth, detections).items()
            }
            evaluations.append(Evaluation(name, records, ground_truth, detections, results))
        return evaluations

    def _ground_truth(self, name: str, records: Sequence[dict]) -> GroundTruth:
        if name not in self._ground_truths:
            metadata = MetadataCatalog.get(name)
            counts = metadata.get("class_image_count")  # set by Detectron2's LVIS
            frequencies = counts and [
                _frequency(entry["image_count"]) for entry in sorted(counts, key=lambda c: c["id"])
            ]
            self._ground_truths[name] = ground_truth_columns(
                records, metadata.thing_classes, frequencies
            )
        return self._ground_truths[name]


def _results(
    name: str, metric: Metric, ground_truth: GroundTruth, detections: Detections
) -> dict[str, float]:
    field = f"evaluators.{name}"
    with errors_located(field):
        results = metric(ground_truth, detections)
    return checked_results(field, results)


def _frequency(images: int) -> str:
    """Return the LVIS group of a class by its number of training images (Gupta et al. 2019)."""
    return "r" if images <= 10 else "c" if images <= 100 else "f"
