"""Validate and convert image entries, boxes and masks of JSON formats."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from d2ext.data.formats.json_io import inside, polygon_area
from d2ext.data.formats.rle import compressed, rle_areas

# Exceptions that malformed values raise in a reader.
MALFORMED = (KeyError, TypeError, ValueError, OverflowError, AttributeError)
# Larger than any image; mask operators would iterate over every pixel up to a larger coordinate.
MAX_COORDINATE = 1_000_000
# Reasons to skip an object.
FLAT_BOX = "without a box of positive size"
FAR_BOX = "with a box that is not finite or too large"


def image_record(
    root: str | Path, name: object, image_id: object, size: Sequence[Any], where: str
) -> dict:
    """Return the dataset dict of an image, without annotations.

    Args:
        root: The image folder.
        name: File name of the image, relative to the folder.
        image_id: Id of the image, which must be an integer.
        size: Height and width in pixels.
        where: Location in the annotation file, for messages.

    Raises:
        UserError: The name leads out of the folder.
        MALFORMED: Another value is invalid.
    """
    if type(image_id) is not int:
        raise ValueError(f"the id {image_id!r} is not an integer")
    sides = {}
    for side, value in zip(("height", "width"), size, strict=True):
        if type(value) not in (int, float) or not 0 < value < MAX_COORDINATE or value != int(value):
            raise ValueError(f"the {side} {value!r} is not a positive integer")
        sides[side] = int(value)
    file_name = inside(root, name, where)
    return {"file_name": file_name, "image_id": image_id, **sides, "annotations": []}


def read_object(
    box: Sequence[float] | None, segmentation: Any, height: int, width: int
) -> tuple[dict, str]:
    """Return an object's box and mask for Detectron2, or the reason to skip the object.

    Args:
        box: Corners x0, y0, x1, y1 in pixels; None or an empty list uses the box of the mask.
        segmentation: Polygons, RLE (compressed or not), or an empty value.
        height: Height of the image in pixels.
        width: Width of the image in pixels.

    Returns:
        `bbox`, `bbox_mode` and, if there is a mask, `segmentation` (polygons of at least three
        corners, or compressed RLE with its counts as text), with an empty reason. For an object to
        skip, an empty dict and the reason.

    Raises:
        MALFORMED: A value does not conform to the format.
    """
    if box and (problem := _box_problem(box)):
        return {}, problem
    read: dict[str, Any] = {"bbox": box, "bbox_mode": 0}  # BoxMode.XYXY_ABS, which would need torch
    if isinstance(segmentation, dict):
        read["segmentation"] = _compressed(segmentation, height, width)
    elif segmentation:
        if not isinstance(segmentation, list):
            raise TypeError(f"the segmentation is {segmentation!r}")
        # Call _numbers on every polygon, even on one that is too short: it raises for text.
        valid = [(_numbers(p), len(p) >= 6 and len(p) % 2 == 0) for p in segmentation]
        polygons = [p for p, ok in zip(segmentation, valid, strict=True) if all(ok)]
        if not polygons:
            return {}, "without a valid polygon"
        read["segmentation"] = polygons
    if not box:
        x, y, w, h = mask_box(read["segmentation"]) if "segmentation" in read else (0, 0, 0, 0)
        read["bbox"] = [x, y, x + w, y + h]
        if problem := _box_problem(read["bbox"]):
            return {}, problem
    return read, ""


def read_keypoints(values: Any) -> list[float] | None:
    """Return an object's keypoints as Detectron2's `load_coco_json` does.

    COCO's keypoints are indices of pixels, so 0.5 is added to x and y: Detectron2's coordinates
    start at the corner of the first pixel.

    Args:
        values: x, y and visibility of each keypoint (0: not labeled, 1: hidden, 2: visible), in one
            list; None or empty for an object without keypoints.

    Returns:
        The list with shifted x and y; None for an object without keypoints.

    Raises:
        MALFORMED: The value is not such a list, or a number is not finite or too large.
    """
    if not values:
        return None
    if not isinstance(values, list) or len(values) % 3 or not _numbers(values):
        raise ValueError(f"the keypoints {values!r} are not x, y and visibility of each keypoint")
    made = [value + 0.5 for value in values]
    made[2::3] = values[2::3]
    return made


def _box_problem(box: Sequence[float]) -> str:
    """Return why an object with this box (x0, y0, x1, y1) is skipped; empty for a valid box."""
    x0, y0, x1, y1 = box
    if not _numbers((x0, y0, x1, y1)):
        return FAR_BOX
    return "" if x1 > x0 and y1 > y0 else FLAT_BOX


def mask_box(segmentation: list[list[float]] | dict) -> tuple[float, float, float, float]:
    """Return the box (x, y, width, height) of polygons or of a compressed RLE."""
    if isinstance(segmentation, dict):
        from pycocotools import mask

        return tuple(mask.toBbox(segmentation).tolist())
    xs, ys = ([c for polygon in segmentation for c in polygon[axis::2]] for axis in (0, 1))
    return min(xs), min(ys), max(xs) - min(xs), max(ys) - min(ys)


def mask_area(segmentation: Any, width: float, height: float) -> float:
    """Return the area in square pixels of polygons or a compressed RLE, or else of the box."""
    if isinstance(segmentation, dict):
        from pycocotools import mask

        return float(mask.area(segmentation))
    return sum(map(polygon_area, segmentation)) if segmentation else width * height


def _numbers(values: Sequence[float]) -> bool:
    """Return whether all are finite and below MAX_COORDINATE; raise TypeError for non-numbers."""
    if not set(map(type, values)) <= {int, float}:  # bools are rejected, too
        raise TypeError(f"{values!r} are not numbers")
    # `max` alone may miss NaN, which fails every comparison.
    return not values or (
        math.isfinite(math.fsum(values)) and max(map(abs, values)) < MAX_COORDINATE
    )


def _compressed(rle: dict, height: int, width: int) -> dict:
    size, counts = rle["size"], rle["counts"]
    if list(size) != [height, width]:
        raise ValueError(f"the RLE has the size {size}, but its image has {[height, width]}")
    if not isinstance(counts, str) and not set(map(type, counts)) <= {int}:
        raise ValueError("the counts of the RLE are not integers")
    # With invalid counts pycocotools reads and writes out of bounds.
    if np.isnan(rle_areas([counts], np.array([[height, width]]))[0]):
        raise ValueError(f"the RLE is damaged or does not cover {height} x {width} pixels")
    return compressed({"size": [height, width], "counts": counts})
