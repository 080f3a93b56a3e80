"""Where a detector goes wrong: confusions, precision over recall, causes of errors, images.

All at the IoU 0.5 and with up to 100 detections an image and class. hotcoco matches; results are
plain dicts that JSON can hold, with None where a number is undefined.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from d2ext.evaluation.backends import chosen_backend, hotcoco_pair
from d2ext.evaluation.instances import Detections, GroundTruth, take
from d2ext.evaluation.tables import table_text

IOU = 0.5
_RECALLS = np.linspace(0, 1, 101)  # those of COCO
_IMAGES = 20  # best ones, worst ones
_MAX_SHOWN = 12  # classes that a printed matrix holds, and lines of a printed list
_CAUSES = {
    "Cls": "wrong class",
    "Loc": "wrong place",
    "Both": "wrong class and place",
    "Dupe": "found twice",
    "Bkg": "nothing there",
    "Miss": "missed",
}


class Analysis:
    """A detector's hits and errors on one data set.

    Args:
        ground_truth: the objects.
        found: the detections.
        task: `bbox` or `segm`, what is compared.

    Attributes:
        outcome: (M,) int8, of each detection: 1 hit, 0 false alarm, -1 not counted (in a crowd, on
            a difficult object, or beyond the hundredth of its image and class).
        counted: (N,) bool, the objects that are neither crowd nor difficult.

    Raises:
        UserError: hotcoco is not installed.
    """

    def __init__(self, ground_truth: GroundTruth, found: Detections, task: str = "bbox"):
        chosen_backend("hotcoco")
        self._truth, self._found, self._task = ground_truth, found, task
        self._evaluation = hotcoco_pair(ground_truth, found, task)
        self._evaluation.evaluate()
        status = self._evaluation.image_diagnostics(iou_thr=IOU)["dt_status"]
        self.outcome = np.full(len(found.scores), -1, np.int8)
        rows = np.fromiter(status.keys(), np.int64, len(status)) - 1
        self.outcome[rows] = [value == "tp" for value in status.values()]
        self.counted = ~(ground_truth.crowd | ground_truth.group_of | ground_truth.difficult)
        self._order = np.lexsort([found.image, -found.scores])
        self._order = self._order[self.outcome[self._order] >= 0]

    def best_score(self) -> dict | None:
        """The score threshold with the highest F1 over all classes; see `pr_curves`."""
        return _best(*self._ranked(self._order), int(self.counted.sum()))

    def pr_curves(self) -> list[dict]:
        """Precision over recall of each class, and the score threshold with the highest F1.

        Returns:
            For each class `class`, `objects`, `AP50` (percent), `best` (`score`: detections with at
            least it have `f1`, `precision` and `recall`; None where nothing is hit) and `curve`:
            `precision` at the recalls 0, 0.01, ..., 1 (the highest at that recall or more) and
            `score` of the detection that reaches it, None where none does.
        """
        objects = np.bincount(
            self._truth.label[self.counted], minlength=len(self._truth.classes)
        ).tolist()
        labels = self._found.label[self._order]
        curves = []
        for c, name in enumerate(self._truth.classes):
            hits, scores = self._ranked(self._order[labels == c])
            row: dict[str, Any] = {"class": name, "objects": objects[c], "AP50": None}
            curve = {"precision": [None] * 101, "score": [None] * 101}
            if objects[c]:
                recall = hits / objects[c]
                precision = hits / np.arange(1, len(hits) + 1)
                precision = np.maximum.accumulate(precision[::-1])[::-1]
                at = np.searchsorted(recall, _RECALLS, side="left")
                reached = at < len(recall)
                values = np.zeros(101)
                values[reached] = precision[at[reached]]
                row["AP50"] = 100 * float(values.mean())
                curve["precision"] = values.tolist()
                curve["score"] = [scores[i] if i < len(hits) else None for i in at.tolist()]
            curves.append(row | {"best": _best(hits, scores, objects[c]), "curve": curve})
        return curves

    def confusion_matrix(self, min_score: float | None = None) -> dict:
        """Which class is taken for which.

        Args:
            min_score: detections below are left out; None takes that of `best_score`.

        Returns:
            `classes`, `min_score` and `matrix`: rows are the objects' classes, columns the
            detections', the last of both is the background (false alarms, missed objects).
        """
        if min_score is None:
            min_score = (self.best_score() or {"score": 0.0})["score"]
        # hotcoco's matrix knows neither crowds nor difficult objects.
        kept = np.flatnonzero((self.outcome >= 0) & (self._found.scores >= min_score))
        pair = hotcoco_pair(_only(self._truth, self.counted), take(self._found, kept), self._task)
        matrix = pair.confusion_matrix(iou_thr=IOU, max_det=max(len(kept), 1))["matrix"]
        return {
            "classes": list(self._truth.classes),
            "min_score": float(min_score),
            "matrix": matrix.astype(int).tolist(),
        }

    def errors(self) -> dict:
        """Errors by cause, as TIDE splits them (Bolya et al. 2020, https://dbolya.github.io/tide).

        Returns:
            `AP50` in percent and `causes`: for each of Cls, Loc, Both, Dupe, Bkg and Miss its
            `meaning`, `count` and `delta_AP`, the percent that AP50 would gain without them.
        """
        tide = self._evaluation.tide_errors(pos_thr=IOU, bg_thr=0.1)
        causes = {
            cause: {
                "meaning": meaning,
                "count": int(tide["counts"][cause]),
                "delta_AP": 100 * tide["delta_ap"][cause],
            }
            for cause, meaning in _CAUSES.items()
        }
        ap = 100 * tide["ap_base"] if self.counted.any() else None
        return {"AP50": ap, "causes": causes}

    def images(self) -> dict:
        """The images with the highest and the lowest F1 at the score of `best_score`.

        Returns:
            `min_score`, and `best` and `worst` with 20 images or fewer: `image_id`, `file_name`,
            `f1`, `hits`, `false_alarms`, `missed`. Images without objects and detections are left
            out; among equal ones those with more objects or detections come first.
        """
        ground_truth, found = self._truth, self._found
        min_score = (self.best_score() or {"score": 0.0})["score"]
        kept = (self.outcome >= 0) & (found.scores >= min_score)
        count = len(ground_truth.image_ids)
        detections = np.bincount(found.image[kept], minlength=count)
        hits = np.bincount(found.image[kept & (self.outcome == 1)], minlength=count)
        objects = np.bincount(ground_truth.image[self.counted], minlength=count)
        shown = np.flatnonzero(detections + objects)
        f1 = 2 * hits[shown] / (detections + objects)[shown]
        larger = -(detections + objects)[shown]

        def described(order: np.ndarray) -> list[dict]:
            return [
                {
                    "image_id": ground_truth.image_ids[i],
                    "file_name": ground_truth.file_names[i],
                    "f1": float(f1[k]),
                    "hits": int(hits[i]),
                    "false_alarms": int(detections[i] - hits[i]),
                    "missed": int(objects[i] - hits[i]),
                }
                for k, i in zip(order.tolist(), shown[order].tolist(), strict=True)
            ]

        return {
            "min_score": float(min_score),
            "best": described(np.lexsort([larger, -f1])[:_IMAGES]),
            "worst": described(np.lexsort([larger, f1])[:_IMAGES]),
        }

    def _ranked(self, order: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Hits among the detections up to each of these, and their scores."""
        return np.cumsum(self.outcome[order] == 1), self._found.scores[order]


def _best(hits: np.ndarray, scores: np.ndarray, objects: int) -> dict | None:
    if not len(hits) or not hits[-1]:
        return None
    found = np.arange(1, len(hits) + 1)
    f1 = 2 * hits / (objects + found)
    f1[:-1][scores[1:] == scores[:-1]] = -1  # a threshold takes all of the same score
    i = int(np.argmax(f1))
    return {
        "score": float(scores[i]),
        "f1": float(f1[i]),
        "precision": float(hits[i] / found[i]),
        "recall": float(hits[i] / objects),
    }


def _only(ground_truth: GroundTruth, rows: np.ndarray) -> GroundTruth:
    """The objects of these rows, bool."""
    names = ("image", "label", "boxes", "areas", "crowd", "difficult", "group_of")
    masks = ground_truth.segmentations
    if masks is not None:
        masks = [masks[i] for i in np.flatnonzero(rows).tolist()]
    columns = {name: getattr(ground_truth, name)[rows] for name in names}
    return replace(ground_truth, **columns, segmentations=masks)


def analyse(
    ground_truth: GroundTruth, found: Detections, task: str, parts: Mapping[str, bool]
) -> dict[str, Any]:
    """Several analyses at once.

    Args:
        ground_truth: the objects.
        found: the detections.
        task: `bbox` or `segm`.
        parts: which of `confusion_matrix`, `pr_curves` and `errors` (which brings `images`).

    Returns:
        By these names what `Analysis` gives, and `best_score`.
    """
    analysis = Analysis(ground_truth, found, task)
    results: dict[str, Any] = {"best_score": analysis.best_score()}
    for name in ("confusion_matrix", "pr_curves", "errors"):
        if parts.get(name):
            results[name] = getattr(analysis, name)()
    if parts.get("errors"):
        results["images"] = analysis.images()
    return results


def printed(results: Mapping[str, Any]) -> str:
    """What `analyse` gives as tables of plain text."""
    tables: dict[str, Callable[[Any], str]] = {
        "confusion_matrix": _confusions,
        "pr_curves": _curves,
        "errors": _errors,
        "images": _images,
    }
    return "\n\n".join(table(results[name]) for name, table in tables.items() if name in results)


def _confusions(content: dict) -> str:
    classes, matrix = [*content["classes"], "background"], np.array(content["matrix"])
    title = f"Confusions at IoU {IOU} and scores from {content['min_score']:.3f}"
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
    return f"{title}, the most frequent ones:\n{table_text(rows)}"


def _curves(curves: list[dict]) -> str:
    rows = [
        {"class": row["class"], "objects": row["objects"], "AP50": row["AP50"]}
        | {name: (row["best"] or {}).get(name) for name in ("score", "f1", "precision", "recall")}
        for row in curves
    ]
    return f"Score thresholds with the highest F1, at IoU {IOU}:\n{table_text(rows)}"


def _errors(content: dict) -> str:
    rows = [{"cause": cause, **row} for cause, row in content["causes"].items()]
    return f"Errors by cause (TIDE), and what AP50 would gain:\n{table_text(rows)}"


def _images(content: dict) -> str:
    title = f"Images with the lowest F1 at scores from {content['min_score']:.3f}"
    names = ("f1", "hits", "false_alarms", "missed")
    rows = [
        {"image": row["file_name"] or row["image_id"]} | {name: row[name] for name in names}
        for row in content["worst"][:_MAX_SHOWN]
    ]
    return f"{title}:\n{table_text(rows)}"
