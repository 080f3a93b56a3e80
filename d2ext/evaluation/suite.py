"""Evaluate a model on test sets: one inference, any number of metrics, flat results."""

import copy
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from detectron2.config import instantiate
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import DatasetEvaluator
from detectron2.utils import comm
from omegaconf import ListConfig, OmegaConf
from torch import nn

from d2ext.data.records.records import file_names_of, image_ids_of
from d2ext.data.segmentation import Segmentation
from d2ext.errors import UserError, errors_located
from d2ext.evaluation.bootstrap.intervals import rare_classes_note, wants_intervals
from d2ext.evaluation.bootstrap.resampling import MAX_IMAGES, RESAMPLES, Samples, resample
from d2ext.evaluation.dataset_file import read_areas
from d2ext.evaluation.evaluators import build_metric, flat_results
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
        detections: Detections of the model; None if it returns no instances.
        segmentations: Semantic or panoptic segmentation by index of the image.
        results: Numbers by `<dataset>/<metric>/<task>/<name>`; NaN if undefined.
        samples: Results of draws of the images; None if no intervals are wanted.
    """

    dataset: str
    records: Sequence[dict]
    ground_truth: GroundTruth
    detections: Detections | None
    segmentations: Mapping[int, Segmentation]
    results: dict[str, float]
    samples: Samples | None


def test_sets(loader_cfg: Any) -> list[str]:
    """Return the dataset names of a loader's config; a list means separate test sets.

    A loader of your own that has no `dataset.names` has none.
    """
    names = OmegaConf.select(loader_cfg, "dataset.names")
    if isinstance(names, (ListConfig, list, tuple)):
        return list(names)
    return [] if names is None else [names]


def metrics_of(evaluators: Mapping[str, Any], names: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Return the metrics and evaluators of each test set, by name.

    Args:
        evaluators: Section `evaluators` of the config. It maps names to lazy calls of metrics or
            Detectron2 evaluators, for all test sets, and may map the name of a test set to such a
            section, which replaces the common entries for that set. Null entries are skipped.
        names: Names of the test sets.

    Raises:
        UserError: An entry is neither a metric nor the name of a dataset.
    """
    given = {key: value for key, value in evaluators.items() if value is not None}
    common = {key: value for key, value in given.items() if "_target_" in value}
    own = {key: value for key, value in given.items() if key not in common}
    if unknown := [key for key in own if key not in names and key not in DatasetCatalog.list()]:
        raise UserError(
            f"evaluators.{unknown[0]} is neither a metric (such as L(CocoMetric)()) nor the name of"
            f" a dataset; the test sets are {', '.join(names)}"
        )
    return {
        name: {key: value for key, value in own.get(name, common).items() if value is not None}
        for name in names
    }


class Suite:
    """Test sets of a loader's config, and the metrics and evaluators to run on each of them.

    Args:
        loader_cfg: Config of a test loader, such as `dataloader.val`.
        evaluators: Argument of `metrics_of`.
        intervals: Draw images for intervals; None: of test sets of up to 1,000 images.
        resamples: Number of draws; 0 for none.
    """

    def __init__(
        self,
        loader_cfg: Any,
        evaluators: Mapping[str, Any],
        intervals: bool | None = None,
        resamples: int = RESAMPLES,
    ):
        self._intervals, self._resamples = intervals, resamples
        names = test_sets(loader_cfg)
        metrics = metrics_of(evaluators, names)
        self._sets = []
        for name in names:
            one_set = copy.deepcopy(loader_cfg)  # keeps its parent, which interpolations need
            one_set.dataset.names = name
            made = {key: build_metric(settings, name) for key, settings in metrics[name].items()}
            self._sets.append((name, instantiate(one_set), DatasetCatalog.get(name), made))
        self._ground_truths: dict[str, GroundTruth] = {}
        self._reported: set[str] = set()  # test sets and evaluators with a message that is due once

    def evaluate(
        self, model: nn.Module, before_batch: Callable[[], None] = lambda: None
    ) -> list[Evaluation]:
        """Run the model on every test set, and all metrics and evaluators on its outputs.

        Every rank must call it, because evaluators of Detectron2 communicate.

        Args:
            model: Detectron2 model; its training mode is restored.
            before_batch: Function to call before each batch.

        Returns:
            One Evaluation per test set on rank 0; an empty list on other ranks.

        Raises:
            UserError: A metric needs instances, which the model does not return.
        """
        evaluations = []
        for name, loader, records, made in self._sets:
            start = time.perf_counter()
            evaluators = {k: e for k, e in made.items() if isinstance(e, DatasetEvaluator)}
            metrics = {k: m for k, m in made.items() if k not in evaluators}
            ids = image_ids_of(records)
            if None in ids:  # Detectron2's readers of label maps give none
                ids = file_names_of(records)
            predictions = predict(
                model,
                loader,
                ids,
                before_batch,
                evaluators,
                bool(metrics),
                MetadataCatalog.get(name),
            )
            if predictions:  # on rank 0
                found = len(predictions.detections.scores) if predictions.detections else 0
                seconds = time.perf_counter() - start
                logger.info(
                    "%s: %d images, %d detections, %.1f s", name, len(records), found, seconds
                )
            results = self._results_of(evaluators, name)
            if predictions is None:
                continue
            ground_truth, detections = self._ground_truth(name, records), predictions.detections
            samples = None
            if detections is not None:
                numbers = {
                    f"{key}/{result}": value
                    for key, metric in metrics.items()
                    for result, value in _results(key, metric, ground_truth, detections).items()
                }
                results |= {f"{name}/{key}": value for key, value in numbers.items()}
                samples = self._samples(name, made, ground_truth, detections, numbers)
            maps = predictions.segmentations
            evaluations.append(
                Evaluation(name, records, ground_truth, detections, maps, results, samples)
            )
        return evaluations

    def _results_of(
        self, evaluators: Mapping[str, DatasetEvaluator], dataset: str
    ) -> dict[str, float]:
        """Return the results of Detectron2's evaluators on rank 0; call it on every rank."""
        found: dict[str, float] = {}
        for name, evaluator in evaluators.items():
            with errors_located(f"evaluators.{name}"):
                results = evaluator.evaluate()
            if not comm.is_main_process():
                continue
            prefix = f"{dataset}/{name}/"
            numbers, others = flat_results(results)
            if others and prefix not in self._reported:
                self._reported.add(prefix)
                logger.warning(
                    "%s: results that are not numbers are skipped: %s",
                    prefix[:-1],
                    ", ".join(others),
                )
            # As in Detectron2's own summary, a "-" is part of the names of results by class only.
            shown = [f"{key} {value:.2f}" for key, value in numbers.items() if "-" not in key]
            logger.info("%s: %s", prefix[:-1], ", ".join(shown) or "no results")
            found |= {prefix + key: value for key, value in numbers.items()}
        return found

    def _samples(
        self,
        name: str,
        made: Mapping[str, Metric | DatasetEvaluator],
        ground_truth: GroundTruth,
        detections: Detections,
        results: Mapping[str, float],
    ) -> Samples | None:
        """Return the results of draws of the images if intervals are wanted, else None."""
        images, draws = len(ground_truth.image_ids), self._resamples
        if not wants_intervals(images, self._intervals, draws):
            if self._intervals is None and draws and name not in self._reported:
                self._reported.add(name)
                logger.info(
                    "%s: no intervals, because it has more than %d images; train.intervals=True"
                    " computes them",
                    name,
                    MAX_IMAGES,
                )
            return None
        start = time.perf_counter()
        with errors_located("evaluators"):
            samples = resample(made, ground_truth, detections, results, draws)
        seconds = time.perf_counter() - start
        logger.info("%s: intervals from %d draws of the images, %.1f s", name, draws, seconds)
        if name in self._reported:
            return samples
        self._reported.add(name)
        if note := rare_classes_note(ground_truth):
            logger.info("%s: %s", name, note)
        if lacking := made.keys() - {key.split("/")[0] for key in samples.values}:
            logger.info(
                "%s: no intervals of %s, which cannot compute draws (no method `resampled`)",
                name,
                ", ".join(sorted(lacking)),
            )
        return samples

    def _ground_truth(self, name: str, records: Sequence[dict]) -> GroundTruth:
        if name not in self._ground_truths:
            metadata = MetadataCatalog.get(name)
            counts = metadata.get("class_image_count")  # set by Detectron2's LVIS
            frequencies = counts and [
                _frequency(entry["image_count"]) for entry in sorted(counts, key=lambda c: c["id"])
            ]
            self._ground_truths[name] = ground_truth_columns(
                records,
                metadata.get("thing_classes", []),
                frequencies,
                _areas_in_file(records, metadata),
            )
        return self._ground_truths[name]


def _areas_in_file(records: Sequence[dict], metadata: Any) -> Mapping[tuple, float]:
    """Return the areas in the file of a dataset that Detectron2 reads; empty for other datasets."""
    if metadata.get("evaluator_type") not in ("coco", "lvis"):
        return {}
    first = next((a for record in records for a in record.get("annotations", ())), None)
    lacking = first is not None and "area" not in first
    return read_areas(Path(metadata.json_file)) if lacking else {}


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
