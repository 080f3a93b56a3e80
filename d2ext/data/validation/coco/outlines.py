"""Measure the masks of annotations: area, extent, and problems."""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from itertools import chain
from typing import Any

import numpy as np

from d2ext.data.formats.coco_objects import MAX_COORDINATE
from d2ext.data.formats.rle import rle_areas


@dataclass(frozen=True)
class Outlines:
    """Measurements of the masks of N annotations.

    Attributes:
        polygons: (N,) Number of polygons with an area.
        area: (N,) Area in square pixels, of the RLE or summed over the polygons, as in COCO; NaN
            without a mask.
        largest: (N,) Area of the largest polygon, or of the RLE.
        extent: (N, 4) x, y, width, height of the polygons; NaN without polygons.
        degenerate: (N,) Number of polygons with fewer than 3 points, an odd number of values or
            zero area.
        crossing: (N,) Number of polygons that cross or touch themselves.
        rle: (N,) Whether the mask is an RLE.
        rle_size: (N, 2) Width and height of the RLE; 0 without one.
        hash: (N,) Hash of the shape; equal masks have equal hashes.
        not_finite: (N,) Whether a polygon holds NaN or an infinity.
    """

    polygons: np.ndarray
    area: np.ndarray
    largest: np.ndarray
    extent: np.ndarray
    degenerate: np.ndarray
    crossing: np.ndarray
    rle: np.ndarray
    rle_size: np.ndarray
    hash: np.ndarray
    not_finite: np.ndarray


def join(parts: Sequence[Outlines]) -> Outlines:
    """Concatenate the measurements of several groups of annotations."""
    parts = [*parts, outlines([])]
    columns = {f.name: [getattr(p, f.name) for p in parts] for f in fields(Outlines)}
    return Outlines(**{name: np.concatenate(arrays) for name, arrays in columns.items()})


def outlines(masks: Sequence[Any]) -> Outlines:
    """Measure masks: lists of polygons [x0, y0, x1, ...], `Rle`, or None."""
    n = len(masks)
    out = Outlines(
        polygons=np.zeros(n, np.int64),
        area=np.full(n, np.nan),
        largest=np.full(n, np.nan),
        extent=np.full((n, 4), np.nan),
        degenerate=np.zeros(n, np.int64),
        crossing=np.zeros(n, np.int64),
        rle=np.zeros(n, bool),
        rle_size=np.zeros((n, 2), np.int64),
        hash=np.zeros(n),
        not_finite=np.zeros(n, bool),
    )
    polygons = [polygon for mask in masks if type(mask) is list for polygon in mask]
    count = np.fromiter((len(m) if type(m) is list else 0 for m in masks), np.int64, n)
    owner = np.repeat(np.arange(n), count)
    values = np.fromiter(map(len, polygons), np.int64, len(polygons))
    usable = (values >= 6) & (values % 2 == 0)
    if not usable.all():
        np.add.at(out.degenerate, owner[~usable], 1)
        polygons = [polygons[i] for i in np.flatnonzero(usable)]
        owner = owner[usable]
    encoded = [i for i, m in enumerate(masks) if m is not None and type(m) is not list]
    with np.errstate(all="ignore"):  # huge numbers overflow to infinity
        if polygons:
            _polygons(polygons, owner, out)
        if encoded:
            _encoded([masks[i] for i in encoded], np.array(encoded), out)
    return out


def _encoded(masks: Sequence[Any], rows: np.ndarray, out: Outlines) -> None:
    sizes = np.array([[min(max(s, 0), MAX_COORDINATE) for s in m.size] for m in masks], np.int64)
    out.rle[rows] = True
    out.rle_size[rows] = sizes[:, ::-1]
    counts = [m.counts for m in masks]
    out.area[rows] = out.largest[rows] = rle_areas(counts, sizes)
    out.hash[rows] = [hash(c if isinstance(c, str) else tuple(c)) % 2**52 for c in counts]


def _polygons(polygons: list[list[float]], owner: np.ndarray, out: Outlines) -> None:
    n = len(out.area)
    corners = np.fromiter(map(len, polygons), np.int64, len(polygons)) // 2
    flat = np.fromiter(chain.from_iterable(polygons), float, 2 * corners.sum())
    ends = np.cumsum(corners)
    starts = ends - corners
    x, y = np.ascontiguousarray(flat[::2]), np.ascontiguousarray(flat[1::2])
    middle_x, middle_y = np.add.reduceat(x, starts) / corners, np.add.reduceat(y, starts) / corners
    # Relative to the center, because products of large coordinates lose digits.
    u, v = x - np.repeat(middle_x, corners), y - np.repeat(middle_y, corners)
    next_u, next_v = _following(u, starts, ends), _following(v, starts, ends)
    turn = u * next_v - next_u * v
    areas = np.abs(np.add.reduceat(turn, starts)) / 2
    finite = np.isfinite(areas)
    if not finite.all():
        finite = np.logical_and.reduceat(np.isfinite(x) & np.isfinite(y), starts)
        out.not_finite[owner[~finite]] = True
    solid = finite & (areas > 0)
    np.add.at(out.degenerate, owner[~solid], 1)
    np.add.at(out.polygons, owner[solid], 1)
    # Equal polygons have equal hashes; different polygons collide only by chance.
    np.add.at(out.hash, owner[finite], (areas + 0.7549 * middle_x + 0.5698 * middle_y)[finite])
    rows = np.unique(owner[solid])
    out.area[rows] = np.bincount(owner[solid], areas[solid], n)[rows]
    out.largest[rows] = 0
    np.maximum.at(out.largest, owner[solid], areas[solid])
    for i, side in enumerate((x, y)):
        low, high = np.full(n, np.inf), np.full(n, -np.inf)
        np.minimum.at(low, owner[solid], np.minimum.reduceat(side, starts)[solid])
        np.maximum.at(high, owner[solid], np.maximum.reduceat(side, starts)[solid])
        out.extent[rows, i], out.extent[rows, 2 + i] = low[rows], (high - low)[rows]
    # A polygon that turns only one way around its center, and only once (it rises through the
    # center's level once), cannot cross itself. shapely checks the others.
    one_way = (np.minimum.reduceat(turn, starts) > 0) | (np.maximum.reduceat(turn, starts) < 0)
    once = np.add.reduceat((v < 0) & (next_v >= 0), starts, dtype=np.int64) == 1
    unsure = solid & ~(one_way & once)
    if unsure.any():
        import shapely  # takes 10 ms, which most data does not need

        wanted = np.repeat(unsure, corners)
        rings = shapely.linearrings(
            x[wanted], y[wanted], indices=np.repeat(np.arange(unsure.sum()), corners[unsure])
        )
        np.add.at(out.crossing, owner[unsure][~shapely.is_simple(rings)], 1)


def _following(values: np.ndarray, starts: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """Rotate each polygon's values by one: from the second to the last, then the first."""
    following = np.empty_like(values)
    following[:-1] = values[1:]
    following[ends - 1] = values[starts]
    return following
