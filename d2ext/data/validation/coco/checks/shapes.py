"""Checks of boxes, masks and areas; coordinates are pixels from the image's top left corner."""

from collections.abc import Iterator

import numpy as np

from d2ext.data.validation.coco import locations
from d2ext.data.validation.coco.finding import Finding, finding
from d2ext.data.validation.coco.table import CocoTable

EDGE = 1.0  # pixels by which a box may exceed its image, because tools round either way
_AREA = 0.1  # relative; the crowds in COCO differ by up to 10 % from their RLE


def boxes(c: CocoTable) -> Iterator[Finding]:
    """Find boxes that are missing, empty, not in their image, or far from their mask's box."""
    good = c.good["annotations"]
    x, y, w, h = c.box.T
    with np.errstate(invalid="ignore", over="ignore"):
        sized = (w > 0) & (h > 0)
        rows = np.flatnonzero(good & ~sized)
        if len(rows):
            box = c.box[rows[0]].tolist() if np.isfinite(c.box[rows[0]]).all() else "none"
            example = f"{locations.annotation(c, rows[0])}: box {box}"
            yield finding("box_none", rows, "annotations", example)
        image = locations.image_rows(c)
        width, height = _sizes(c, image)
        placed = good & sized & (image >= 0)
        outside = placed & ((x >= width) | (y >= height) | (x + w <= 0) | (y + h <= 0))
        over = (x < -EDGE) | (y < -EDGE) | (x + w > width + EDGE) | (y + h > height + EDGE)
        for code, rows in (
            ("box_outside", np.flatnonzero(outside)),
            ("box_over_edge", np.flatnonzero(placed & over & ~outside)),
        ):
            if len(rows):
                i = rows[0]
                example = (
                    f"{locations.annotation(c, i)}: box {c.box[i].tolist()} in an image of"
                    f" {width[i]} x {height[i]}"
                )
                yield finding(code, rows, "annotations", example)
        extent = c.masks.extent
        # Corners given as sizes (XYXY for XYWH) are far off; rounding and half pixels are not.
        limit = np.maximum(2, 0.1 * extent[:, 2:].max(1, initial=0))
        off = np.abs(c.box - extent).max(1, initial=0) > limit
        rows = np.flatnonzero(placed & off & ~np.isnan(extent[:, 0]))
        if len(rows):
            i = rows[0]
            shown = np.round(extent[i], 2).tolist()
            example = (
                f"{locations.annotation(c, i)}: box {c.box[i].tolist()}, but its mask's is {shown}"
            )
            yield finding("box_not_of_mask", rows, "annotations", example)


def masks(c: CocoTable) -> Iterator[Finding]:
    """Find missing masks, invalid polygons, and RLE that are invalid or of the wrong size."""
    good, m = c.good["annotations"], c.masks
    objects = good & ~c.crowd
    none = objects & ~m.rle & (m.polygons == 0) & (m.degenerate == 0)
    for code, what in (
        ("mask_none", none & (objects & (m.area > 0)).any()),
        ("polygon_degenerate", m.degenerate),
        ("polygon_crossing", m.crossing),
        ("rle_invalid", m.rle & np.isnan(m.area)),
    ):
        rows = np.flatnonzero(good & (what > 0))
        if len(rows):
            yield finding(code, rows, "annotations", locations.annotation(c, rows[0]))
    image = locations.image_rows(c)
    size = c.image_size[image] if len(c.image_size) else np.zeros((len(image), 2), int)
    rows = np.flatnonzero(good & m.rle & (image >= 0) & (size != m.rle_size).any(1))
    if len(rows):
        i = rows[0]
        example = (
            f"{locations.annotation(c, i)}: {m.rle_size[i, 0]} x {m.rle_size[i, 1]} in an image of"
            f" {size[i, 0]} x {size[i, 1]}"
        )
        yield finding("rle_size", rows, "annotations", example)


def areas(c: CocoTable) -> Iterator[Finding]:
    """Find areas that are missing or differ from the mask's.

    The area of a mask is the sum of its polygons' areas by the shoelace formula, as in COCO. The
    area of the polygons' union and the number of pixels are valid, too, so any value in the range
    of the three is accepted.
    """
    good, m = c.good["annotations"], c.masks
    rows = np.flatnonzero(good & np.isnan(c.area))
    if len(rows):
        yield finding("area_missing", rows, "annotations", locations.annotation(c, rows[0]))
    with np.errstate(invalid="ignore", over="ignore"):
        w, h = m.extent[:, 2:].T
        # Half the perimeter: by this much the number of pixels may differ from the polygon's area.
        rim = np.where(m.rle, 2 * np.sqrt(m.area), w + h)
        most = np.where(m.crossing > 0, np.fmax(w * h, m.area), m.area)
        wrong = (c.area > (1 + _AREA) * most + rim) | (c.area < (1 - _AREA) * m.largest - rim)
        wrong |= c.area < 0
    rows = np.flatnonzero(good & wrong)
    if len(rows):
        i = rows[0]
        example = f"{locations.annotation(c, i)}: {c.area[i]:g}, but its mask has {m.area[i]:.6g}"
        yield finding("area_not_of_mask", rows, "annotations", example)


def _sizes(c: CocoTable, image: np.ndarray) -> np.ndarray:
    """Return (2, A) width and height of each annotation's image; arbitrary without an image."""
    if not len(c.image_size):
        return np.zeros((2, len(image)), np.int64)
    return c.image_size[image].T
