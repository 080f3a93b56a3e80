"""Simplify the outlines of masks, so that they can be corrected by hand."""

from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
import pycocotools.mask as mask_util

from d2ext.data.formats.json_io import polygon_area
from d2ext.data.formats.rle import outlines
from d2ext.data.formats.writing import joined

_STEP = 0.25  # pixels; the search for the tolerance ends at this precision


def simplified(
    rle: dict[str, Any], one_outline: bool = False, least_iou: float = 0.95
) -> list[list[float]]:
    """Return a mask's outlines with few points.

    The mask is traced along the edges of its pixels, and cv2.approxPolyDP (Douglas-Peucker) removes
    points. A binary search finds the largest tolerance with which the polygons, rasterized by
    pycocotools, have an IoU of at least `least_iou` with the mask. Parts and holes that shrink to
    less than a triangle are dropped. Zero-area lines join a hole to the outline around it.

    Args:
        rle: Mask as a compressed RLE.
        one_outline: Join the parts of the mask as well, for formats without groups.
        least_iou: Least IoU with the mask, from 0 to 1.

    Returns:
        [x0, y0, x1, y1, ...] in pixels for each part of the mask; empty for an empty mask.
    """
    parts: list[list[np.ndarray]] = []
    for ring in outlines(rle):
        points = np.array(ring, np.float32).reshape(-1, 2)
        if _is_hole(points):
            parts[-1].append(points)
        else:
            parts.append([points])
    found = _approximated(parts, 0, one_outline)
    low, high = 0.0, float(max(mask_util.toBbox(rle)[2:]))
    while high - low > _STEP:
        tolerance = (low + high) / 2
        polygons = _approximated(parts, tolerance, one_outline)
        if polygons and _iou(polygons, rle) >= least_iou:
            found, low = polygons, tolerance
        else:
            high = tolerance
    return found


def _is_hole(points: np.ndarray) -> bool:
    """Return whether an outline runs in the direction of holes; see `outlines`."""
    x, y = points.astype(np.float64).T
    return float(x @ np.roll(y, -1) - y @ np.roll(x, -1)) < 0


def _approximated(
    parts: Sequence[Sequence[np.ndarray]], tolerance: float, one_outline: bool
) -> list[list[float]]:
    """Return a polygon for each part, or one for all, without the parts that vanish."""
    kept: list[list[list[float]]] = []
    for rings in parts:
        fewer = [cv2.approxPolyDP(ring, tolerance, closed=True) for ring in rings]
        if len(fewer[0]) > 2:
            kept.append([ring.ravel().tolist() for ring in fewer if len(ring) > 2])
    if one_outline:
        kept = [[ring for rings in kept for ring in rings]]
    polygons = [joined(rings) for rings in kept]
    return [polygon for polygon in polygons if polygon_area(polygon) > 0]


def _iou(polygons: list[list[float]], rle: dict[str, Any]) -> float:
    height, width = rle["size"]
    drawn = mask_util.merge(mask_util.frPyObjects(polygons, height, width))
    return float(mask_util.iou([drawn], [rle], [False])[0, 0])
