"""Cityscapes' average precision of masks (https://www.cityscapes-dataset.com/benchmarks/).

The numbers are those of cityscapesscripts (evalInstanceLevelSemanticLabeling), whose
`evaluateMatches` is called. The steps before it, which Detectron2 uses, are replaced: they read a
PNG for every detection and compare it with every object pixel by pixel, end the process on errors,
and fail in version 2.3 with numpy 2.4 (no `in1d`; integers that its JSON encoder does not accept).
"""

import copy
import importlib
import logging
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pycocotools.mask
from PIL import Image

from d2ext.errors import UserError
from d2ext.evaluation.bootstrap.draws import Matches, counts, named_samples, parts, running
from d2ext.evaluation.instances import Detections, GroundTruth
from d2ext.evaluation.tables import check_flags, mean, named

logger = logging.getLogger(__name__)

_NAMES = ("AP", "AP50")
_SUFFIX = "_leftImg8bit"
_GROUND_TRUTH = "_gtFine_instanceIds.png"


class CityscapesMetric:
    """AP of masks, averaged over IoU 0.5 to 0.95, and AP50; detections on void are ignored.

    The ground truth is read from Cityscapes' files `*_gtFine_instanceIds.png`, because only they
    contain the void. A class without objects of at least 100 pixels has no AP and is left out of
    the means. Masks without pixels are ignored.

    Args:
        gt_dir: Folder gtFine/<split> with `<city>/*_gtFine_instanceIds.png`. For None, it is found
            next to the leftImg8bit/<split> of each image.
        per_class: Add the results of each class.

    Raises:
        UserError: An argument has the wrong type, or Cityscapes' scripts are not installed.
    """

    def __init__(self, gt_dir: str | None = None, per_class: bool = True):
        if not isinstance(gt_dir, (str, Path, type(None))):
            raise UserError(f"CityscapesMetric: gt_dir={gt_dir!r}; give a path, or null")
        check_flags("CityscapesMetric", per_class=per_class)
        _scripts()
        self._gt_dir = gt_dir
        self._per_class = per_class

    def __call__(self, ground_truth: GroundTruth, detections: Detections) -> dict[str, float]:
        """Evaluate one dataset.

        Args:
            ground_truth: Ground truth, of which only the file names and classes are used.
            detections: Detections with masks.

        Returns:
            `segm/AP` and `segm/AP50`, and each with `-<class>` for the classes, in percent; NaN
            without objects.

        Raises:
            UserError: Masks or ground truth files are missing, or a class is not in Cityscapes.
        """
        scripts, args = _scripts(), self._arguments(ground_truth.classes)
        matches = dict(enumerate(self._compared(ground_truth, detections)))
        (ap,) = scripts.evaluateMatches(matches, args)  # (C, 10); distances are unknown
        values = np.array([[mean(row) for row in ap], ap[:, 0]])
        numbers, table = named("segm", _NAMES, values, ground_truth.classes, self._per_class)
        logger.info("Cityscapes segm:\n%s", table)
        return numbers

    def resampled(
        self, ground_truth: GroundTruth, detections: Detections, draws: np.ndarray
    ) -> dict[str, np.ndarray]:
        """Evaluate draws of the images; see `d2ext.evaluation.metric.Metric`."""
        compared = self._compared(ground_truth, detections)
        args = self._arguments(ground_truth.classes)
        draws = draws.astype(np.int32)
        ap = np.stack(
            [
                _average_precision(*_outcomes(compared, name, args), draws)
                for name in ground_truth.classes
            ]
        )
        values = np.stack([ap.mean(axis=1), ap[:, 0]])
        return named_samples("segm", _NAMES, values, ground_truth.classes, self._per_class)

    def _arguments(self, classes: Sequence[str]) -> Any:
        """Return the scripts' thresholds and sizes, copied because they are global."""
        args = copy.deepcopy(_scripts().args)
        args.instLabels = list(classes)
        return args

    def _compared(self, ground_truth: GroundTruth, detections: Detections) -> list[dict]:
        """Return the matches of each image, see `_compare`."""
        _check(ground_truth.classes, detections.masks is not None or not len(detections.scores))
        order = np.argsort(detections.image, kind="stable")
        ends = np.searchsorted(detections.image[order], np.arange(len(ground_truth.image_ids) + 1))
        return [
            _compare(
                _ground_truth_file(file_name, self._gt_dir),
                ground_truth,
                detections,
                order[ends[i] : ends[i + 1]],
            )
            for i, file_name in enumerate(ground_truth.file_names)
        ]

    def keys(self, classes: Sequence[str], tasks: Sequence[str]) -> set[str]:
        """Return the keys of the results for a dataset; raise UserError as `__call__` does."""
        _check(classes, "segm" in tasks)
        return set(named("segm", _NAMES, np.zeros((2, len(classes))), classes, self._per_class)[0])


def _scripts() -> ModuleType:
    try:
        return importlib.import_module(
            "cityscapesscripts.evaluation.evalInstanceLevelSemanticLabeling"
        )
    except ImportError as e:
        raise UserError(
            f"CityscapesMetric: Cityscapes' scripts cannot be loaded ({e}); pip install"
            " cityscapesscripts pyquaternion"
        ) from e


def _check(classes: Sequence[str], with_masks: bool) -> None:
    labels = _scripts().labels
    known = [label.name for label in labels if label.hasInstances and not label.ignoreInEval]
    if unknown := [c for c in classes if c not in known]:
        raise UserError(
            f"CityscapesMetric: {unknown[0]!r} is not a Cityscapes class ({', '.join(known)});"
            " use CocoMetric for other data"
        )
    if not with_masks:
        raise UserError("CityscapesMetric: there are no masks to evaluate; use CocoMetric")


def _ground_truth_file(file_name: str, gt_dir: str | None) -> Path:
    """Return the ground truth of .../leftImg8bit/<split>/<city>/<name>_leftImg8bit.png."""
    image = Path(file_name)
    if gt_dir is None and len(image.parts) >= 4:
        gt_dir = image.parents[2].parent / "gtFine" / image.parent.parent.name
    file = Path(gt_dir or "", image.parent.name, image.stem.removesuffix(_SUFFIX) + _GROUND_TRUTH)
    if not file.is_file():
        raise UserError(
            f"CityscapesMetric: {file}, the ground truth of {file_name}, does not exist; keep"
            " Cityscapes' layout, or set gt_dir to the folder gtFine/<split>"
        )
    return file


def _compare(
    file: Path, ground_truth: GroundTruth, detections: Detections, rows: np.ndarray
) -> dict:
    """Match the objects and detections of one image in the format of `evaluateMatches`.

    Args:
        file: Ground truth of the image: 1000 * label + number for an object, the label alone for a
            group of objects or a class without instances.
        ground_truth: Ground truth with the classes.
        detections: Detections of all images.
        rows: Indices of this image's detections.

    Returns:
        {"groundTruth": {class: objects}, "prediction": {class: detections}}; areas are in pixels.
    """
    scripts = _scripts()
    ids = np.asarray(Image.open(file)).astype(np.int32)
    void = _encoded(np.isin(ids, [label.id for label in scripts.labels if label.ignoreInEval]))
    result: dict[str, dict[str, list[dict]]] = {"groundTruth": {}, "prediction": {}}
    present, counts = np.unique(ids, return_counts=True)
    for c, name in enumerate(ground_truth.classes):
        class_id = scripts.name2label[name].id
        mine = np.where(present < 1000, present, present // 1000) == class_id
        objects = [
            {"instID": int(i), "pixelCount": int(n), "medDist": -1, "distConf": 0.0}
            for i, n in zip(present[mine], counts[mine], strict=True)
        ]
        found = [r for r in rows if detections.label[r] == c]
        masks = [(detections.masks or ())[r] for r in found]
        for mask in masks:
            if tuple(mask["size"]) != ids.shape:
                raise UserError(
                    f"CityscapesMetric: a mask has {mask['size'][1]} x {mask['size'][0]} pixels,"
                    f" {file} has {ids.shape[1]} x {ids.shape[0]}"
                )
        regions = [_encoded(ids == o["instID"]) for o in objects] if masks else []
        areas, common = _intersections(masks, [*regions, void])
        predicted: list[dict[str, Any]] = [
            {"confidence": float(detections.scores[r]), "pixelCount": int(a), "matchedGt": []}
            | {"voidIntersection": int(shared[-1])}
            for r, a, shared in zip(found, areas, common, strict=True)
        ]
        result["prediction"][name] = [p for p in predicted if p["pixelCount"]]
        result["groundTruth"][name] = [o | {"matchedPred": []} for o in objects]
        for p, shared in zip(predicted, common, strict=True):
            for o, pixels in zip(result["groundTruth"][name], shared, strict=False):  # without void
                if pixels:
                    both = {"intersection": int(pixels)}
                    p["matchedGt"].append({k: o[k] for k in o if k != "matchedPred"} | both)
                    o["matchedPred"].append({k: p[k] for k in ("pixelCount", "confidence")} | both)
    return result


def _outcomes(compared: list[dict], name: str, args: Any) -> tuple[Matches, np.ndarray]:
    """Return the matches of a class by the rules of `evaluateMatches`, and the scores (D,).

    Objects do not overlap, so a detection has an IoU above 0.5 with at most one of them. Of the
    detections that find an object, that with the highest score is a hit, the others are errors.
    """
    least = args.minRegionSizes[0]
    thresholds = np.array(args.overlaps)
    objects: list[int] = []
    images: list[int] = []
    scores: list[float] = []
    hits: list[np.ndarray] = []
    counted: list[np.ndarray] = []
    for i, image in enumerate(compared):
        wanted = {
            o["instID"]: np.full(len(thresholds), -1)  # the detection that found the object
            for o in image["groundTruth"][name]
            if o["instID"] >= 1000 and o["pixelCount"] >= least
        }
        objects += [i] * len(wanted)
        for p in sorted(image["prediction"][name], key=lambda p: -p["confidence"]):
            ignored, overlap, best = p["voidIntersection"], 0.0, None
            for o in p["matchedGt"]:
                shared = o["intersection"]
                iou = shared / (o["pixelCount"] + p["pixelCount"] - shared)
                overlap, best = max((overlap, best), (iou, o["instID"]), key=lambda pair: pair[0])
                ignored += shared * (int(o["instID"] < 1000) + int(o["pixelCount"] < least))
            near = overlap > thresholds
            first = wanted[best] == -1 if best in wanted else np.zeros(len(thresholds), bool)
            hits.append(near & first)
            counted.append(np.where(near, best in wanted, ignored / p["pixelCount"] <= thresholds))
            if best in wanted:
                wanted[best][hits[-1]] = len(scores)
            images.append(i)
            scores.append(p["confidence"])
    order = np.argsort(-np.array(scores), kind="stable")
    shape = (-1, len(thresholds))
    matches = Matches(
        np.array(images, np.int64)[order],
        np.array(hits, bool).reshape(shape)[order].T,
        np.array(counted, bool).reshape(shape)[order].T,
        np.array(objects, np.int64),
        np.zeros(len(order), np.int64),
    )
    return matches, np.array(scores)[order]


def _average_precision(matches: Matches, scores: np.ndarray, draws: np.ndarray) -> np.ndarray:
    """Return the AP (T, R) of draws, the area below straight lines between points of the curve.

    The curve has a point for each score, and begins with a precision of 1. This is the sum of
    `evaluateMatches`, in which absent scores change nothing.

    Args:
        matches: Matches of a class.
        scores: (D,) float64, scores of the detections, falling.
        draws: (R, I) int32, how often each draw contains each image.
    """
    ends = np.flatnonzero(np.diff(scores, append=-np.inf)) + 1
    objects = counts(draws, matches.objects)[:, 0]
    result = np.full((len(matches.hit), len(draws)), np.nan)
    for part in parts(draws, len(scores)):
        for t, (hit, counted) in enumerate(zip(matches.hit, matches.counted, strict=True)):
            found, total = (
                running(draws[part], matches.image[kind])[:, np.cumsum([False, *kind])[[0, *ends]]]
                for kind in (hit, counted)
            )
            precision = np.divide(found, total, out=np.ones(found.shape), where=total > 0)
            middle = (precision[:, 1:] + precision[:, :-1]) / 2
            area = (middle * np.diff(found, axis=1)).sum(axis=1)
            known = objects[part] > 0
            result[t, part] = np.divide(
                area, objects[part], out=np.full(len(area), np.nan), where=known
            )
    return result


def _encoded(mask: np.ndarray) -> dict:
    return pycocotools.mask.encode(np.asfortranarray(mask, dtype=np.uint8))


def _intersections(masks: list[dict], regions: list[dict]) -> tuple[np.ndarray, np.ndarray]:
    """Return (D,) areas of D masks and (D, R) areas of their overlap with R regions, in pixels."""
    if not masks:
        return np.zeros(0), np.zeros((0, len(regions)))
    areas = pycocotools.mask.area(masks)
    # For crowds, pycocotools returns the fraction of the mask inside the region.
    inside = pycocotools.mask.iou(masks, regions, [1] * len(regions))
    # For an empty mask or region, the fraction is 0 / 0.
    return areas, np.rint(np.nan_to_num(inside) * areas[:, None])
