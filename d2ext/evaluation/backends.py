"""Matching by IoU, done by hotcoco or pycocotools: the same arrays from either.

hotcoco (https://github.com/derekallman/hotcoco, Rust) takes 1/40 of pycocotools' time.
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
_CHUNK = 5_000  # masks that are looked at together
_IGNORED_AREA = 2e10  # above every range of sizes, so both backends leave the object out of account


def chosen_backend(backend: str) -> str:
    """`hotcoco` or `pycocotools`; `auto` is the first one that is installed.

    Raises:
        UserError: it is another, or not installed.
    """
    if backend not in BACKENDS:
        raise UserError(f"backend={backend!r}; choose one of {', '.join(BACKENDS)}")
    absent = importlib.util.find_spec("hotcoco") is None
    if backend == "auto":
        if absent:
            logger.warning("hotcoco is absent (pip install hotcoco); pycocotools evaluates, slowly")
        return "pycocotools" if absent else "hotcoco"
    if backend == "hotcoco" and absent:
        raise UserError("hotcoco, which this needs, is not installed; pip install hotcoco")
    return backend


def usual_tasks(with_masks: bool) -> list[str]:
    """Return what to evaluate by default."""
    return ["bbox", "segm"] if with_masks else ["bbox"]


def evaluable(
    tasks: Sequence[str] | None, ground_truth: GroundTruth, detections: Detections
) -> Sequence[str]:
    """Return the tasks; None is `bbox`, and `segm` where detections and ground truth have masks.

    Raises:
        UserError: masks shall be compared, and the detections have none.
    """
    masks = detections.masks is not None or not len(detections.scores)
    if tasks is None:
        return usual_tasks(masks and ground_truth.segmentations is not None)
    if "segm" in tasks and not masks:
        raise UserError("the task segm needs masks; the detections have boxes alone")
    return tasks


def matched(
    ground_truth: GroundTruth,
    detections: Detections,
    task: str,
    iou_thresholds: np.ndarray,
    max_detections: Sequence[int],
    backend: str,
    by_class: bool = True,
) -> dict[str, np.ndarray]:
    """COCO's matching and accumulation (https://cocodataset.org/#detection-eval).

    Args:
        ground_truth: the objects.
        detections: the detections.
        task: `bbox` or `segm`.
        iou_thresholds: (T,) rising.
        max_detections: M numbers of detections an image and class, rising.
        backend: `hotcoco` or `pycocotools`.
        by_class: False takes all classes as one.

    Returns:
        `precision` (T, 101 recalls, C, 4 sizes, M) and `recall` (T, C, 4, M): fractions, -1 where
        there is no object; sizes are all, small, medium, large.
    """
    pair = hotcoco_pair if backend == "hotcoco" else _pycocotools_pair
    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools tells how long it took
        evaluation = pair(ground_truth, detections, task)
        evaluation.params.iouThrs = iou_thresholds
        evaluation.params.maxDets = list(max_detections)
        evaluation.params.useCats = int(by_class)
        evaluation.evaluate()
        evaluation.accumulate()
    return {name: np.asarray(evaluation.eval[name]) for name in ("precision", "recall")}


def hotcoco_pair(
    ground_truth: GroundTruth, detections: Detections, task: str, lvis_style: bool = False
) -> Any:
    """Return a hotcoco.COCOeval still to be evaluated.

    Image i has the id i + 1, class c the id c + 1, row r of the objects or detections the id r + 1.

    Args:
        ground_truth: the objects.
        detections: the detections.
        task: `bbox` or `segm`.
        lvis_style: as LVIS evaluates. It knows no crowds: they are as difficult objects.
    """
    import hotcoco

    masks = task == "segm"
    crowd = ground_truth.crowd | ground_truth.group_of
    areas = _areas(ground_truth)
    images, categories = _images(ground_truth), _categories(ground_truth)
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
        areas = detections.mask_areas
        areas = hotcoco.mask.area(_masks(detections)) if areas is None else areas
        dt.update_anns(ids=np.arange(1, len(rows) + 1), area=areas)
    return hotcoco.COCOeval(gt, dt, task, lvis_style=lvis_style)


def _pycocotools_pair(ground_truth: GroundTruth, detections: Detections, task: str) -> Any:
    """Return a pycocotools COCOeval still to be evaluated."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    masks = task == "segm"
    areas, shapes = detections.boxes[:, 2] * detections.boxes[:, 3], None
    if masks:
        shapes, areas = whole_masks(_masks(detections))
    crowd = ground_truth.crowd | ground_truth.group_of
    objects = _annotations(
        ground_truth, _areas(ground_truth), _segmentations(ground_truth) if masks else None
    )
    for a, value in zip(objects, crowd.tolist(), strict=True):
        a["iscrowd"] = int(value)
    results = _annotations(detections, areas, shapes)
    for a, score in zip(results, detections.scores.tolist(), strict=True):
        a["score"], a["iscrowd"] = score, 0
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


def whole_masks(masks: Sequence[dict]) -> tuple[list[dict], np.ndarray]:
    """Compressed RLEs that fill their images, and the pixels in each, float64 (M,).

    Raises:
        UserError: one is damaged.
    """
    whole, areas = list(masks), _mask_areas(masks)
    for i in np.flatnonzero(np.isnan(areas)).tolist():
        try:
            whole[i] = completed(masks[i])
        except ValueError as e:
            raise UserError(f"the RLE of entry {i}: {e}; write it once more") from e
        areas[i] = _mask_areas(whole[i : i + 1])[0]
    return whole, areas


def _mask_areas(masks: Sequence[dict]) -> np.ndarray:
    """As `rle_areas` counts them: NaN for damaged ones."""
    areas = np.empty(len(masks))
    for first in range(0, len(masks), _CHUNK):
        part = masks[first : first + _CHUNK]
        sizes = np.array([mask["size"] for mask in part])
        counts = [mask["counts"] for mask in part]
        counts = [c.decode("ascii") if isinstance(c, bytes) else c for c in counts]
        areas[first : first + _CHUNK] = rle_areas(counts, sizes)
    return areas


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


def _masks(detections: Detections) -> list[dict]:
    return list(detections.masks or ())  # without detections there may be None


def _segmentations(ground_truth: GroundTruth) -> list:
    """Polygons or RLE of every object; of one without a mask the corners of its box."""
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
    """Return what LVIS's files add to COCO's; without negatives these are all the other classes."""
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
