"""Fix images whose size differs from the file's, and move their shapes with the pixels."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np

from d2ext.data.formats.rle import compressed
from d2ext.data.validation.coco import json_numbers, locations
from d2ext.data.validation.coco.checks.image_files import Photo
from d2ext.data.validation.coco.checks.shapes import EDGE
from d2ext.data.validation.coco.finding import Finding
from d2ext.data.validation.coco.fixes.changes import MutableCoco
from d2ext.data.validation.coco.table import CocoTable

_MOST_PIXELS = 2**28  # of a mask that is moved; Pillow does not open larger images
Size = tuple[int, int]  # width and height


@dataclass(frozen=True)
class Move:
    """Transform from the pixels that were annotated to those that Detectron2 reads.

    Attributes:
        old: Size of the image that was annotated.
        new: Size of the image that Detectron2 reads.
        orientation: EXIF orientation (TIFF 6.0, tag 274) that Detectron2 applies and the annotation
            tool did not; 5 to 8 swap the axes. 1 if both saw the same orientation.
    """

    old: Size
    new: Size
    orientation: int = 1

    @property
    def scale(self) -> tuple[float, float]:
        """Return the number of new pixels per old pixel, along the new x and y."""
        old = self.old[::-1] if self._swapped else self.old
        return self.new[0] / old[0], self.new[1] / old[1]

    @property
    def how(self) -> str:
        """Describe the transform for the log of changes."""
        turned = f"rotated by EXIF orientation {self.orientation}, " if self.orientation > 1 else ""
        return f"{turned}scaled by {self.scale[0]:.4g} and {self.scale[1]:.4g}"

    @property
    def is_too_large(self) -> bool:
        """Return whether a mask of the old size would take too much memory."""
        return self.old[0] * self.old[1] > _MOST_PIXELS

    @property
    def _swapped(self) -> bool:
        return self.orientation >= 5

    @property
    def _mirrored(self) -> tuple[bool, bool]:
        """Return whether the image is mirrored along the new x and y."""
        return self.orientation in (2, 3, 6, 7), self.orientation in (3, 4, 7, 8)

    def points(self, flat: Sequence[float]) -> list[float]:
        """Move [x0, y0, x1, y1, ...]."""
        sides = (flat[1::2], flat[::2]) if self._swapped else (flat[::2], flat[1::2])
        moved = []
        for values, scale, mirrored, length in zip(
            sides, self.scale, self._mirrored, self.new, strict=True
        ):
            moved.append([length - v * scale if mirrored else v * scale for v in values])
        return list(chain.from_iterable(zip(*moved, strict=True)))

    def box(self, box: Sequence[float]) -> list[float]:
        """Move x, y, width, height."""
        x, y, w, h = box
        x0, y0, x1, y1 = self.points([x, y, x + w, y + h])
        return [min(x0, x1), min(y0, y1), abs(x1 - x0), abs(y1 - y0)]

    def rle(self, rle: dict) -> dict:
        """Move a valid mask; each new pixel takes the value at its center."""
        from pycocotools import mask

        pixels = mask.decode(compressed(rle))
        pixels = pixels.T if self._swapped else pixels
        pixels = pixels[:: -1 if self._mirrored[1] else 1, :: -1 if self._mirrored[0] else 1]
        rows, columns = (
            ((np.arange(length) + 0.5) / scale).astype(int)
            for length, scale in zip(self.new[::-1], self.scale[::-1], strict=True)
        )
        return compressed(mask.encode(np.asfortranarray(pixels[np.ix_(rows, columns)])))

    def keypoints(self, flat: Sequence[float]) -> list[float]:
        """Move [x0, y0, v0, ...]; unlabeled keypoints (v is 0) stay at (0, 0)."""
        points = [p for i in range(0, len(flat), 3) for p in flat[i : i + 2]]
        moved, seen = self.points(points), flat[2::3]
        pairs = (moved[i : i + 2] for i in range(0, len(moved), 2))
        made = ([*(pair if v else (0, 0)), v] for pair, v in zip(pairs, seen, strict=True))
        return list(chain.from_iterable(made))

    def annotation(self, entry: dict, sound: bool) -> dict:
        """Return an annotation's changed values; an RLE is moved only if it is `sound`."""
        made: dict[str, Any] = {}
        if (box := entry.get("bbox")) and min(box[2:]) > 0:
            made["bbox"] = self.box(box)
        shape = entry.get("segmentation")
        if isinstance(shape, dict):
            made |= {"segmentation": self.rle(shape)} if sound else {}
        elif shape:  # polygons with an odd number of values are removed later
            made["segmentation"] = [p if len(p) % 2 else self.points(p) for p in shape]
        if entry.get("area") is not None:
            made["area"] = entry["area"] * self.scale[0] * self.scale[1]
        points = json_numbers.numbers(entry.get("keypoints"))
        if points and len(points) % 3 == 0:
            made["keypoints"] = self.keypoints(points)
        return made


def annotated_size(
    c: CocoTable, rows: np.ndarray, photo: Photo, sides: Sequence[int | None]
) -> Size | None:
    """Return the size at which an image without a stated size was annotated.

    This is the size of the photo, with or without the EXIF orientation applied.

    Args:
        c: Table of the file.
        rows: Rows of the image's annotations.
        photo: Photo of the image.
        sides: Stated width and height; None for unknown ones.

    Returns:
        Width and height; None if the EXIF orientation rotates the photo, and neither the sides nor
        the annotations show which of the two sizes was annotated.
    """
    sizes = [size for size in dict.fromkeys((photo.size, photo.stored)) if size]
    known = [s for s in sizes if all(a in (None, b) for a, b in zip(sides, s, strict=True))]
    sizes = known or sizes
    if len(sizes) == 1 or not len(rows):
        return sizes[0]
    fitting = [s for s in sizes if _fit(c, rows, s).all()]
    return fitting[0] if len(fitting) == 1 else None


def _image_size(m: MutableCoco, f: Finding) -> None:
    c, rows_of = m.columns, locations.by_image(m.columns)
    for row in f.rows:
        entry = m.get("images", row)
        photo = m.files.photo(entry["file_name"]) if entry else None
        if not photo or not photo.size:
            continue
        rows = rows_of(entry["id"])
        old, new = (entry["width"], entry["height"]), photo.size
        what = f"{old[0]} x {old[1]} -> {new[0]} x {new[1]}"
        in_old, in_new = _fit(c, rows, old), _fit(c, rows, new)
        placed = in_old | in_new  # the others are wrong in both
        move, sound = _move(old, new, photo), c.masks.rle & (c.masks.rle_size == old).all(1)
        sound &= ~np.isnan(c.masks.area)
        if not len(rows):
            move = None
        elif in_new[placed].all() and not in_old[placed].all():  # only the entry is wrong ...
            if photo.orientation != 1 and _fit(c, rows, photo.stored)[placed].all():
                continue  # ... unless the shapes were drawn on the image as stored
            move = None
        elif not placed.any() or not in_old[placed].all() or not move:
            continue  # the error stays, and nothing is written
        elif sound[rows].any() and move.is_too_large:
            continue
        m.set("images", row, what, width=new[0], height=new[1])
        if move is None:
            continue  # the shapes stay
        for i in rows.tolist():
            made = move.annotation(m.get("annotations", i), bool(sound[i]))
            m.set("annotations", i, f"moved with {m.where('images', row)}, {move.how}", **made)


def _fit(c: CocoTable, rows: np.ndarray, size: Size) -> np.ndarray:
    """Return for each annotation whether it lies entirely in an image of the given size."""
    fit = ~c.masks.rle[rows] | (c.masks.rle_size[rows] == size).all(1)
    for box in (c.box[rows], c.masks.extent[rows]):  # NaN (missing) never counts as outside
        with np.errstate(over="ignore", invalid="ignore"):
            outside = (box[:, :2] < -EDGE) | (box[:, :2] + box[:, 2:] > np.add(size, EDGE))
        fit &= ~outside.any(1)
    return fit


def _move(old: Size, new: Size, photo: Photo) -> Move | None:
    """Return the transform from `old` to `new`, the photo's size; None if they are ambiguous."""
    is_turned = photo.orientation != 1
    if is_turned and old == photo.stored:
        return Move(old, new, photo.orientation)
    upright, lying = _alike(old, new), is_turned and _alike(old, photo.stored)
    if upright == lying:
        return None
    return Move(old, new, photo.orientation if lying else 1)


def _alike(a: Size, b: Size) -> bool:
    """Return whether two sizes have the same proportions, up to one pixel of rounding.

    One pixel is too much for thumbnails, so the scales of the two sides may differ by at most 2 %.
    """
    one, other = a[0] * b[1], a[1] * b[0]
    return abs(one - other) < min(max(*a, *b), 0.02 * max(one, other) + 1)


REMEDIES = {"image_size": _image_size}
