"""Ground truth and detections as columns, the input of every metric. This module needs no torch.

Edge cases are defined here, once for all metrics and both backends:

- Without detections, every object is missed, so AP and AR are 0. Without objects of some kind (a
  class, a size, or in a dataset without images or annotations at all), the result is NaN, and
  averages exclude it.
- A detection whose score, box, box area or keypoints are not finite is dropped, and the log counts
  these. If none is left, all objects are missed.
- Boxes are not clipped to the image. A box without area overlaps nothing: as a detection it is a
  false positive, as an object it is always missed.
- A crowd is a region: any number of detections in it (intersection over the detection's own area)
  count neither for nor against the detector. A group is a crowd, except for the Open Images metric.
- A difficult object (VOC's `difficult`, `ignore` in a COCO file) is neither a hit nor a miss. (For
  boxes and masks, pycocotools reads `ignore` but overwrites it with `iscrowd`.)
- An object that is both crowd and group is a group for Open Images; one that is both crowd and
  difficult is difficult for Open Images and VOC. For COCO, both are crowds, as in pycocotools.
  Conversion from VOC and Open Images sets both flags, because other programs know only crowds.
- When masks are compared, an object without a mask gets its box as mask. The size of a detection is
  then the area of its mask, as in Detectron2, not that of its box.
- When keypoints are compared, crowds and objects without labeled keypoints are neither hits nor
  misses, and the region of a crowd does not matter.
- A run-length encoding that ends before its image is filled up with background, as in hotcoco
  (pycocotools itself would not terminate). An empty or damaged one is rejected.
- Detections with the same score are ordered by their position within an image, and by image id
  across images. Annotation ids do not matter, even if they are 0 or repeated.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, TypeVar

import numpy as np

from d2ext.data.formats.coco_objects import mask_area
from d2ext.errors import UserError

logger = logging.getLogger(__name__)

_XYXY, _XYWH = 0, 1  # BoxMode.XYXY_ABS and XYWH_ABS, whose import needs torch


@dataclass(frozen=True)
class GroundTruth:
    """N objects in I images, in the order of the images.

    Attributes:
        image_ids: I ids as in the dataset, integers or strings.
        file_names: I names, for messages and pages.
        heights: (I,) int64, pixels; -1 if unknown, for a dataset of label maps only.
        widths: (I,) int64, pixels; -1 if unknown.
        classes: C names.
        image: (N,) int64, index into the images.
        label: (N,) int64, index into the classes.
        boxes: (N, 4) float64, [x, y, width, height] in pixels.
        areas: (N,) float64, square pixels.
        crowd: (N,) bool, COCO's iscrowd.
        difficult: (N,) bool, VOC's difficult and COCO's ignore: neither a hit nor a miss.
        group_of: (N,) bool, Open Images' IsGroupOf.
        segmentations: N COCO segmentations (polygons or RLE; None for an object without one), or
            None if no object has one.
        negatives: For each image, the classes (indices) that annotators found to be absent, as in
            LVIS; None if every class was annotated in every image.
        not_exhaustive: For each image, the classes (indices) whose objects are not all annotated
            (LVIS); None if there are none.
        frequencies: C strings, LVIS's `r`, `c` or `f`; None if unknown.
        keypoints: (N, K, 3) float64, x, y and visibility (0: not labeled) of K keypoints; zeros for
            an object without them, None if no object has any or their numbers differ. As in COCO
            files, x and y are indices of pixels, 0.5 less than in Detectron2's dataset dicts.
    """

    image_ids: Sequence[Any]
    file_names: Sequence[str]
    heights: np.ndarray
    widths: np.ndarray
    classes: Sequence[str]
    image: np.ndarray
    label: np.ndarray
    boxes: np.ndarray
    areas: np.ndarray
    crowd: np.ndarray
    difficult: np.ndarray
    group_of: np.ndarray
    segmentations: Sequence[Any] | None
    negatives: Sequence[Sequence[int]] | None = None
    not_exhaustive: Sequence[Sequence[int]] | None = None
    frequencies: Sequence[str | None] | None = None
    keypoints: np.ndarray | None = None


@dataclass(frozen=True)
class Detections:
    """M detections in the images of a GroundTruth.

    Attributes:
        image: (M,) int64, index into the images.
        label: (M,) int64, index into the classes.
        boxes: (M, 4) float64, [x, y, width, height] in pixels.
        scores: (M,) float64.
        masks: M compressed RLEs of the image's size, or None for boxes only.
        mask_areas: (M,) float64, pixels in the masks; None if they have not been counted.
        keypoints: (M, K, 3) float64, x, y (as in the ground truth) and score of K keypoints; None
            if the model returns none.
    """

    image: np.ndarray
    label: np.ndarray
    boxes: np.ndarray
    scores: np.ndarray
    masks: Sequence[dict] | None
    mask_areas: np.ndarray | None = None
    keypoints: np.ndarray | None = None


Instances = TypeVar("Instances", GroundTruth, Detections)


def ground_truth_columns(
    records: Sequence[dict],
    classes: Sequence[str],
    frequencies: Sequence[str] | None = None,
    areas_in_file: Mapping[tuple, float] = MappingProxyType({}),
) -> GroundTruth:
    """Return the columns of Detectron2's dataset dicts.

    Annotations need `bbox`, `bbox_mode` and `category_id`, and may have `area` (by default, that in
    the file, of the mask or of the box), `segmentation`, `keypoints`, `iscrowd`, `difficult` or
    `ignore`, and `is_group_of`. Records may have `neg_category_ids` and
    `not_exhaustive_category_ids`, which count from 1, as in Detectron2's LVIS reader.

    Args:
        records: Dataset dicts with XYXY_ABS or XYWH_ABS boxes; each is read only once.
        classes: Class names by category_id.
        frequencies: Frequencies of the classes, for LVIS.
        areas_in_file: Areas by (image id, x, y, width, height), see `read_areas`.

    Raises:
        UserError: A box has another mode.
    """
    ids, names, sizes, rows, areas, segmentations, keypoints = [], [], [], [], [], [], []
    lists: dict[str, list] = {"neg_category_ids": [], "not_exhaustive_category_ids": []}
    for i, record in enumerate(records):
        ids.append(record.get("image_id", record["file_name"]))
        names.append(record["file_name"])
        sizes.append((record.get("height", -1), record.get("width", -1)))
        for key, values in lists.items():
            values.append([id_ - 1 for id_ in record[key]] if key in record else None)
        for a in record.get("annotations", ()):
            mode = a["bbox_mode"]
            if mode not in (_XYXY, _XYWH):
                raise UserError(
                    f"{record['file_name']}: bbox_mode={mode!r} is not supported; use XYXY_ABS or"
                    " XYWH_ABS"
                )
            segmentation = a.get("segmentation") or None
            segmentations.append(segmentation)
            keypoints.append(a.get("keypoints"))
            x, y, w, h = a["bbox"]
            if mode == _XYXY:
                w, h = w - x, h - y
            area = a["area"] if "area" in a else areas_in_file.get((ids[-1], x, y, w, h))
            areas.append(mask_area(segmentation, w, h) if area is None else area)
            difficult = bool(a.get("difficult") or a.get("ignore"))
            crowd, group = bool(a.get("iscrowd")), bool(a.get("is_group_of"))
            rows.append((i, a["category_id"], x, y, w, h, crowd, difficult, group))
    heights, widths = np.array(sizes, np.int64).reshape(-1, 2).T
    table = np.array(rows, np.float64).reshape(-1, 9)
    negatives, not_exhaustive = (
        None if all(v is None for v in values) else [v or [] for v in values]
        for values in lists.values()
    )
    image, label = table[:, :2].astype(np.int64).T
    crowds, ignored, groups = table[:, 6:].astype(bool).T
    return GroundTruth(
        ids,
        names,
        heights,
        widths,
        list(classes),
        image,
        label,
        table[:, 2:6],
        np.array(areas, np.float64),
        crowds,
        ignored,
        groups,
        segmentations if any(s is not None for s in segmentations) else None,
        negatives,
        not_exhaustive,
        frequencies,
        keypoint_column(keypoints, 0.5),
    )


def keypoint_column(
    values: Sequence[Sequence[float] | None], shift: float = 0.0
) -> np.ndarray | None:
    """Return the column `keypoints` of objects or detections.

    Args:
        values: N lists [x, y, visibility or score, ...]; None or empty for an object without any.
        shift: Number of pixels to subtract from x and y.

    Returns:
        (N, K, 3) float64; None if there are no keypoints, or not the same number everywhere.
    """
    lengths = {len(v) for v in values if v}
    if len(lengths) != 1 or max(lengths) % 3:
        return None
    table = np.zeros((len(values), max(lengths)))
    for row, v in zip(table, values, strict=True):
        if v:
            row[:] = v
    keypoints = table.reshape(len(values), -1, 3)
    keypoints[..., :2] -= shift
    return keypoints


def detection_columns(ground_truth: GroundTruth, results: Sequence[dict]) -> Detections:
    """Return the columns of COCO results.

    Args:
        ground_truth: Ground truth with the images.
        results: Dicts in which `image_id` is one of `ground_truth.image_ids`, `category_id` an
            index into its classes, `bbox` [x, y, width, height] in pixels, and `segmentation` a
            compressed RLE (in all or none); `keypoints` are optional.
    """
    index = {image_id: i for i, image_id in enumerate(ground_truth.image_ids)}
    with_masks = bool(results) and "segmentation" in results[0]
    return finite(
        Detections(
            np.array([index[r["image_id"]] for r in results], np.int64),
            np.array([r["category_id"] for r in results], np.int64),
            np.array([r["bbox"] for r in results], np.float64).reshape(-1, 4),
            np.array([r["score"] for r in results], np.float64),
            [r["segmentation"] for r in results] if with_masks else None,
            keypoints=keypoint_column([r.get("keypoints") for r in results]),
        )
    )


def finite(detections: Detections) -> Detections:
    """Return the detections whose numbers are all finite; count the others in a warning.

    Non-finite values would break the sort by score in every backend.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        size = detections.boxes[:, 2:].prod(1) + detections.boxes.sum(1)
    kept = np.isfinite(detections.scores) & np.isfinite(detections.boxes).all(1) & np.isfinite(size)
    if detections.keypoints is not None:
        kept &= np.isfinite(detections.keypoints).all((1, 2))
    if kept.all():
        return detections
    logger.warning(
        "%d of %d detections dropped: their score, box or keypoints are not finite",
        np.sum(~kept),
        len(kept),
    )
    return take(detections, np.flatnonzero(kept))


def take(detections: Detections, rows: np.ndarray) -> Detections:
    """Return the detections at the given rows (int64)."""
    masks = None if detections.masks is None else [detections.masks[i] for i in rows.tolist()]
    areas = None if detections.mask_areas is None else detections.mask_areas[rows]
    keypoints = None if detections.keypoints is None else detections.keypoints[rows]
    return Detections(
        detections.image[rows],
        detections.label[rows],
        detections.boxes[rows],
        detections.scores[rows],
        masks,
        areas,
        keypoints,
    )
