"""Cut the annotations of a photo at the borders of a tile."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from d2ext.data.formats.geometry import clipped
from d2ext.data.formats.json_io import polygon_area
from d2ext.data.tiles.runs import decoded
from d2ext.errors import UserError

_XYXY, _XYWH = 0, 1  # BoxMode.XYXY_ABS and XYWH_ABS, which would need torch
_LEAST = 1e-6  # square pixels; smaller areas are rounding errors


class Cut(NamedTuple):
    """An annotation of a photo in a tile.

    Attributes:
        row: Index in the photo's annotations.
        annotation: The annotation in pixels of the tile.
        whole: Whether all of it is inside of the tile.
    """

    row: int
    annotation: dict
    whole: bool


class Photo:
    """A photo whose annotations are cut into tiles.

    Args:
        record: Detectron2 dataset dict with `height` and `width`; it is not modified.
        min_share: Smallest share of an annotation's area inside of a tile with which the tile keeps
            it. The area is that of the mask, or of the box without a mask.

    Attributes:
        record: The dataset dict.
        boxes: float64 (N, 4), x0 y0 x1 y1 of the annotations.

    Raises:
        UserError: Boxes are rotated.
    """

    def __init__(self, record: Mapping[str, Any], min_share: float):
        self.record = record
        self._min_share = min_share
        self._annotations: Sequence[dict] = record.get("annotations", ())
        boxes = [_corners(a, record["file_name"]) for a in self._annotations]
        self.boxes = np.array(boxes, float).reshape(-1, 4)

    def tile(self, tile: Sequence[int]) -> dict:
        """Return the dataset dict of a tile.

        `height` and `width` are those of the tile, `tile` is its box in the photo, and `photo_size`
        the height and width of the photo.

        Args:
            tile: x0, y0, x1, y1 in pixels of the photo.
        """
        record = self.record
        made = {**record, "tile": list(tile), "photo_size": [record["height"], record["width"]]}
        made["height"], made["width"] = tile[3] - tile[1], tile[2] - tile[0]
        if "annotations" in record:
            made["annotations"] = [cut.annotation for cut in self.cut(tile)]
        return made

    def cut(self, tile: Sequence[int]) -> list[Cut]:
        """Return the annotations that a tile keeps, in their order.

        Boxes, polygons and bitmaps are clipped; the box of a clipped mask encloses it. Keypoints
        outside of the tile become unlabeled.

        Args:
            tile: x0, y0, x1, y1 in pixels of the photo.
        """
        lows, highs = (
            np.maximum(self.boxes[:, :2], tile[:2]),
            np.minimum(self.boxes[:, 2:], tile[2:]),
        )
        found = []
        for row in np.flatnonzero((lows < highs).all(axis=1)).tolist():
            annotation, whole = self._cut(row, tile)
            if annotation is not None:
                found.append(Cut(row, annotation, whole))
        return found

    def _cut(self, row: int, tile: Sequence[int]) -> tuple[dict | None, bool]:
        """Return an annotation in a tile, or None, and whether it is whole."""
        annotation, box = self._annotations[row], self.boxes[row]
        x0, y0, x1, y1 = tile
        inside = [max(box[0], x0), max(box[1], y0), min(box[2], x1), min(box[3], y1)]
        area, whole_area = _box_area(inside), _box_area(box)
        made = dict(annotation)
        mask = annotation.get("segmentation")
        whole = area >= whole_area
        if mask:
            if isinstance(mask, dict):
                part, bounds, mask_area, total = _cut_rle(mask, tile, self.record["file_name"])
            else:
                part, bounds, mask_area, total = _cut_polygons(mask, tile)
            made["segmentation"] = part
            if total or isinstance(mask, dict):
                area, whole_area = mask_area, total
                whole = area >= whole_area
                if not whole:
                    inside = bounds
        if area < max(self._min_share * whole_area, _LEAST):
            return None, False
        left, top, right, bottom = (float(v) for v in inside)
        made["bbox"], made["bbox_mode"] = [left - x0, top - y0, right - x0, bottom - y0], _XYXY
        if "area" in annotation and not whole:
            made["area"] = float(area)
        if annotation.get("keypoints"):
            made["keypoints"] = _cut_keypoints(annotation["keypoints"], tile)
        return made, whole


def _corners(annotation: Mapping[str, Any], file_name: str) -> list[float]:
    x0, y0, x1, y1, *more = annotation["bbox"]
    if annotation["bbox_mode"] == _XYWH:
        x1, y1 = x0 + x1, y0 + y1
    elif annotation["bbox_mode"] != _XYXY or more:
        raise UserError(
            f"data.tiles: {file_name} has rotated boxes, which cannot be cut into tiles"
        )
    return [x0, y0, x1, y1]


def _box_area(box: Sequence[float]) -> float:
    return float((box[2] - box[0]) * (box[3] - box[1]))


def _cut_rle(
    rle: dict, tile: Sequence[int], file_name: str
) -> tuple[dict, Sequence[float], float, float]:
    """Return a bitmap in a tile, its box in the photo, its area, and that of the entire bitmap."""
    x0, y0, x1, y1 = tile
    try:
        (runs,) = decoded([rle])
    except ValueError as e:
        raise UserError(f"{file_name}: {e}; correct its annotations") from e
    part = runs.clipped(x0, y0, x1, y1)
    return part.moved(-x0, -y0).encoded(y1 - y0, x1 - x0), part.box, part.area, runs.area


def _cut_polygons(
    polygons: Sequence[Sequence[float]], tile: Sequence[int]
) -> tuple[list[list[float]], Sequence[float], float, float]:
    """Return polygons in a tile, their box in the photo, their area, and that of all of them.

    Polygons without an area (lines) have no parts; their points are moved into the tile.
    """
    import shapely

    x0, y0, x1, y1 = tile
    made, area, total = [], 0.0, 0.0
    for polygon in polygons:
        xs, ys = polygon[::2], polygon[1::2]
        size = polygon_area(polygon)
        if size <= _LEAST:
            continue
        total += size
        if min(xs) >= x0 and min(ys) >= y0 and max(xs) <= x1 and max(ys) <= y1:
            made.append(list(polygon))
            area += size
            continue
        parts = clipped(shapely.Polygon(np.reshape(polygon, (-1, 2))), tile)
        parts = [part for part in parts if polygon_area(part) > _LEAST]
        made += parts
        area += min(sum(map(polygon_area, parts)), size)
    if not total:
        low, high = tile[:2], tile[2:]
        made = [np.clip(np.reshape(p, (-1, 2)), low, high).ravel().tolist() for p in polygons]
    xs, ys = [x for p in made for x in p[::2]], [y for p in made for y in p[1::2]]
    bounds = [min(xs), min(ys), max(xs), max(ys)] if made else [0, 0, 0, 0]
    moved = [[float(c - (y0 if i % 2 else x0)) for i, c in enumerate(p)] for p in made]
    return moved, bounds, area, total


def _cut_keypoints(keypoints: Sequence[float], tile: Sequence[int]) -> list[float]:
    """Return keypoints [x, y, visibility, ...] in a tile; those outside are unlabeled."""
    points = np.array(keypoints, float).reshape(-1, 3)
    points[:, :2] -= tile[:2]
    size = np.subtract(tile[2:], tile[:2])
    outside = ((points[:, :2] < 0) | (points[:, :2] > size)).any(axis=1)
    points[outside | (points[:, 2] == 0)] = 0
    return points.ravel().tolist()
