"""Match detections by IoU with hotcoco or pycocotools, which return the same arrays.

hotcoco (https://github.com/derekallman/hotcoco, Rust) is 40 times as fast as pycocotools.
"""

import contextlib
import importlib.util
import io
import logging
from collections.abc import Sequence
from typing import Any

import numpy as np

from d2ext.data.formats.rle import completed, rle_areas
from d2ext.errors import UserError
from d2ext.evaluation.instances import Detections, GroundTruth

logger = logging.getLogger(__name__)

BACKENDS = ("auto", "hotcoco", "pycocotools")
_CHUNK = 5_000  # masks processed at a time
_IGNORED_AREA = 2e10  # above every size range, so that both backends ignore the object
# COCO's ranges of areas, in square pixels; pycocotools lacks `small` for keypoints.
_AREAS = {"all": [0, 1e10], "small": [0, 32**2], "medium": [32**2, 96**2], "large": [96**2, 1e10]}


def chosen_backend(backend: str) -> str:
    """Return `hotcoco` or `pycocotools`; for `auto`, the first one that is installed.

    Raises:
        UserError: The backend is unknown or not installed.
    """
    if backend not in BACKENDS:
        raise UserError(f"backend={backend!r}; choose one of {', '.join(BACKENDS)}")
    absent = importlib.util.find_spec("hotcoco") is None
    if backend == "auto":
        if absent:
            logger.warning(
                "hotcoco is not installed; using pycocotools, which is slow (pip install hotcoco)"
            )
        return "pycocotools" if absent else "hotcoco"
    if backend == "hotcoco" and absent:
        raise UserError("hotcoco is required, but not installed; pip install hotcoco")
    return backend


def evaluable(
    tasks: Sequence[str] | None, ground_truth: GroundTruth, detections: Detections
) -> Sequence[str]:
    """Return the tasks; for None, `bbox`, and `segm` if detections and ground truth have masks.

    Raises:
        UserError: The tasks include `segm`, but the detections have no masks.
    """
    # A model with a keypoint head that finds nothing has no masks either.
    unknown = not len(detections.scores) and detections.keypoints is None
    masks = detections.masks is not None or unknown
    if tasks is None:
        return ["bbox", "segm"] if masks and ground_truth.segmentations is not None else ["bbox"]
    if "segm" in tasks and not masks:
        raise UserError("the task segm needs masks; the detections have only boxes")
    return tasks


def matched(
    ground_truth: GroundTruth,
    detections: Detections,
    task: str,
    iou_thresholds: np.ndarray,
    max_detections: Sequence[int],
    backend: str,
    by_class: bool = True,
    oks_sigmas: Sequence[float] | None = None,
) -> dict[str, np.ndarray]:
    """Match and accumulate detections as COCO does (https://cocodataset.org/#detection-eval).

    Args:
        ground_truth: Ground truth of the dataset.
        detections: Detections in its images.
        task: `bbox`, `segm` or `keypoints`.
        iou_thresholds: (T,) increasing thresholds of the IoU, or of keypoints' OKS.
        max_detections: M increasing limits of detections per image and class.
        backend: `hotcoco` or `pycocotools`.
        by_class: Whether to match by class; otherwise all classes are treated as one.
        oks_sigmas: K tolerances of keypoints, as a fraction of the square root of an object's area.

    Returns:
        `precision` (T, 101 recalls, C, 4 sizes, M) and `recall` (T, C, 4, M): fractions, or -1
        without objects; sizes are all, small, medium, large.
    """
    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints how long it took
        evaluation = prepared(
            ground_truth,
            detections,
            task,
            iou_thresholds,
            max_detections,
            backend,
            by_class,
            oks_sigmas,
        )
        evaluation.evaluate()
        evaluation.accumulate()
    return {name: np.asarray(evaluation.eval[name]) for name in ("precision", "recall")}


def prepared(
    ground_truth: GroundTruth,
    detections: Detections,
    task: str,
    iou_thresholds: np.ndarray,
    max_detections: Sequence[int],
    backend: str,
    by_class: bool = True,
    oks_sigmas: Sequence[float] | None = None,
) -> Any:
    """Return the backend's COCOeval for the arguments of `matched`, not evaluated yet."""
    pair = hotcoco_pair if backend == "hotcoco" else _pycocotools_pair
    evaluation = pair(ground_truth, detections, task)
    evaluation.params.iouThrs = iou_thresholds
    evaluation.params.maxDets = list(max_detections)
    evaluation.params.useCats = int(by_class)
    if task == "keypoints":
        evaluation.params.kpt_oks_sigmas = np.array(oks_sigmas)
        evaluation.params.areaRng = list(_AREAS.values())
        evaluation.params.areaRngLbl = list(_AREAS)
    return evaluation


def hotcoco_pair(
    ground_truth: GroundTruth, detections: Detections, task: str, lvis_style: bool = False
) -> Any:
    """Return a hotcoco.COCOeval that has not been evaluated yet.

    Image i has the id i + 1, class c the id c + 1, row r of the objects or detections the id r + 1.

    Args:
        ground_truth: Ground truth of the dataset.
        detections: Detections in its images.
        task: `bbox`, `segm` or `keypoints`.
        lvis_style: Evaluate as LVIS does; LVIS has no crowds, so they are treated as difficult.
    """
    import hotcoco

    masks = task == "segm"
    crowd = ground_truth.crowd | ground_truth.group_of
    areas = _areas(ground_truth)
    images, categories = _images(ground_truth), _categories(ground_truth)
    if task == "keypoints":
        objects, results = _keypoint_annotations(ground_truth, detections)
        content = {"images": images, "categories": categories, "annotations": objects}
        gt = hotcoco.COCO(content)
        return hotcoco.COCOeval(gt, gt.load_res(results), task)
    if lvis_style:
        areas = np.where(crowd, _IGNORED_AREA, areas)
        _add_lvis(ground_truth, images, categories)
    gt = hotcoco.COCO.from_arrays(
        images,
        categories,
        ground_truth.image + 1,
        ground_truth.label + 1,
        ground_truth.boxes,
        area=areas,
        iscrowd=crowd & (not lvis_style),
        segmentation=_segmentations(ground_truth) if masks else None,
    )
    rows = np.column_stack(
        [detections.image + 1, detections.boxes, detections.scores, detections.label + 1]
    )
    dt = gt.load_res(rows, segmentation=_masks(detections) if masks else None)
    if masks:
        dt.update_anns(ids=np.arange(1, len(rows) + 1), area=detection_areas(detections, task))
    return hotcoco.COCOeval(gt, dt, task, lvis_style=lvis_style)


def _pycocotools_pair(ground_truth: GroundTruth, detections: Detections, task: str) -> Any:
    """Return a pycocotools COCOeval that has not been evaluated yet."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    if task == "keypoints":
        objects, results = _keypoint_annotations(ground_truth, detections)
    else:
        masks = task == "segm"
        areas, shapes = detection_areas(detections, task), None
        if masks:
            shapes, areas = whole_masks(_masks(detections))
        segmentations = _segmentations(ground_truth) if masks else None
        objects = _objects(ground_truth, _areas(ground_truth), segmentations)
        results = _results(detections, areas, shapes)
    sides = []
    for annotations in (objects, results):
        side = COCO()
        side.dataset = {
            "images": _images(ground_truth),
            "categories": _categories(ground_truth),
            "annotations": annotations,
        }
        side.createIndex()
        sides.append(side)
    return COCOeval(*sides, task)


def whole_masks(masks: Sequence[dict], first: int = 0) -> tuple[list[dict], np.ndarray]:
    """Return compressed RLEs that cover their whole images, and their areas (M,) as float64.

    Args:
        masks: M compressed RLEs.
        first: Number of the first one, for messages.

    Raises:
        UserError: An RLE is damaged.
    """
    whole, areas = list(masks), _mask_areas(masks)
    for i in np.flatnonzero(np.isnan(areas)).tolist():
        try:
            whole[i] = completed(masks[i])
        except ValueError as e:
            raise UserError(f"the RLE of entry {first + i}: {e}; write it again") from e
        areas[i] = _mask_areas(whole[i : i + 1])[0]
    return whole, areas


def _mask_areas(masks: Sequence[dict]) -> np.ndarray:
    """Return the areas from `rle_areas`; NaN for damaged masks."""
    areas = np.empty(len(masks))
    for first in range(0, len(masks), _CHUNK):
        part = masks[first : first + _CHUNK]
        sizes = np.array([mask["size"] for mask in part])
        counts = [mask["counts"] for mask in part]
        counts = [c.decode("ascii") if isinstance(c, bytes) else c for c in counts]
        areas[first : first + _CHUNK] = rle_areas(counts, sizes)
    return areas


def _keypoint_annotations(
    ground_truth: GroundTruth, detections: Detections
) -> tuple[list[dict], list[dict]]:
    """Return objects and detections with keypoints; the size of a detection is that of its box."""
    objects = _objects(ground_truth, ground_truth.areas, None)
    results = _results(detections, detection_areas(detections, "keypoints"), None)
    for columns, rows in ((ground_truth, objects), (detections, results)):
        if columns.keypoints is not None:  # None without objects
            for a, values in zip(rows, columns.keypoints, strict=True):
                a["keypoints"] = values.reshape(-1).tolist()
                a["num_keypoints"] = int(np.count_nonzero(values[:, 2] > 0))
    for i in np.flatnonzero(ground_truth.difficult).tolist():
        objects[i]["num_keypoints"] = 0  # ignored; the area is part of OKS
    return objects, results


def _objects(ground_truth: GroundTruth, areas: np.ndarray, masks: Sequence | None) -> list[dict]:
    objects = _annotations(ground_truth, areas, masks)
    crowd = ground_truth.crowd | ground_truth.group_of
    for a, value in zip(objects, crowd.tolist(), strict=True):
        a["iscrowd"] = int(value)
    return objects


def _results(detections: Detections, areas: np.ndarray, masks: Sequence | None) -> list[dict]:
    results = _annotations(detections, areas, masks)
    for a, score in zip(results, detections.scores.tolist(), strict=True):
        a["score"], a["iscrowd"] = score, 0
    return results


def detection_areas(detections: Detections, task: str) -> np.ndarray:
    """Return the areas (M,) by which a task tells the sizes of detections, in square pixels."""
    if task != "segm":
        return detections.boxes[:, 2] * detections.boxes[:, 3]
    if detections.mask_areas is not None:
        return detections.mask_areas
    return whole_masks(_masks(detections))[1]


def _annotations(
    columns: GroundTruth | Detections, areas: np.ndarray, masks: Sequence | None
) -> list[dict]:
    rows = zip(
        (columns.image + 1).tolist(),
        (columns.label + 1).tolist(),
        columns.boxes.tolist(),
        areas.tolist(),
        [None] * len(areas) if masks is None else masks,
        strict=True,
    )
    names = ("image_id", "category_id", "bbox", "area", "segmentation")
    return [{"id": i, **dict(zip(names, row, strict=True))} for i, row in enumerate(rows, start=1)]


def _masks(detections: Detections) -> list[Any]:
    return list(detections.masks or ())  # None without detections


def _segmentations(ground_truth: GroundTruth) -> list:
    """Return the polygons or RLE of every object; for objects without a mask, the box corners."""
    given = ground_truth.segmentations or [None] * len(ground_truth.image)
    return [
        [[x, y, x + w, y, x + w, y + h, x, y + h]] if mask is None else mask
        for mask, (x, y, w, h) in zip(given, ground_truth.boxes.tolist(), strict=True)
    ]


def _areas(ground_truth: GroundTruth) -> np.ndarray:
    return np.where(ground_truth.difficult, _IGNORED_AREA, ground_truth.areas)


def _images(ground_truth: GroundTruth) -> list[dict]:
    sizes = zip(ground_truth.heights.tolist(), ground_truth.widths.tolist(), strict=True)
    return [
        {"id": i, "file_name": "", "height": height, "width": width}
        for i, (height, width) in enumerate(sizes, start=1)
    ]


def _add_lvis(ground_truth: GroundTruth, images: list[dict], categories: list[dict]) -> None:
    """Add the fields of LVIS files to those of COCO; negatives default to all other classes."""
    every = np.arange(1, len(categories) + 1)
    present: list[set] = [set() for _ in images]
    for i, label in zip(ground_truth.image.tolist(), ground_truth.label.tolist(), strict=True):
        present[i].add(label + 1)
    for i, image in enumerate(images):
        if ground_truth.negatives is None:
            image["neg_category_ids"] = np.setdiff1d(every, list(present[i])).tolist()
        else:
            image["neg_category_ids"] = [c + 1 for c in ground_truth.negatives[i]]
        marked = () if ground_truth.not_exhaustive is None else ground_truth.not_exhaustive[i]
        image["not_exhaustive_category_ids"] = [c + 1 for c in marked]
    for category, frequency in zip(categories, ground_truth.frequencies or (), strict=False):
        if frequency:
            category["frequency"] = frequency


def _categories(ground_truth: GroundTruth) -> list[dict]:
    return [{"id": i, "name": name} for i, name in enumerate(ground_truth.classes, start=1)]
