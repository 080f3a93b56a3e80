"""Convert shapes to Detectron2's annotations: check their numbers and clip them to the image.

Coordinates follow Detectron2 and COCO: pixels from the image's corner, so that the center of the
first pixel is (0.5, 0.5).
"""

import logging
import math
from collections import Counter
from collections.abc import Callable, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import msgspec

from d2ext.data.formats.coco_objects import MAX_COORDINATE
from d2ext.data.formats.json_io import polygon_area, truncate_repr
from d2ext.errors import UserError

_ARC_POINTS = 64  # a polygon of 64 corners covers 99.8 % of its circle
_LEAST = 1e-6  # square pixels; smaller areas are rounding errors of degenerate shapes
_EDGE = 1.0  # pixels; corners up to this far outside were meant to be on the edge, so move them
_MOST_CORNERS = 20_000
XYXY = 0  # BoxMode.XYXY_ABS, which would need torch


class LeftOut(Counter):
    """Count the objects that a reader skips, by reason, for a single warning.

    Attributes:
        cut: Number of objects that extended beyond the image and were clipped.
    """

    cut = 0

    def warn(self, logger: logging.Logger, source: str | Path) -> None:
        """Log the counts, if any."""
        if self.cut:
            logger.warning("%s: %d objects cut at the edge of their image", source, self.cut)
        if self:
            counts = ", ".join(f"{n} {reason}" for reason, n in self.items())
            logger.warning("%s: %d objects skipped: %s", source, self.total(), counts)


def new_record(path: str, image_id: int, size: tuple[int, int]) -> dict:
    """Return a dataset dict without annotations; `size` is (width, height) in pixels."""
    width, height = size
    return {
        "file_name": path,
        "image_id": image_id,
        "height": height,
        "width": width,
        "annotations": [],
    }


def shifted(
    outlines: Sequence[tuple[list[float], list[float]]], shift: float, where: Callable[[int], str]
) -> list[tuple[list[float], list[float], float]]:
    """Shift and measure outlines in one batch, which takes a third of the time.

    Args:
        outlines: For each outline, the xs and the ys of its corners in pixels, equally many.
        shift: Offset to add to each coordinate.
        where: Returns the location of an outline in the annotation file, for messages.

    Returns:
        For each outline, the shifted polygon [x0, y0, x1, y1, ...], its box (x0, y0, x1, y1) and
        its area in square pixels.

    Raises:
        UserError: A coordinate is not a number, not finite or too large, or an outline is empty.
    """
    if not outlines:
        return []
    import numpy as np

    try:
        # A fast type check.
        floats = msgspec.convert(outlines, list[tuple[list[float], list[float]]])
        x, y = (np.fromiter(chain.from_iterable(axis), float) for axis in zip(*floats, strict=True))
        x, y = x + shift, y + shift
        is_near = all((abs(c) < MAX_COORDINATE).all() for c in (x, y))
        if not is_near or not all(xs for xs, _ in floats):
            raise ValueError
    except ValueError:
        for i, outline in enumerate(outlines):
            try:
                if not all(map(numbers, outline)):
                    raise ValueError("it has no corners")
            except (TypeError, ValueError) as e:
                raise UserError(f"{where(i)} is malformed ({e}); correct it") from None
        raise  # unreachable: the loop finds the invalid outline
    ends = np.cumsum([len(xs) for xs, _ in floats])
    starts = np.concatenate(([0], ends[:-1]))
    following = np.arange(1, len(x) + 1)
    following[ends - 1] = starts
    areas = np.abs(np.add.reduceat(x * y[following] - y * x[following], starts)) / 2
    bounds = [f.reduceat(c, starts) for f in (np.minimum, np.maximum) for c in (x, y)]
    flat, boxes = np.stack((x, y), axis=1).ravel().tolist(), np.stack(bounds, axis=1).tolist()
    ranges = zip((2 * starts).tolist(), (2 * ends).tolist(), strict=True)
    cut = (flat[a:b] for a, b in ranges)
    return list(zip(cut, boxes, areas.tolist(), strict=True))


def add_polygon(
    record: dict,
    category: int,
    polygon: list[float],
    box: list[float],
    area: float,
    left_out: LeftOut,
) -> None:
    """Add an object with one polygon of known box and area, like `add_polygons`."""
    x0, y0, x1, y1 = box
    if area > _LEAST and x0 >= 0 and y0 >= 0 and x1 <= record["width"] and y1 <= record["height"]:
        _append(record, category, [polygon], box, area)
    else:
        add_polygons(record, category, [polygon], left_out)


def add_polygons(
    record: dict,
    category: int,
    polygons: Sequence[list[float]],
    left_out: LeftOut,
    **flags: float,
) -> None:
    """Add one object to a dataset dict, clipped to the image, or count it as skipped.

    Args:
        record: The dataset dict.
        category: Index of the class.
        polygons: The object's parts, each [x0, y0, x1, y1, ...] in pixels, finite.
        left_out: Counts objects without area or outside of the image.
        flags: More keys of the annotation, such as `iscrowd` or `score`.
    """
    parts = [p for p in polygons if polygon_area(p) > _LEAST]
    if not parts:
        left_out["without area"] += 1
        return
    parts = _inside(parts, record, left_out)
    if not parts:
        left_out["outside of the image"] += 1
        return
    _append(record, category, parts, _bounds(parts), sum(map(polygon_area, parts)), **flags)


def _append(
    record: dict,
    category: int,
    polygons: list[list[float]],
    box: list[float],
    area: float,
    **flags: float,
) -> None:
    if area > (box[2] - box[0]) * (box[3] - box[1]) * (1 + 1e-9):  # overlapping outlines
        import shapely

        shapes = [_shape(p, record) for p in polygons]
        area = shapely.union_all([shapely.make_valid(shape) for shape in shapes]).area
    record["annotations"].append(
        {
            "bbox": box,
            "bbox_mode": XYXY,
            "category_id": category,
            "segmentation": polygons,
            "area": area,
            "iscrowd": 0,
            **flags,
        }
    )


def add_mask(
    record: dict, category: int, pixels: Any, corner: tuple[int, int], left_out: LeftOut
) -> None:
    """Add an object with a mask, or count it as skipped if the mask is empty.

    Args:
        record: The dataset dict.
        category: Index of the class.
        pixels: Bool array (h, w), a part of the image.
        corner: Position (x, y) of the part's first pixel.
        left_out: Counts objects without area.

    Raises:
        ValueError: The part extends beyond the image.
    """
    import numpy as np
    from pycocotools import mask as coco_mask

    (x0, y0), (height, width) = corner, pixels.shape
    if x0 < 0 or y0 < 0 or x0 + width > record["width"] or y0 + height > record["height"]:
        raise ValueError("the mask extends beyond the image")
    if not pixels.any():
        left_out["without area"] += 1
        return
    full = np.zeros((record["height"], record["width"]), dtype=np.uint8, order="F")
    full[y0 : y0 + height, x0 : x0 + width] = pixels
    rle = coco_mask.encode(full)
    x, y, w, h = map(float, coco_mask.toBbox(rle))
    record["annotations"].append(
        {
            "bbox": [x, y, x + w, y + h],
            "bbox_mode": XYXY,
            "category_id": category,
            "segmentation": {"size": rle["size"], "counts": rle["counts"].decode("ascii")},
            "iscrowd": 0,
        }
    )


def add_box(
    record: dict, category: int, box: Sequence[float], left_out: LeftOut, **flags: float
) -> None:
    """Add a box (x0, y0, x1, y1 in pixels) without a mask, like `add_polygons`."""
    x0, y0, x1, y1 = box
    if not (x1 > x0 and y1 > y0):
        left_out["without area"] += 1
        return
    width, height = record["width"], record["height"]
    box = [max(x0, 0.0), max(y0, 0.0), min(x1, width), min(y1, height)]
    if not (box[2] > box[0] and box[3] > box[1]):
        left_out["outside of the image"] += 1
        return
    left_out.cut += max(-x0, -y0, x1 - width, y1 - height) > _EDGE
    record["annotations"].append(
        {
            "bbox": [float(c) for c in box],
            "bbox_mode": XYXY,
            "category_id": category,
            "iscrowd": 0,
            **flags,
        }
    )


def _bounds(polygons: Sequence[list[float]]) -> list[float]:
    """Return the bounding box of polygons: left, top, right, bottom."""
    xs, ys = [x for p in polygons for x in p[::2]], [y for p in polygons for y in p[1::2]]
    return [min(xs), min(ys), max(xs), max(ys)]


def _inside(polygons: Sequence[list[float]], record: dict, left_out: LeftOut) -> list[list[float]]:
    """Clip polygons to the image; corners just beyond its edge are moved to the edge."""
    width, height = record["width"], record["height"]
    left, top, right, bottom = _bounds(polygons)
    beyond = max(-left, -top, right - width, bottom - height)
    if beyond > _EDGE:
        left_out.cut += 1
        box = (0, 0, width, height)
        parts = [part for p in polygons for part in clipped(_shape(p, record), box)]
    elif beyond > 0:
        parts = [_clamped(p, float(width), float(height)) for p in polygons]
    else:
        return list(polygons)
    return [p for p in parts if polygon_area(p) > _LEAST]


def _clamped(polygon: list[float], width: float, height: float) -> list[float]:
    """Return the polygon with all corners moved into the image."""
    clamped = [0.0] * len(polygon)
    clamped[::2] = [0.0 if x < 0 else width if x > width else x for x in polygon[::2]]
    clamped[1::2] = [0.0 if y < 0 else height if y > height else y for y in polygon[1::2]]
    return clamped


def _shape(polygon: list[float], record: dict) -> Any:
    """Return the polygon as a shapely object.

    Shapely's time and memory grow with the square of the number of self-crossings.

    Raises:
        UserError: The polygon has more than 20,000 corners.
    """
    import shapely  # takes 0.1 s

    if len(polygon) > 2 * _MOST_CORNERS:
        raise UserError(
            f"{record['file_name']}: an outline has {len(polygon) // 2} corners and crosses itself"
            " or the image's edge; simplify it"
        )
    return shapely.Polygon(list(zip(polygon[::2], polygon[1::2], strict=True)))


def clipped(shape: Any, box: Sequence[float]) -> list[list[float]]:
    """Return the parts of a shapely polygon inside of a box x0, y0, x1, y1."""
    import shapely

    cut = shapely.clip_by_rect(shape, *box)  # handles self-crossing polygons, too
    parts = [p for p in shapely.get_parts(cut) if p.geom_type == "Polygon" and not p.is_empty]
    return [[float(c) for xy in p.exterior.coords[:-1] for c in xy] for p in parts]


def numbers(values: Any) -> list[float]:
    """Return coordinates or lengths as floats.

    Raises:
        TypeError: The argument is not a list or tuple, or an element is not a number.
        ValueError: An element is not finite or too large.
    """
    if not isinstance(values, list | tuple):
        raise TypeError("a list of numbers is missing")
    if not set(map(type, values)) <= {int, float}:
        raise TypeError("a coordinate is not a number")
    if not all(-MAX_COORDINATE < value < MAX_COORDINATE for value in values):
        raise ValueError("a coordinate is not finite or too large")
    return list(map(float, values))


def parsed(texts: Sequence[str]) -> list[float]:
    """Parse numbers from text; raise ValueError if one is invalid, or like `numbers`."""
    try:
        values = list(map(float, texts))
    except ValueError:
        raise ValueError(f"{truncate_repr(' '.join(texts))} are not numbers") from None
    return numbers(values)


def arc(cx: float, cy: float, rx: float, ry: float, angle: float = 0) -> list[float]:
    """Return [x0, y0, ...] of an ellipse rotated by `angle` (radians, clockwise on screen)."""
    cos, sin = math.cos(angle), math.sin(angle)
    points = []
    for i in range(_ARC_POINTS):
        t = 2 * math.pi * i / _ARC_POINTS
        u, v = rx * math.cos(t), ry * math.sin(t)
        points += [cx + u * cos - v * sin, cy + u * sin + v * cos]
    return points


def rectangle(x0: float, y0: float, x1: float, y1: float, angle: float = 0) -> list[float]:
    """Return [x0, y0, ...] of the corners of a box rotated about its center, as in `arc`."""
    corners = [x0, y0, x1, y0, x1, y1, x0, y1]
    if not angle:
        return corners
    cx, cy, cos, sin = (x0 + x1) / 2, (y0 + y1) / 2, math.cos(angle), math.sin(angle)
    points = []
    for x, y in zip(corners[::2], corners[1::2], strict=True):
        u, v = x - cx, y - cy
        points += [cx + u * cos - v * sin, cy + u * sin + v * cos]
    return points
