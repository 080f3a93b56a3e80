"""COCO average precision of boxes, masks, keypoints and proposals.

See https://cocodataset.org/#detection-eval and https://cocodataset.org/#keypoints-eval.
"""

import logging
import math
from collections.abc import Container, Iterable, Sequence
from dataclasses import dataclass
from typing import TypeGuard

import numpy as np

from d2ext.errors import UserError
from d2ext.evaluation.backends import chosen_backend, evaluable, matched
from d2ext.evaluation.bootstrap.draws import Matches
from d2ext.evaluation.bootstrap.image_matches import coco_matches
from d2ext.evaluation.instances import Detections, GroundTruth
from d2ext.evaluation.tables import check_flags, table_text

logger = logging.getLogger(__name__)

_TASKS = ("bbox", "segm", "keypoints", "proposals")
SIZES = ("all", "small", "medium", "large")
_PROPOSALS = (100, 300, 1000)  # as in the proposal metrics of Detectron2 and MMDetection
IOU_THRESHOLDS = tuple(np.linspace(0.5, 0.95, 10).tolist())  # as in COCO
MAX_DETECTIONS = (1, 10, 100)
_KEYPOINT_DETECTIONS = 20  # as in COCO
_RECALLS = np.linspace(0, 1, 101)  # as in COCO
# Of COCO's 17 keypoints: nose, eyes, ears, shoulders, elbows, wrists, hips, knees, ankles.
OKS_SIGMAS = (
    *(0.026, 0.025, 0.025, 0.035, 0.035, 0.079, 0.079, 0.072, 0.072),
    *(0.062, 0.062, 0.107, 0.107, 0.087, 0.087, 0.089, 0.089),
)


class CocoMetric:
    """AP and AR of a detector on one dataset: pycocotools' numbers, in percent.

    `bbox` and `segm` give `AP` (the mean over the IoU thresholds), `AP50` and `AP75` (if these are
    among the thresholds), `APs`, `APm`, `APl` (objects up to 32², up to 96² and larger, in pixels),
    `AR<n>` with n detections per image and class, `ARs`, `ARm`, `ARl`, and `AP-<class>`. Results
    without n use the largest number of detections. `keypoints` compares keypoints by their OKS
    instead of the IoU, with 20 detections per image and class, and gives `AP`, `AP50`, `AP75`,
    `APm`, `APl`, the recalls `AR`, `AR50`, `AR75`, `ARm`, `ARl`, and `AP-<class>`. `proposals`
    treats all classes as one, and gives `AR@100`, `AR@300`, `AR@1000`, `ARs@1000`, `ARm@1000`,
    `ARl@1000` of the boxes. Edge cases are defined in `d2ext.evaluation.instances`.

    Args:
        tasks: `bbox`, `segm`, `keypoints`, `proposals` or several; None means `bbox`, and `segm` or
            `keypoints` if detections and ground truth have masks or keypoints.
        per_class: Add `AP-<class>`.
        iou_thresholds: IoU or OKS thresholds above 0, up to 1.
        max_detections: Limits of detections per image and class, by score; not for keypoints.
        oks_sigmas: For each keypoint, the standard deviation of annotations divided by the square
            root of the object's area; None means those of COCO's 17 keypoints.
        backend: `hotcoco`, `pycocotools`, or `auto`: hotcoco if it is installed.

    Raises:
        UserError: An argument is invalid.
    """

    def __init__(
        self,
        tasks: Sequence[str] | None = None,
        per_class: bool = True,
        iou_thresholds: Sequence[float] = IOU_THRESHOLDS,
        max_detections: Sequence[int] = MAX_DETECTIONS,
        backend: str = "auto",
        oks_sigmas: Sequence[float] | None = None,
    ):
        check_flags("CocoMetric", per_class=per_class)
        named = _is_list(tasks) and len(tasks) > 0 and all(task in _TASKS for task in tasks)
        if tasks is not None and not named:
            raise UserError(
                f"CocoMetric: tasks={tasks!r}; give a list of {', '.join(_TASKS[:-1])} and"
                f" {_TASKS[-1]}, such as [bbox], or null"
            )
        if not _increasing(iou_thresholds, (int, float)) or iou_thresholds[-1] > 1:
            raise UserError(
                f"CocoMetric: iou_thresholds={iou_thresholds!r}; give a list of increasing numbers"
                " above 0 and up to 1, such as [0.5, 0.75]"
            )
        if not _increasing(max_detections, (int,)):
            raise UserError(
                f"CocoMetric: max_detections={max_detections!r}; give a list of increasing integers"
                " above 0, such as [1, 10, 100]"
            )
        if oks_sigmas is not None and not _positive(oks_sigmas):
            raise UserError(
                f"CocoMetric: oks_sigmas={oks_sigmas!r}; give a list of numbers above 0, one for"
                " each keypoint, or null"
            )
        self._tasks = tasks
        self._oks_sigmas = list(OKS_SIGMAS if oks_sigmas is None else oks_sigmas)
        self._per_class = per_class
        self._iou_thresholds = np.array(iou_thresholds, np.float64)
        self._max_detections = list(max_detections)
        self._backend = chosen_backend(backend)

    def __call__(self, ground_truth: GroundTruth, detections: Detections) -> dict[str, float]:
        """Evaluate one dataset and log a table.

        Args:
            ground_truth: Ground truth of the dataset.
            detections: Detections in its images.

        Returns:
            Percent by `<task>/<name>`; NaN if the dataset has no such object.

        Raises:
            UserError: Masks or keypoints are missing, or the number of keypoints is not that of
                `oks_sigmas`.
        """
        numbers: dict[str, float] = {}
        for task in self._evaluable(ground_truth, detections):
            evaluated = self._evaluate(ground_truth, detections, task)
            numbers |= {f"{task}/{name}": value for name, value in evaluated.items()}
        return numbers

    def _evaluable(self, ground_truth: GroundTruth, detections: Detections) -> list[str]:
        tasks = list(evaluable(self._tasks, ground_truth, detections))
        unknown = not len(detections.scores) and detections.masks is None
        found = detections.keypoints is not None or unknown
        if self._tasks is None and found and ground_truth.keypoints is not None:
            tasks.append("keypoints")
        if "keypoints" not in tasks:
            return tasks
        if not found:
            raise UserError("the task keypoints needs keypoints; the detections have none")
        for whose, columns in (("objects", ground_truth), ("detections", detections)):
            wanted = len(self._oks_sigmas)
            if columns.keypoints is not None and (n := columns.keypoints.shape[1]) != wanted:
                raise UserError(
                    f"the {whose} have {n} keypoints, but CocoMetric has {wanted} oks_sigmas"
                    " (by default those of COCO's keypoints); give one for each keypoint"
                )
        return tasks

    def keys(self, classes: Sequence[str], tasks: Sequence[str]) -> set[str]:
        """Return the keys of the results for a dataset with these tasks."""
        keys: set[str] = set()
        for task in self._tasks or tasks:
            names = [line.name for line in self._lines(task)]
            if self._per_class and task != "proposals":
                names += [f"AP-{name}" for name in classes]
            keys.update(f"{task}/{name}" for name in names)
        return keys

    def resampled(
        self, ground_truth: GroundTruth, detections: Detections, draws: np.ndarray
    ) -> dict[str, np.ndarray]:
        """Evaluate draws of the images; see `d2ext.evaluation.metric.Metric`."""
        samples: dict[str, np.ndarray] = {}
        for task in self._evaluable(ground_truth, detections):
            arguments = self._matching(ground_truth, detections, task)
            classes = [*ground_truth.classes] if task != "proposals" else ["all"]
            found = line_samples(
                coco_matches(*arguments),
                [(line, range(len(classes))) for line in self._lines(task)],
                arguments[4],
                classes,
                draws,
                self._per_class and task != "proposals",
            )
            samples |= {f"{task}/{name}": values for name, values in found.items()}
        return samples

    def _evaluate(
        self, ground_truth: GroundTruth, detections: Detections, task: str
    ) -> dict[str, float]:
        curves = matched(*self._matching(ground_truth, detections, task))
        lines = self._lines(task)
        numbers = {line.name: _percent(line.values(curves)) for line in lines}
        table = "\n".join(line.text(numbers[line.name], self._iou_thresholds) for line in lines)
        logger.info("COCO %s (%s), percent:\n%s", task, self._backend, table)
        if self._per_class and task != "proposals":
            rows = self._class_rows(ground_truth, detections, curves, lines)
            numbers |= {f"AP-{row['class']}": row["AP"] for row in rows}
            logger.info("COCO %s by class:\n%s", task, table_text(rows))
        return numbers

    def _matching(self, ground_truth: GroundTruth, detections: Detections, task: str) -> tuple:
        """Return the arguments of `matched` for a task."""
        proposals = task == "proposals"
        limits = _PROPOSALS if proposals else self._max_detections
        if task == "keypoints":
            limits = [_KEYPOINT_DETECTIONS]
        return (
            ground_truth,
            detections,
            "bbox" if proposals else task,
            self._iou_thresholds,
            limits,
            self._backend,
            not proposals,
            self._oks_sigmas,
        )

    def _lines(self, task: str) -> list["Line"]:
        if task == "keypoints":
            return [
                line
                for name, array in (("AP", "precision"), ("AR", "recall"))
                for line in self._keypoint_lines(name, array)
            ]
        if task == "proposals":
            limits = [(f"AR@{limit}", i, limit) for i, limit in enumerate(_PROPOSALS)]
            last, suffix = _PROPOSALS[-1], f"@{_PROPOSALS[-1]}"
            lines = []
        else:
            limits = [(f"AR{limit}", i, limit) for i, limit in enumerate(self._max_detections)]
            last, suffix = self._max_detections[-1], ""
            lines = [Line("AP", "precision", max_detections=last)]
            lines += self._lines_by_threshold("AP", "precision", last)
            lines += [Line(f"AP{s[0]}", "precision", None, s, -1, last) for s in SIZES[1:]]
        lines += [Line(name, "recall", None, "all", i, limit) for name, i, limit in limits]
        return lines + [Line(f"AR{s[0]}{suffix}", "recall", None, s, -1, last) for s in SIZES[1:]]

    def _keypoint_lines(self, name: str, array: str) -> list["Line"]:
        last = _KEYPOINT_DETECTIONS
        return [
            Line(name, array, max_detections=last),
            *self._lines_by_threshold(name, array, last),
            *(Line(f"{name}{s[0]}", array, None, s, -1, last) for s in SIZES[2:]),
        ]

    def _lines_by_threshold(self, name: str, array: str, last: int) -> list["Line"]:
        """Return the lines for the thresholds 0.5 and 0.75, if they are among the metric's."""
        found = ((t, np.flatnonzero(np.isclose(self._iou_thresholds, t))) for t in (0.5, 0.75))
        return [
            Line(f"{name}{100 * t:.0f}", array, int(at[0]), max_detections=last)
            for t, at in found
            if len(at)
        ]

    def _class_rows(
        self, ground_truth: GroundTruth, detections: Detections, curves: dict, lines: list["Line"]
    ) -> list[dict]:
        counted = ~(ground_truth.crowd | ground_truth.difficult | ground_truth.group_of)
        objects = np.bincount(ground_truth.label[counted], minlength=len(ground_truth.classes))
        counts = np.bincount(detections.label, minlength=len(ground_truth.classes))
        shown = [line for line in lines if line.size == "all" and line.limit == -1]
        return [
            {"class": name, "objects": int(objects[c]), "detections": int(counts[c])}
            | {line.name: _percent(line.values(curves)[..., c]) for line in shown}
            for c, name in enumerate(ground_truth.classes)
        ]


@dataclass(frozen=True)
class Line:
    """A number of COCO's table, and its position in the arrays."""

    name: str
    array: str
    iou: int | None = None  # index of the IoU threshold; None for the mean
    size: str = "all"
    limit: int = -1  # index of the limit of detections
    max_detections: int = 0

    def values(self, curves: dict[str, np.ndarray]) -> np.ndarray:
        """Return the values that are averaged; classes are the last axis."""
        values = curves[self.array][..., SIZES.index(self.size), self.limit]
        return values if self.iou is None else values[self.iou]

    def text(self, value: float, thresholds: np.ndarray) -> str:
        """Return the line as pycocotools prints it, in percent."""
        what = "Average Precision  (AP)" if self.array == "precision" else "Average Recall     (AR)"
        ious = thresholds if self.iou is None else thresholds[self.iou : self.iou + 1]
        iou = ":".join(f"{t:.2f}" for t in sorted({ious[0], ious[-1]}))
        limit = f"maxDets={self.max_detections:>4}"
        return f" {what} @[ IoU={iou:<9} | area={self.size:>6} | {limit} ] = {value:6.2f}"


def line_samples(
    matches_by_class: Iterable[list[Matches]],
    lines: Sequence[tuple[Line, Container[int]]],
    limits: Sequence[int],
    classes: Sequence[str],
    draws: np.ndarray,
    per_class: bool,
) -> dict[str, np.ndarray]:
    """Return the samples of the lines of a table.

    Args:
        matches_by_class: Matches of each class for the 4 sizes.
        lines: Lines of the table, each with the indices of the classes that it averages.
        limits: Limits of detections per image and class.
        classes: Names of the classes.
        draws: (R, I) how often each draw contains each image.
        per_class: Add `AP-<class>`.

    Returns:
        (R,) percent by name; NaN without objects.
    """
    draws = draws.astype(np.int32)
    total, known = (np.zeros((len(lines), len(draws))) for _ in range(2))
    samples: dict[str, np.ndarray] = {}
    for c, of_sizes in enumerate(matches_by_class):
        arrays = _sampled_arrays(of_sizes, limits, draws)
        for i, (line, included) in enumerate(lines):
            if c in included:
                values = line.values(arrays)
                values = values.mean(axis=0) if values.ndim == 2 else values
                known[i] += ~np.isnan(values)
                total[i] += np.nan_to_num(values)
        if per_class:
            samples[f"AP-{classes[c]}"] = 100 * arrays["precision"][..., 0, -1].mean(axis=0)
    means = np.divide(100 * total, known, out=np.full(total.shape, math.nan), where=known > 0)
    return {line.name: row for (line, _), row in zip(lines, means, strict=True)} | samples


def _sampled_arrays(
    of_sizes: list[Matches], limits: Sequence[int], draws: np.ndarray
) -> dict[str, np.ndarray]:
    """Return the arrays of `Line` for a class: `precision` (T, R, 4, 1), `recall` (T, R, 4, M)."""
    precision = [m.average_precision(draws, _levels) for m in of_sizes]
    recall = np.full((*precision[0].shape, len(of_sizes), len(limits)), math.nan)
    for i, limit in enumerate(limits):
        recall[..., 0, i] = of_sizes[0].recall(draws, limit)
    for size, found in enumerate(of_sizes[1:], start=1):  # only for the last limit
        recall[..., size, -1] = found.recall(draws, limits[-1])
    return {"precision": np.stack(precision, axis=2)[..., None], "recall": recall}


def _levels(found: np.ndarray, objects: np.ndarray) -> np.ndarray:
    """Return the fraction of the 101 recall levels that are reached, compared as in pycocotools."""
    return np.searchsorted(_RECALLS, found / objects, side="right") / len(_RECALLS)


def _percent(values: np.ndarray) -> float:
    # COCO's tools write -1 where there is no ground truth.
    values = values[values > -1]
    return exact_100(100 * float(np.mean(values))) if values.size else math.nan


def exact_100(percent: float) -> float:
    """Return 100 for 99.99999999999997, because COCO's tools add an epsilon; others unchanged."""
    return 100.0 if percent > 100 - 1e-9 else percent


def _is_list(value: object) -> TypeGuard[Sequence]:
    # A string is a sequence, too: "bbox" would be the tasks b, b, o and x.
    return isinstance(value, Sequence) and not isinstance(value, str)


def _increasing(values: object, types: tuple) -> bool:
    """Return whether the value is a list of increasing numbers above 0."""
    if not _is_list(values) or not values or not all(type(v) in types for v in values):
        return False
    return all(a < b for a, b in zip([0, *values], values, strict=False))


def _positive(values: object) -> bool:
    """Return whether the value is a list of numbers above 0."""
    numbers = _is_list(values) and all(type(v) in (int, float) and v > 0 for v in values)
    return numbers and bool(values)
