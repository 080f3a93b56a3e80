"""LVIS average precision (https://www.lvisdataset.org, Gupta et al. 2019), computed by hotcoco."""

import logging
import math
from collections.abc import Sequence

import numpy as np

from d2ext.errors import UserError
from d2ext.evaluation.backends import chosen_backend, evaluable, hotcoco_pair
from d2ext.evaluation.bootstrap.image_matches import by_group, evaluated
from d2ext.evaluation.coco import SIZES, Line, exact_100, line_samples
from d2ext.evaluation.instances import Detections, GroundTruth
from d2ext.evaluation.tables import check_flags

logger = logging.getLogger(__name__)

_TASKS = ("bbox", "segm")
_NAMES = ("AP", "AP50", "AP75", "APs", "APm", "APl", "APr", "APc", "APf")
_RECALLS = ("AR@300", "ARs@300", "ARm@300", "ARl@300")
# Lines of the table, and the frequency of the classes that they average.
_LINES = [
    *(
        (Line(name, "precision", iou), None)
        for name, iou in (("AP", None), ("AP50", 0), ("AP75", 5))
    ),
    *((Line(f"AP{size[0]}", "precision", None, size), None) for size in SIZES[1:]),
    *((Line(f"AP{frequency}", "precision"), frequency) for frequency in "rcf"),
    *((Line(name, "recall", None, size), None) for name, size in zip(_RECALLS, SIZES, strict=True)),
]


class LvisMetric:
    """AP as LVIS defines it, in percent, with up to 300 detections per image over all classes.

    Detections of a class that was not annotated in the image (the class is neither among its
    objects nor among its negatives) are ignored; if the class was not annotated exhaustively,
    detections without a match are not errors. In datasets without such lists, every class counts as
    annotated in every image. Gives `AP`, `AP50`, `AP75`, `APs`, `APm`, `APl`, `AR@300`, `ARs@300`,
    `ARm@300`, `ARl@300`, and `APr`, `APc`, `APf` of rare, common and frequent classes, which are
    NaN if frequencies are unknown.

    Args:
        tasks: `bbox`, `segm` or both; None means `bbox`, and `segm` if detections and ground truth
            have masks.
        per_class: Add `AP-<class>`.

    Raises:
        UserError: An argument is invalid, or hotcoco is not installed.
    """

    def __init__(self, tasks: Sequence[str] | None = None, per_class: bool = False):
        check_flags("LvisMetric", per_class=per_class)
        is_list = isinstance(tasks, Sequence) and not isinstance(tasks, str) and len(tasks) > 0
        if tasks is not None and not (is_list and all(task in _TASKS for task in tasks)):
            raise UserError(
                f"LvisMetric: tasks={tasks!r}; give a list of {' and '.join(_TASKS)}, or null"
            )
        self._tasks = tasks
        self._per_class = per_class
        chosen_backend("hotcoco")

    def __call__(self, ground_truth: GroundTruth, detections: Detections) -> dict[str, float]:
        """Evaluate one dataset and log a table.

        Args:
            ground_truth: Ground truth of the dataset.
            detections: Detections in its images.

        Returns:
            Percent by `<task>/<name>`; NaN if the dataset has no such object.
        """
        numbers: dict[str, float] = {}
        for task in evaluable(self._tasks, ground_truth, detections):
            evaluation = hotcoco_pair(ground_truth, detections, task, lvis_style=True)
            evaluation.evaluate()
            evaluation.accumulate()
            lines = evaluation.summary_lines()
            logger.info("LVIS %s:\n%s", task, "\n".join(lines))
            found = evaluation.get_results()
            values = {name: _percent(found.get(name, -1)) for name in (*_NAMES, *_RECALLS)}
            if self._per_class:
                precision = evaluation.eval["precision"][:, :, :, 0, -1]
                for c, name in enumerate(ground_truth.classes):
                    known = precision[:, :, c][precision[:, :, c] > -1]
                    values[f"AP-{name}"] = _percent(float(np.mean(known)) if known.size else -1)
            numbers |= {f"{task}/{name}": value for name, value in values.items()}
        return numbers

    def resampled(
        self, ground_truth: GroundTruth, detections: Detections, draws: np.ndarray
    ) -> dict[str, np.ndarray]:
        """Evaluate draws of the images; see `d2ext.evaluation.metric.Metric`."""
        classes = ground_truth.classes
        frequencies = ground_truth.frequencies or [None] * len(classes)
        samples: dict[str, np.ndarray] = {}
        for task in evaluable(self._tasks, ground_truth, detections):
            evaluation = hotcoco_pair(ground_truth, detections, task, lvis_style=True)
            parts = evaluated(evaluation, len(ground_truth.image_ids))
            lines = [
                (line, [c for c, f in enumerate(frequencies) if kind in (None, f)])
                for line, kind in _LINES
            ]
            found = line_samples(
                by_group(parts, len(classes)),
                lines,
                list(evaluation.params.maxDets),
                classes,
                draws,
                self._per_class,
            )
            samples |= {f"{task}/{name}": values for name, values in found.items()}
        return samples

    def keys(self, classes: Sequence[str], tasks: Sequence[str]) -> set[str]:
        """Return the keys of the results for a dataset with these tasks."""
        names = [*_NAMES, *_RECALLS]
        names += [f"AP-{name}" for name in classes] if self._per_class else []
        tasks = self._tasks or [task for task in tasks if task in _TASKS]
        return {f"{task}/{name}" for task in tasks for name in names}


def _percent(value: float) -> float:
    return math.nan if value < 0 else exact_100(100 * value)
