"""Shapes to Detectron2's annotations, for every reader: numbers checked, cut at the image's edge.

Coordinates are Detectron2's and COCO's: in pixels from the image's corner, so that the first
pixel's centre is (0.5, 0.5).
"""

import logging
import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from d2ext.data.formats.common import polygon_area

_ARC_POINTS = 64  # a polygon of 64 corners holds 99.8 % of its circle
_FARTHEST = 1e6  # pixels; what lies farther away is no coordinate
# A corner this far outside was set on the edge: it is moved there. Pixels.
_EDGE = 1.0
XYXY = 0  # BoxMode.XYXY_ABS, which would need torch


class LeftOut(Counter):
    """Counts what a reader leaves out, by reason, for one warning.

    Attributes:
        cut: how many objects reached beyond the image and were cut at its edge.
    """

    cut = 0

    def warn(self, logger: logging.Logger, source: str | Path) -> None:
        """Logs the counts where there are any."""
        if self.cut:
            logger.warning("%s: %d objects cut at the edge of their image", source, self.cut)
        if self:
            counts = ", ".join(f"{n} {reason}" for reason, n in self.items())
            logger.warning("%s: %d objects left out: %s", source, self.total(), counts)


def new_record(path: str, image_id: int, size: tuple[int, int]) -> dict:
    """A dataset dict without annotations; `size` is width and height in pixels."""
    width, height = size
    return {
        "file_name": path,
        "image_id": image_id,
        "height": height,
        "width": width,
        "annotations": [],
    }


def add_polygons(
    record: dict, category: int, polygons: Sequence[list[float]], left_out: LeftOut
) -> None:
    """Adds one object to a dataset dict, cut at the image's edge; counts one that has no area.

    Args:
        record: the dataset dict.
        category: index of the class.
        polygons: the object's parts, each [x0, y0, x1, y1, ...] in pixels.
        left_out: counts objects without area or outside of the image.

    Raises:
        ValueError: a coordinate is not finite or too large.
    """
    width, height = record["width"], record["height"]
    left, top, right, bottom = box = _bounds(polygons)
    area = sum(map(polygon_area, polygons))
    if not (-_FARTHEST < area + left + top and area < _FARTHEST**2):  # nor NaN, which is not less
        raise ValueError("a coordinate is not finite or too large")
    beyond = left < 0 or top < 0 or right > width or bottom > height
    parts = polygons
    if not area or beyond or len(polygons) > 1:
        parts = [p for p in polygons if polygon_area(p) > 0]
        if not parts:
            left_out["without area"] += 1
            return
        parts = _inside(parts, width, height, left_out)
        if not parts:
            left_out["outside of the image"] += 1
            return
        box, area = _bounds(parts), sum(map(polygon_area, parts))
    record["annotations"].append(
        {
            "bbox": box,
            "bbox_mode": XYXY,
            "category_id": category,
            "segmentation": parts,
            "area": area,
            "iscrowd": 0,
        }
    )


def add_box(
    record: dict, category: int, box: Sequence[float], left_out: LeftOut, iscrowd: int = 0
) -> None:
    """Adds a box (x0, y0, x1, y1 in pixels) without a mask, as `add_polygons` does."""
    x0, y0, x1, y1 = box
    if not (x1 > x0 and y1 > y0):
        left_out["without area"] += 1
        return
    box = [max(x0, 0.0), max(y0, 0.0), min(x1, record["width"]), min(y1, record["height"])]
    if not (box[2] > box[0] and box[3] > box[1]):
        left_out["outside of the image"] += 1
        return
    record["annotations"].append(
        {
            "bbox": [float(c) for c in box],
            "bbox_mode": XYXY,
            "category_id": category,
            "iscrowd": iscrowd,
        }
    )


def _bounds(polygons: Sequence[list[float]]) -> list[float]:
    """The box around polygons: left, top, right, bottom."""
    xs = [x for p in polygons for x in p[::2]] if len(polygons) > 1 else polygons[0][::2]
    ys = [y for p in polygons for y in p[1::2]] if len(polygons) > 1 else polygons[0][1::2]
    return [min(xs), min(ys), max(xs), max(ys)]


def _inside(
    polygons: Sequence[list[float]], width: int, height: int, left_out: LeftOut
) -> list[list[float]]:
    """What of polygons lies in the image; corners on its edge, or just beyond, are moved there."""
    left, top, right, bottom = _bounds(polygons)
    beyond = max(-left, -top, right - width, bottom - height)
    if beyond > _EDGE:
        left_out.cut += 1
        parts = [part for p in polygons for part in _cut(p, width, height)]
    elif beyond > 0:
        sides = (float(width), float(height))
        parts = [[min(max(c, 0.0), sides[i % 2]) for i, c in enumerate(p)] for p in polygons]
    else:
        return list(polygons)
    return [p for p in parts if polygon_area(p) > 0]


def _cut(polygon: list[float], width: int, height: int) -> list[list[float]]:
    """What of a polygon lies in the image."""
    import shapely  # a tenth of a second

    shape = shapely.Polygon(list(zip(polygon[::2], polygon[1::2], strict=True)))
    cut = shapely.clip_by_rect(shape, 0, 0, width, height)  # takes self-crossing ones, too
    parts = [p for p in shapely.get_parts(cut) if p.geom_type == "Polygon" and not p.is_empty]
    return [[float(c) for xy in p.exterior.coords[:-1] for c in xy] for p in parts]


def numbers(values: Sequence[float]) -> list[float]:
    """The coordinates or lengths as floats.

    Raises:
        TypeError: they are no list, or one is no number.
        ValueError: one is not finite or too large.
    """
    if not isinstance(values, list | tuple):
        raise TypeError("a list of numbers is missing")
    if not set(map(type, values)) <= {int, float}:
        raise TypeError("a coordinate is no number")
    if not all(-_FARTHEST < value < _FARTHEST for value in values):
        raise ValueError("a coordinate is not finite or too large")
    return list(map(float, values))


def arc(cx: float, cy: float, rx: float, ry: float, angle: float = 0) -> list[float]:
    """[x0, y0, ...] of an ellipse turned by `angle` (radians, clockwise on the screen)."""
    cos, sin = math.cos(angle), math.sin(angle)
    points = []
    for i in range(_ARC_POINTS):
        t = 2 * math.pi * i / _ARC_POINTS
        u, v = rx * math.cos(t), ry * math.sin(t)
        points += [cx + u * cos - v * sin, cy + u * sin + v * cos]
    return points


def rectangle(x0: float, y0: float, x1: float, y1: float) -> list[float]:
    """[x0, y0, ...] of the four corners."""
    return [x0, y0, x1, y0, x1, y1, x0, y1]
