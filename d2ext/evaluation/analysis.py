"""Analyze a detector's errors: confusion matrix, precision-recall curves, error causes, images.

Detections are matched by hotcoco, at IoU 0.5 and with up to 100 detections per image and class. The
results are records for JSON, with None for undefined numbers; `AnalysisRecord` is the content of
analysis/<dataset>.json in a run directory.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import msgspec
import numpy as np
from msgspec.structs import asdict

from d2ext.evaluation.backends import chosen_backend, hotcoco_pair
from d2ext.evaluation.instances import Detections, GroundTruth, take
from d2ext.evaluation.tables import table_text

IOU = 0.5
_RECALLS = np.linspace(0, 1, 101)  # as in COCO
_IMAGES = 20  # number of best images, and of worst images
_MAX_SHOWN = 12  # maximum classes of a printed matrix, and lines of a printed list
_CAUSES = {
    "Cls": "wrong class",
    "Loc": "wrong place",
    "Both": "wrong class and place",
    "Dupe": "found twice",
    "Bkg": "nothing there",
    "Miss": "missed",
}


class ScoreThreshold(msgspec.Struct):
    """A score threshold, and the quality of the detections with at least this score.

    Attributes:
        score: The threshold.
        f1: F1 of these detections.
        precision: Their precision.
        recall: Their recall.
    """

    score: float
    f1: float
    precision: float
    recall: float


class PRCurve(msgspec.Struct):
    """A precision-recall curve.

    Attributes:
        precision: Highest precision at or above each of the recalls 0, 0.01, ..., 1.
        score: Score of the detection that reaches each recall; None if none does.
    """

    precision: list[float | None]
    score: list[float | None] = []


class ClassCurve(msgspec.Struct, kw_only=True):
    """The precision-recall curve of a class.

    Attributes:
        name: Class name; `class` in JSON.
        objects: Number of objects.
        AP50: AP at IoU 0.5 in percent; None without objects.
        best: Score threshold with the highest F1; None without hits.
        curve: Precision-recall curve.
    """

    name: str = msgspec.field(name="class")
    objects: int
    AP50: float | None
    best: ScoreThreshold | None
    curve: PRCurve


class ConfusionMatrix(msgspec.Struct):
    """Confusion matrix of the classes.

    Attributes:
        classes: Class names.
        min_score: Minimum score of the detections that are counted.
        matrix: Counts; rows are the objects' classes, columns the detections'. The last row and
            column are the background: false alarms and missed objects.
    """

    classes: list[str]
    min_score: float
    matrix: list[list[int]]


class ErrorCause(msgspec.Struct):
    """A kind of error.

    Attributes:
        meaning: Short description of the kind.
        count: Number of errors.
        delta_AP: Percent that AP50 would gain without them.
    """

    meaning: str
    count: int
    delta_AP: float


class ErrorCauses(msgspec.Struct):
    """Errors by cause.

    Attributes:
        AP50: AP at IoU 0.5 in percent; None without objects.
        causes: Cause by TIDE's abbreviation (Cls, Loc, Both, Dupe, Bkg, Miss).
    """

    AP50: float | None
    causes: dict[str, ErrorCause]


class ImageScore(msgspec.Struct, kw_only=True):
    """Hits and errors in an image.

    Attributes:
        image_id: Id of the image.
        file_name: File name of the image; None or empty if the dataset has none.
        f1: F1 of its detections.
        hits: Number of detections that match an object.
        false_alarms: Number of detections that match none.
        missed: Number of objects without a detection.
    """

    image_id: int | str
    file_name: str | None = None
    f1: float
    hits: int
    false_alarms: int
    missed: int


class RankedImages(msgspec.Struct):
    """The images with the highest and the lowest F1, at most 20 each.

    Attributes:
        min_score: Minimum score of the detections that are counted.
        best: Best images, highest F1 first.
        worst: Worst images, lowest F1 first.
    """

    min_score: float
    best: list[ImageScore]
    worst: list[ImageScore]


class TaskAnalysis(msgspec.Struct):
    """Analysis of boxes or of masks.

    Attributes:
        best_score: Score threshold with the highest F1 over all classes; None without hits.
        confusion_matrix: Confusion matrix at that threshold.
        pr_curves: Precision-recall curve of each class.
        errors: Errors by cause.
        images: Best and worst images at that threshold.
    """

    best_score: ScoreThreshold | None
    confusion_matrix: ConfusionMatrix
    pr_curves: list[ClassCurve]
    errors: ErrorCauses
    images: RankedImages


class AnalysisRecord(msgspec.Struct):
    """Content of analysis/<dataset>.json in a run directory.

    Attributes:
        tasks: Analysis by task, `bbox` or `segm`, for those that were evaluated.
        pictures: Path of the overlay in the run directory, by image id as text.
    """

    tasks: dict[str, TaskAnalysis]
    pictures: dict[str, str]


class Analysis:
    """A detector's hits and errors on one dataset.

    Args:
        ground_truth: Ground truth of the dataset.
        detections: Detections in its images.
        task: `bbox` to compare boxes or `segm` to compare masks.

    Attributes:
        outcome: (M,) int8, outcome of each detection: 1 hit, 0 false alarm, -1 not counted (in a
            crowd, on a difficult object, or beyond the first 100 of its image and class).
        counted: (N,) bool, whether each object is counted: neither crowd, group nor difficult.

    Raises:
        UserError: hotcoco is not installed.
    """

    def __init__(self, ground_truth: GroundTruth, detections: Detections, task: str = "bbox"):
        chosen_backend("hotcoco")
        self._ground_truth, self._detections, self._task = ground_truth, detections, task
        self._evaluation = hotcoco_pair(ground_truth, detections, task)
        self._evaluation.evaluate()
        status = self._evaluation.image_diagnostics(iou_thr=IOU)["dt_status"]
        self.outcome = np.full(len(detections.scores), -1, np.int8)
        rows = np.fromiter(status.keys(), np.int64, len(status)) - 1
        self.outcome[rows] = [value == "tp" for value in status.values()]
        self.counted = ~(ground_truth.crowd | ground_truth.group_of | ground_truth.difficult)
        self._order = np.lexsort([detections.image, -detections.scores])
        self._order = self._order[self.outcome[self._order] >= 0]

    def best_score(self) -> ScoreThreshold | None:
        """Return the score threshold with the highest F1 over all classes."""
        return _best(*self._ranked(self._order), int(self.counted.sum()))

    def pr_curves(self) -> list[ClassCurve]:
        """Return the precision-recall curve and the best score threshold of each class."""
        objects = np.bincount(
            self._ground_truth.label[self.counted], minlength=len(self._ground_truth.classes)
        ).tolist()
        labels = self._detections.label[self._order]
        curves = []
        for c, name in enumerate(self._ground_truth.classes):
            hits, scores = self._ranked(self._order[labels == c])
            ap, curve = None, PRCurve([None] * 101, [None] * 101)
            if objects[c]:
                recall = hits / objects[c]
                precision = hits / np.arange(1, len(hits) + 1)
                precision = np.maximum.accumulate(precision[::-1])[::-1]
                at = np.searchsorted(recall, _RECALLS, side="left")
                reached = at < len(recall)
                values = np.zeros(101)
                values[reached] = precision[at[reached]]
                ap = 100 * float(values.mean())
                curve = PRCurve(
                    [*values.tolist()],
                    [float(scores[i]) if i < len(hits) else None for i in at.tolist()],
                )
            best = _best(hits, scores, objects[c])
            curves.append(
                ClassCurve(name=name, objects=objects[c], AP50=ap, best=best, curve=curve)
            )
        return curves

    def confusion_matrix(self, min_score: float | None = None) -> ConfusionMatrix:
        """Return the confusion matrix.

        Args:
            min_score: Minimum score of the detections that are counted; None uses the threshold
                of `best_score`.
        """
        if min_score is None:
            min_score = self._best_or_zero()
        # hotcoco's confusion matrix ignores neither crowds nor difficult objects.
        kept = np.flatnonzero((self.outcome >= 0) & (self._detections.scores >= min_score))
        pair = hotcoco_pair(
            _only(self._ground_truth, self.counted), take(self._detections, kept), self._task
        )
        matrix = pair.confusion_matrix(iou_thr=IOU, max_det=max(len(kept), 1))["matrix"]
        return ConfusionMatrix(
            list(self._ground_truth.classes), float(min_score), matrix.astype(int).tolist()
        )

    def errors(self) -> ErrorCauses:
        """Return the errors by cause, as TIDE classifies them.

        See Bolya et al. 2020, https://dbolya.github.io/tide.
        """
        tide = self._evaluation.tide_errors(pos_thr=IOU, bg_thr=0.1)
        causes = {
            cause: ErrorCause(meaning, int(tide["counts"][cause]), 100 * tide["delta_ap"][cause])
            for cause, meaning in _CAUSES.items()
        }
        ap = 100 * tide["ap_base"] if self.counted.any() else None
        return ErrorCauses(ap, causes)

    def images(self) -> RankedImages:
        """Return the images with the highest and the lowest F1 at the threshold of `best_score`.

        Images without objects and detections are left out; among images with the same F1, those
        with more objects and detections come first.
        """
        ground_truth, detections = self._ground_truth, self._detections
        min_score = self._best_or_zero()
        kept = (self.outcome >= 0) & (detections.scores >= min_score)
        count = len(ground_truth.image_ids)
        counts = np.bincount(detections.image[kept], minlength=count)
        hits = np.bincount(detections.image[kept & (self.outcome == 1)], minlength=count)
        objects = np.bincount(ground_truth.image[self.counted], minlength=count)
        shown = np.flatnonzero(counts + objects)
        f1 = 2 * hits[shown] / (counts + objects)[shown]
        larger = -(counts + objects)[shown]

        def described(order: np.ndarray) -> list[ImageScore]:
            return [
                ImageScore(
                    image_id=ground_truth.image_ids[i],
                    file_name=ground_truth.file_names[i],
                    f1=float(f1[k]),
                    hits=int(hits[i]),
                    false_alarms=int(counts[i] - hits[i]),
                    missed=int(objects[i] - hits[i]),
                )
                for k, i in zip(order.tolist(), shown[order].tolist(), strict=True)
            ]

        return RankedImages(
            float(min_score),
            described(np.lexsort([larger, -f1])[:_IMAGES]),
            described(np.lexsort([larger, f1])[:_IMAGES]),
        )

    def _best_or_zero(self) -> float:
        best = self.best_score()
        return best.score if best else 0.0

    def _ranked(self, order: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the cumulative number of hits among detections, and their scores."""
        return np.cumsum(self.outcome[order] == 1), self._detections.scores[order]


def _best(hits: np.ndarray, scores: np.ndarray, objects: int) -> ScoreThreshold | None:
    if not len(hits) or not hits[-1]:
        return None
    found = np.arange(1, len(hits) + 1)
    f1 = 2 * hits / (objects + found)
    f1[:-1][scores[1:] == scores[:-1]] = -1  # a threshold includes all detections of equal score
    i = int(np.argmax(f1))
    return ScoreThreshold(
        score=float(scores[i]),
        f1=float(f1[i]),
        precision=float(hits[i] / found[i]),
        recall=float(hits[i] / objects),
    )


def _only(ground_truth: GroundTruth, rows: np.ndarray) -> GroundTruth:
    """Return the ground truth with only the selected objects; `rows` is a bool mask."""
    names = ("image", "label", "boxes", "areas", "crowd", "difficult", "group_of")
    masks = ground_truth.segmentations
    if masks is not None:
        masks = [masks[i] for i in np.flatnonzero(rows).tolist()]
    columns = {name: getattr(ground_truth, name)[rows] for name in names}
    return replace(ground_truth, **columns, segmentations=masks)


def analyze(
    ground_truth: GroundTruth, detections: Detections, task: str, parts: Mapping[str, bool]
) -> dict[str, Any]:
    """Return the requested fields of a `TaskAnalysis`.

    Args:
        ground_truth: Ground truth of the dataset.
        detections: Detections in its images.
        task: `bbox` or `segm`.
        parts: Whether to compute `confusion_matrix`, `pr_curves` and `errors` (which includes
            `images`).

    Returns:
        These fields and `best_score`, by name.
    """
    analysis = Analysis(ground_truth, detections, task)
    results: dict[str, Any] = {"best_score": analysis.best_score()}
    for name in ("confusion_matrix", "pr_curves", "errors"):
        if parts.get(name):
            results[name] = getattr(analysis, name)()
    if parts.get("errors"):
        results["images"] = analysis.images()
    return results


def printed(results: Mapping[str, Any]) -> str:
    """Return the result of `analyze` as plain-text tables."""
    tables: dict[str, Callable[[Any], str]] = {
        "confusion_matrix": _confusions,
        "pr_curves": _curves,
        "errors": _errors,
        "images": _images,
    }
    return "\n\n".join(table(results[name]) for name, table in tables.items() if name in results)


def _confusions(content: ConfusionMatrix) -> str:
    classes, matrix = [*content.classes, "background"], np.array(content.matrix)
    title = f"Confusion matrix at IoU {IOU} and scores from {content.min_score:.3f}"
    if len(classes) <= _MAX_SHOWN + 1:
        rows = [
            {"object \\ detection": name, **dict(zip(classes, row, strict=True))}
            for name, row in zip(classes, matrix.tolist(), strict=True)
        ]
        return f"{title}:\n{table_text(rows)}"
    np.fill_diagonal(matrix, 0)
    largest = np.argsort(-matrix, axis=None, kind="stable")[:_MAX_SHOWN]
    pairs = zip(*np.unravel_index(largest, matrix.shape), strict=True)
    rows = [
        {"object": classes[i], "detection": classes[j], "count": int(matrix[i, j])}
        for i, j in pairs
        if matrix[i, j]
    ]
    return f"{title}, most frequent confusions:\n{table_text(rows)}"


def _curves(curves: list[ClassCurve]) -> str:
    rows = [
        {"class": row.name, "objects": row.objects, "AP50": row.AP50}
        | {name: getattr(row.best, name, None) for name in ("score", "f1", "precision", "recall")}
        for row in curves
    ]
    return f"Score thresholds with the highest F1, at IoU {IOU}:\n{table_text(rows)}"


def _errors(content: ErrorCauses) -> str:
    rows = [{"cause": name, **asdict(cause)} for name, cause in content.causes.items()]
    return f"Errors by cause (TIDE), and the gain in AP50 without them:\n{table_text(rows)}"


def _images(content: RankedImages) -> str:
    title = f"Images with the lowest F1 at scores from {content.min_score:.3f}"
    names = ("f1", "hits", "false_alarms", "missed")
    rows = [
        {"image": row.file_name or row.image_id} | {name: getattr(row, name) for name in names}
        for row in content.worst[:_MAX_SHOWN]
    ]
    return f"{title}:\n{table_text(rows)}"
