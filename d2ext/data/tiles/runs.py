"""Masks as vertical runs of pixels, whose memory grows with an object's width, not with the photo.

A run-length encoding (RLE) stores the same runs for an image of fixed size; runs can also be moved,
clipped and united.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pycocotools.mask

from d2ext.data.formats.rle import run_lengths


@dataclass(frozen=True, eq=False)
class Runs:
    """Vertical runs of pixels, ordered by column and row, which do not overlap.

    Attributes:
        column: int64 (R,), column of each run.
        top: int64 (R,), first row of each run.
        bottom: int64 (R,), row after the last one of each run.
    """

    column: np.ndarray
    top: np.ndarray
    bottom: np.ndarray

    @property
    def area(self) -> int:
        """Return the number of pixels."""
        return int((self.bottom - self.top).sum())

    @property
    def box(self) -> tuple[int, int, int, int]:
        """Return x0, y0, x1, y1 of the pixels; zeros if there are none."""
        if not len(self.column):
            return 0, 0, 0, 0
        right = int(self.column[-1]) + 1
        return int(self.column[0]), int(self.top.min()), right, int(self.bottom.max())

    def moved(self, x: int, y: int) -> "Runs":
        """Return the runs, moved by x columns and y rows."""
        return Runs(self.column + x, self.top + y, self.bottom + y)

    def clipped(self, x0: int, y0: int, x1: int, y1: int) -> "Runs":
        """Return the pixels inside of a box."""
        top, bottom = np.maximum(self.top, y0), np.minimum(self.bottom, y1)
        kept = (self.column >= x0) & (self.column < x1) & (top < bottom)
        return Runs(self.column[kept], top[kept], bottom[kept])

    def encoded(self, height: int, width: int) -> dict[str, Any]:
        """Return the compressed RLE of an image of this size, in which all runs lie.

        Args:
            height: Height of the image in pixels.
            width: Width of the image in pixels.
        """
        starts, ends = self.column * height + self.top, self.column * height + self.bottom
        # A run that reaches the last row continues in the next column.
        joined = starts[1:] == ends[:-1]
        starts = np.delete(starts, 1 + np.flatnonzero(joined))
        ends = np.delete(ends, np.flatnonzero(joined))
        edges = np.stack((starts, ends), axis=1).ravel()
        counts = np.diff(edges, prepend=0, append=height * width).tolist()
        if not counts[-1] and len(counts) > 1:
            counts.pop()
        rle = pycocotools.mask.frPyObjects({"size": [height, width], "counts": counts}, 0, 0)
        return {"size": [height, width], "counts": rle["counts"].decode("ascii")}


def decoded(rles: Sequence[dict[str, Any]]) -> list[Runs]:
    """Return the runs of RLEs, compressed or not.

    Raises:
        ValueError: The counts of an RLE are damaged.
    """
    counts = run_lengths([rle["counts"] for rle in rles])
    return [_runs(c, rle["size"][0]) for c, rle in zip(counts, rles, strict=True)]


def _runs(counts: np.ndarray, height: int) -> Runs:
    ends = np.cumsum(counts)
    start, end = ends[:-1:2], ends[1::2]  # every second run is one of the object
    start, end = start[start < end], end[start < end]
    first, last = start // height, (end - 1) // height
    columns = last - first + 1
    column = np.repeat(first - np.cumsum(columns) + columns, columns) + np.arange(columns.sum())
    top = np.maximum(np.repeat(start, columns) - column * height, 0)
    bottom = np.minimum(np.repeat(end, columns) - column * height, height)
    return Runs(column, top, bottom)


def united(masks: Sequence[Runs]) -> Runs:
    """Return the pixels that are in any of the masks."""
    column, top, bottom = (
        np.concatenate([getattr(mask, name) for mask in masks])
        for name in ("column", "top", "bottom")
    )
    if not len(column):
        return Runs(column, top, bottom)
    # A line of all columns; a gap after each of them keeps runs of different columns apart.
    height = int(bottom.max()) + 1
    starts, ends = column * height + top, column * height + bottom
    order = np.argsort(starts, kind="stable")
    starts, ends = starts[order], np.maximum.accumulate(ends[order])
    new = np.append(True, starts[1:] > ends[:-1])
    starts, ends = starts[new], ends[np.append(new[1:], True)]
    column = starts // height
    return Runs(column, starts - column * height, ends - column * height)
