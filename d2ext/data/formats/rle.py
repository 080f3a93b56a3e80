"""Validate, measure and convert RLE masks (https://cocodataset.org/#format-data).

pycocotools reads out of bounds if the counts are invalid, so check them before passing them on.
"""

from collections.abc import Callable, Sequence
from itertools import chain
from typing import Any

import numpy as np


def rle_areas(counts: Sequence[str | list[int]], sizes: np.ndarray) -> np.ndarray:
    """Return the number of pixels in each mask.

    Args:
        counts: For each mask, alternating runs of background and object, as numbers or compressed.
        sizes: Height and width of each mask, (N, 2).

    Returns:
        Float array (N,); NaN for a mask whose runs are negative, damaged, or do not fill its size.
    """
    areas = np.full(len(counts), np.nan)
    for is_text in (True, False):
        rows = [i for i, c in enumerate(counts) if isinstance(c, str) is is_text and len(c)]
        if not rows:
            continue
        decode: Callable = _text_runs if is_text else _list_runs
        runs, owner, good = decode([counts[i] for i in rows])
        first = np.flatnonzero(np.diff(owner, prepend=-1))
        is_object = (np.arange(len(runs)) - first[owner]) % 2 == 1
        total = np.bincount(owner, runs, len(rows))
        inside = np.bincount(owner, runs * is_object, len(rows))
        good &= np.minimum.reduceat(runs, first) >= 0
        good &= (total == sizes[rows].prod(1)) & (sizes[rows] > 0).all(1)
        areas[rows] = np.where(good, inside, np.nan)
    return areas


def compressed(rle: dict[str, Any]) -> dict[str, Any]:
    """Compress the counts of a valid RLE to text, for JSON and pycocotools."""
    counts = rle["counts"]
    if isinstance(counts, list):
        from pycocotools import mask

        counts = mask.frPyObjects(rle, *rle["size"])["counts"]
    return {**rle, "counts": counts.decode("ascii") if isinstance(counts, bytes) else counts}


def sound_text(counts: Sequence[str]) -> bool:
    """Return whether all texts use the characters of compressed counts and end with a whole run.

    hotcoco assumes both; the check is fast enough for every mask.
    """
    text = "".join(counts)
    lengths = np.fromiter(map(len, counts), np.int64, len(counts))
    if not text.isascii() or not lengths.all():
        return False
    values = np.frombuffer(text.encode(), np.uint8)
    last = values[np.cumsum(lengths) - 1]
    return not len(values) or (
        values.min() >= 48 and values.max() < 48 + 64 and not ((last - 48) & 0x20).any()
    )


def run_lengths(counts: Sequence[str | bytes | list[int]]) -> list[np.ndarray]:
    """Return the runs of each mask, background first, as int64 arrays.

    Args:
        counts: For each mask, alternating runs of background and object, as numbers or compressed
            (to bytes by pycocotools).

    Raises:
        ValueError: The counts of a mask are damaged or negative.
    """
    counts = [c.decode("latin-1") if isinstance(c, bytes) else c for c in counts]
    found: list[np.ndarray] = [np.zeros(0, np.int64)] * len(counts)
    for is_text in (True, False):
        rows = [i for i, c in enumerate(counts) if isinstance(c, str) is is_text and len(c)]
        if not rows:
            continue
        decode: Callable = _text_runs if is_text else _list_runs
        runs, owner, good = decode([counts[i] for i in rows])
        if not good.all() or runs.min() < 0:
            raise ValueError("the counts of a mask are damaged")
        ends = np.searchsorted(owner, np.arange(1, len(rows)))
        for row, part in zip(rows, np.split(runs.astype(np.int64), ends), strict=True):
            found[row] = part
    return found


def completed(rle: dict[str, Any]) -> dict[str, Any]:
    """Pad a compressed RLE with background up to the size of its image.

    Raises:
        ValueError: The RLE is damaged, empty, or longer than the image.
    """
    height, width = rle["size"]
    runs, good = np.zeros(0), np.zeros(1, bool)
    if rle["counts"]:
        runs, _, good = _text_runs([rle["counts"]])
    rest = height * width - sum(runs)
    if not good.all() or min(runs) < 0 or rest < 0:
        raise ValueError("its counts are damaged or longer than the image")
    counts = [int(run) for run in runs]
    if len(counts) % 2:
        counts[-1] += int(rest)
    else:
        counts.append(int(rest))
    return compressed({"size": [height, width], "counts": counts})


def outlines(rle: dict[str, Any]) -> list[list[float]]:
    """Return the outlines of a compressed RLE along the edges of its pixels.

    Returns:
        [x0, y0, x1, y1, ...] of each part and each hole. Holes run in the opposite direction, so
        that the signed areas (`polygon_area` drops the sign) add up to the area of the mask.
    """
    import shapely
    from pycocotools import mask

    left, top, width, height = map(int, mask.toBbox(rle))
    pixels = mask.decode(rle)[top : top + height, left : left + width].astype(np.int8)
    steps = np.diff(np.pad(pixels, ((1, 1), (0, 0))), axis=0).T
    columns, starts = np.nonzero(steps == 1)
    ends = np.nonzero(steps == -1)[1]
    return rings(
        shapely.union_all(
            shapely.box(left + columns, top + starts, left + columns + 1, top + ends)
        ).simplify(0)
    )


def rings(shape: Any) -> list[list[float]]:
    """Return the outlines of shapely polygons, with holes in the opposite direction."""
    import shapely

    parts = [p for p in shapely.get_parts(shape) if p.geom_type == "Polygon" and not p.is_empty]
    oriented = (shapely.geometry.polygon.orient(part) for part in parts)
    return [
        [float(c) for point in ring.coords[:-1] for c in point]
        for part in oriented
        for ring in (part.exterior, *part.interiors)
    ]


def _list_runs(counts: list[list[int]]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    lengths = np.fromiter(map(len, counts), np.int64)
    runs = np.fromiter(chain.from_iterable(counts), float, lengths.sum())
    return runs, np.repeat(np.arange(len(counts)), lengths), np.ones(len(counts), bool)


def _text_runs(counts: list[str]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Decode compressed counts, which resemble LEB128.

    Each character holds five bits, lowest first, and a bit that says whether more follow. From the
    fourth run on, each run is stored as its difference from the run two before it.
    """
    lengths = np.fromiter(map(len, counts), np.int64)
    # Do not encode other characters than ASCII as "?", which is a digit here.
    text = "".join(c if c.isascii() else "\x7f" * len(c) for c in counts).encode()
    values = np.frombuffer(text, np.uint8).astype(np.int64) - 48
    of_char = np.repeat(np.arange(len(counts)), lengths)
    is_last = (values & 0x20) == 0
    text_end = np.cumsum(lengths) - 1
    good = is_last[text_end]
    bad = np.zeros(len(counts), bool)
    bad[of_char[(values < 0) | (values > 63)]] = True
    is_last[text_end] = True  # keep a damaged text from running into the next one
    start = np.flatnonzero(np.concatenate([[True], is_last[:-1]]))
    index = np.arange(len(values))
    group = np.cumsum(np.concatenate([[False], is_last[:-1]]))
    shift = 5 * (index - start[group])
    bad[of_char[shift > 40]] = True  # no run is that long
    parts = (values & 0x1F) << np.minimum(shift, 40)
    differences = np.add.reduceat(parts, start)
    end = np.flatnonzero(is_last)
    negative = (values[end] & 0x10) != 0
    differences -= negative * (1 << np.minimum(shift[end] + 5, 45))
    owner = of_char[start]
    first = np.flatnonzero(np.diff(owner, prepend=-1))
    position = np.arange(len(owner)) - first[owner]
    runs = differences.astype(float)
    # Sum the differences over the runs of equal parity within each mask, except the first run.
    for odd in (0, 1):
        rows = np.flatnonzero((position % 2 == odd) & (position > 0))
        if len(rows):
            sums = np.cumsum(differences[rows])
            begin = np.flatnonzero(np.diff(owner[rows], prepend=-1))
            before = np.concatenate([[0], sums])[begin]
            runs[rows] = sums - np.repeat(before, np.diff(np.append(begin, len(rows))))
    return runs, owner, good & ~bad
