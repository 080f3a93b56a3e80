"""An image's entry and an object's box and mask, as JSON formats hold them, checked and read."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from d2ext.data.formats.json_io import inside, polygon_area
from d2ext.data.formats.rle import compressed, rle_areas

# What values that are not as a format wants raise in its reader.
MALFORMED = (KeyError, TypeError, ValueError, OverflowError, AttributeError)
# No image is that large; the operators of masks would count through every pixel up to it.
MAX_COORDINATE = 1_000_000
# Why an object is skipped.
FLAT_BOX = "without a box of positive size"
FAR_BOX = "with a box that is not finite or too large"


def image_record(
    root: str | Path, name: object, image_id: object, size: Sequence[object], where: str
) -> dict:
    """Detectron2's dict of an image, still without annotations.

    Args:
        root: the image folder.
        name: of the file, relative to it.
        image_id: an integer.
        size: height and width in pixels.
        where: the place in the annotation file, for messages.

    Raises:
        UserError: the name leads out of the folder.
        MALFORMED: another value is wrong.
    """
    if type(image_id) is not int:
        raise ValueError(f"the id {image_id!r} is no integer")
    sides = {}
    for side, value in zip(("height", "width"), size, strict=True):
        if type(value) not in (int, float) or not 0 < value < MAX_COORDINATE or value != int(value):
            raise ValueError(f"the {side} {value!r} is no positive integer")
        sides[side] = int(value)
    file_name = inside(root, name, where)
    return {"file_name": file_name, "image_id": image_id, **sides, "annotations": []}


def read_object(
    box: Sequence[float] | None, segmentation: Any, height: int, width: int
) -> tuple[dict, str]:
    """Box and mask of an object for Detectron2, or the reason to leave it out.

    Args:
        box: x0, y0, x1, y1 in pixels; None or an empty list takes the box of the mask.
        segmentation: polygons, RLE (compressed or not), or nothing.
        height: of the image in pixels.
        width: likewise.

    Returns:
        `bbox`, `bbox_mode`, and `segmentation` where there is one: polygons of at least three
        corners, or compressed RLE with its counts as text. Else an empty dict and the reason.

    Raises:
        MALFORMED: a value is not what the format wants.
    """
    if box and (problem := _box_problem(box)):
        return {}, problem
    read = {"bbox": box, "bbox_mode": 0}  # BoxMode.XYXY_ABS, which would need torch
    if isinstance(segmentation, dict):
        read["segmentation"] = _compressed(segmentation, height, width)
    elif segmentation:
        if not isinstance(segmentation, list):
            raise TypeError(f"the segmentation is {segmentation!r}")
        # Each is checked: `and` would hide a text behind a polygon that is too short.
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


def _box_problem(box: Sequence[float]) -> str:
    """Return why an object with this box (x0, y0, x1, y1) is skipped; empty for a valid box."""
    x0, y0, x1, y1 = box
    if not _numbers((x0, y0, x1, y1)):
        return FAR_BOX
    return "" if x1 > x0 and y1 > y0 else FLAT_BOX


def mask_box(segmentation: list[list[float]] | dict) -> tuple[float, float, float, float]:
    """Return x, y, width and height of polygons or of a compressed RLE."""
    if isinstance(segmentation, dict):
        from pycocotools import mask

        return tuple(mask.toBbox(segmentation).tolist())
    xs, ys = ([c for polygon in segmentation for c in polygon[axis::2]] for axis in (0, 1))
    return min(xs), min(ys), max(xs) - min(xs), max(ys) - min(ys)


def mask_area(segmentation: Any, width: float, height: float) -> float:
    """Square pixels of polygons or compressed RLE; without either those of the box."""
    if isinstance(segmentation, dict):
        from pycocotools import mask

        return float(mask.area(segmentation))
    return sum(map(polygon_area, segmentation)) if segmentation else width * height


def _numbers(values: Sequence[float]) -> bool:
    """Return whether all are finite and below MAX_COORDINATE; TypeError for other values."""
    if not set(map(type, values)) <= {int, float}:  # a bool counts as no number
        raise TypeError(f"{values!r} are not numbers")
    # One pass of C code: NaN fails every comparison, yet min and max may skip it.
    return not values or (
        math.isfinite(math.fsum(values)) and max(map(abs, values)) < MAX_COORDINATE
    )


def _compressed(rle: dict, height: int, width: int) -> dict:
    size, counts = rle["size"], rle["counts"]
    if list(size) != [height, width]:
        raise ValueError(f"the RLE has the size {size}, its image {[height, width]}")
    if not isinstance(counts, str) and not set(map(type, counts)) <= {int}:
        raise ValueError("the counts of the RLE are no lengths of runs")
    # pycocotools reads and writes beyond its memory where they are wrong.
    if np.isnan(rle_areas([counts], np.array([[height, width]]))[0]):
        raise ValueError(f"the RLE is damaged, or does not cover {height} x {width} pixels")
    return compressed({"size": [height, width], "counts": counts})
