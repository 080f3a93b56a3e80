"""Checks of boxes, masks and areas. Coordinates are pixels from the image's upper left corner."""

from collections.abc import Iterator

import numpy as np

from d2ext.data.validation.coco import locations
from d2ext.data.validation.coco.finding import Finding, finding
from d2ext.data.validation.coco.table import CocoTable

EDGE = 1.0  # pixels that a box may reach over its image's edge: tools round either way
_AREA = 0.1  # relative; COCO's own crowds differ by up to 10 % from their RLE


def boxes(c: CocoTable) -> Iterator[Finding]:
    """Boxes that are missing, empty, or not in their image."""
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
        # Corners in the place of sizes (XYXY for XYWH) are far off; rounding and half pixels not.
        limit = np.maximum(2, 0.1 * extent[:, 2:].max(1, initial=0))
        off = np.abs(c.box - extent).max(1, initial=0) > limit
        rows = np.flatnonzero(placed & off & ~np.isnan(extent[:, 0]))
        if len(rows):
            i = rows[0]
            shown = np.round(extent[i], 2).tolist()
            example = (
                f"{locations.annotation(c, i)}: box {c.box[i].tolist()}, its mask's is {shown}"
            )
            yield finding("box_not_of_mask", rows, "annotations", example)


def masks(c: CocoTable) -> Iterator[Finding]:
    """Polygons and RLE that are damaged."""
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
    """Areas that are missing or not the mask's.

    A mask's area is that of its polygons by the shoelace formula, together, as in COCO; the union
    of the polygons and the number of pixels are as good, so what lies between them is right.
    """
    good, m = c.good["annotations"], c.masks
    rows = np.flatnonzero(good & np.isnan(c.area))
    if len(rows):
        yield finding("area_missing", rows, "annotations", locations.annotation(c, rows[0]))
    with np.errstate(invalid="ignore", over="ignore"):
        w, h = m.extent[:, 2:].T
        rim = np.where(m.rle, 2 * np.sqrt(m.area), w + h)  # half the perimeter: pixels or not
        most = np.where(m.crossing > 0, np.fmax(w * h, m.area), m.area)
        wrong = (c.area > (1 + _AREA) * most + rim) | (c.area < (1 - _AREA) * m.largest - rim)
        wrong |= c.area < 0
    rows = np.flatnonzero(good & wrong)
    if len(rows):
        i = rows[0]
        example = f"{locations.annotation(c, i)}: {c.area[i]:g}, its mask has {m.area[i]:.6g}"
        yield finding("area_not_of_mask", rows, "annotations", example)


def _sizes(c: CocoTable, image: np.ndarray) -> np.ndarray:
    """(2, A) width and height of each annotation's image; of no meaning without one."""
    if not len(c.image_size):
        return np.zeros((2, len(image)), np.int64)
    return c.image_size[image].T
