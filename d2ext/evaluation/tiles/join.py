"""Join the detections of a photo's tiles, so that no object is counted twice and none is split.

Neighboring tiles see the same pixels in the region that they share. Detections of one class in two
tiles are compared in this region only, where those of an object agree, no matter how much of the
object each tile contains:

1. Two detections with an IoU of at least 0.5 in the region are the same object, if their scores are
   alike: the lower one is at least half of the higher one. A detection has at most one counterpart
   in every other tile. The best pairs are joined first, by the IoU times the lower score.
2. A detection may be a part of an object: the remnant at a border, or one of several parts that a
   tile sees. It joins the detection of the other tile that contains at least half of it in the
   region, if that has at least its score, a border cuts one of both, and one of both has no
   counterpart in the other's tile. It is a part of one object only.

Objects that extend over more tiles are joined in a chain. The result has the highest score of its
detections. If a tile sees the object whole, and its detection covers at least 0.7 of all of them,
its box and mask are used; otherwise those of all detections with alike scores are united.

SAHI's greedy non-maximum merging (2022, https://doi.org/10.1109/ICIP46576.2022.9897990) compares
whole detections by their intersection over the smaller area. This also joins neighboring objects of
a class, and does not join parts of objects that are much larger than the overlap.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pycocotools.mask

from d2ext.data.tiles.runs import Runs, decoded, united
from d2ext.evaluation.instances import Detections, take

_SAME = 0.5  # IoU in the shared region
_INSIDE = 0.5  # share of the smaller detection in the shared region
_ALIKE = 0.5  # ratio of two scores
_WHOLE = 0.7  # share of all detections' area that one of the entire object covers
_BORDER = 0.01  # share of a tile's side; a box that ends this close to a border is cut there


class OpenPhotos:
    """Photos of an evaluation whose tiles arrive one by one."""

    def __init__(self) -> None:
        self._open: dict[int, JoinedTiles] = {}

    def add(
        self, sample: Mapping[str, Any], detections: Detections, place: int
    ) -> Detections | None:
        """Add the detections of a tile; return those of its photo if it is the last one.

        Args:
            sample: Sample of the tile, with the keys of `Tiles`.
            detections: Its detections, in pixels of the tile.
            place: Index of the photo.
        """
        photo = self._open.setdefault(place, JoinedTiles(*sample["photo_size"]))
        photo.add(sample["tile"], detections)
        if len(photo) < sample["photo_tiles"]:
            return None
        return self._open.pop(place).joined()


class JoinedTiles:
    """Detections of a photo's tiles, which are added one by one.

    Masks are kept as runs, so that memory does not grow with the size of the photo.

    Args:
        height: Height of the photo in pixels.
        width: Width of the photo in pixels.
    """

    def __init__(self, height: int, width: int):
        self._size = height, width
        self._tiles: list[Sequence[int]] = []
        self._found: list[Detections] = []
        self._masks: list[list[Runs] | None] = []

    def __len__(self) -> int:
        """Return the number of tiles."""
        return len(self._tiles)

    def add(self, tile: Sequence[int], detections: Detections) -> None:
        """Add the detections of a tile.

        Args:
            tile: x0, y0, x1, y1 in pixels of the photo.
            detections: Detections in pixels of the tile, all with the same image index.
        """
        x, y = tile[:2]
        masks = None
        if detections.masks is not None:
            masks = [runs.moved(x, y) for runs in decoded(detections.masks)]
        keypoints = detections.keypoints
        self._tiles.append(tile)
        self._masks.append(masks)
        self._found.append(
            Detections(
                detections.image,
                detections.label,
                detections.boxes + [x, y, 0, 0],
                detections.scores,
                None,
                keypoints=None if keypoints is None else keypoints + [x, y, 0],
            )
        )

    def joined(self) -> Detections:
        """Return the detections in pixels of the photo.

        Each keypoint is the one with the highest score.
        """
        parts = self._parts()
        objects = _groups(parts)
        found = parts.detections
        made = take(found, np.array([rows[0] for rows in objects], np.int64))
        boxes, scores = made.boxes.copy(), made.scores.copy()
        keypoints = None if made.keypoints is None else made.keypoints.copy()
        masks: list[dict] | None = None if parts.masks is None else []
        for i, rows in enumerate(objects):
            scores[i] = found.scores[rows].max()
            chosen = _chosen(rows, parts)
            if chosen != [rows[0]]:
                low, high = _bounds(parts.corners[chosen])
                boxes[i] = [*low, *(high - low)]
            if masks is not None and parts.masks is not None:
                runs = united([parts.masks[row] for row in chosen])
                masks.append(runs.encoded(*self._size))
            if keypoints is not None and found.keypoints is not None:
                points = found.keypoints[rows]
                keypoints[i] = points[points[..., 2].argmax(axis=0), np.arange(points.shape[1])]
        return Detections(made.image, made.label, boxes, scores, masks, keypoints=keypoints)

    def _parts(self) -> "_Parts":
        """Return the detections of all tiles."""
        filled = [i for i, found in enumerate(self._found) if len(found.scores)] or [0]
        found = [self._found[i] for i in filled]
        image, label, boxes, scores = (
            np.concatenate([getattr(part, name) for part in found])
            for name in ("image", "label", "boxes", "scores")
        )
        masks = keypoints = None
        if self._masks[filled[0]] is not None:
            masks = [runs for i in filled for runs in self._masks[i] or ()]
        if found[0].keypoints is not None:
            keypoints = np.concatenate([f.keypoints for f in found if f.keypoints is not None])
        detections = Detections(image, label, boxes, scores, None, keypoints=keypoints)
        tiles = np.array(self._tiles, float)
        of_tile = np.repeat(np.arange(len(self)), [len(found.scores) for found in self._found])
        corners = np.hstack([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]])
        cut = _cut(corners, tiles[of_tile], *self._size)
        return _Parts(detections, masks, corners, tiles, of_tile, cut)


@dataclass(frozen=True)
class _Parts:
    """Detections of all tiles of a photo, in pixels of the photo.

    Attributes:
        detections: N detections, without masks.
        masks: N masks; None for boxes only.
        corners: float64 (N, 4), boxes as x0 y0 x1 y1.
        tiles: float64 (T, 4), x0 y0 x1 y1 of the tiles.
        of_tile: int64 (N,), index of the tile of each detection.
        cut: bool (N,), whether a border between tiles cuts the detection.
    """

    detections: Detections
    masks: list[Runs] | None
    corners: np.ndarray
    tiles: np.ndarray
    of_tile: np.ndarray
    cut: np.ndarray


def _cut(corners: np.ndarray, tiles: np.ndarray, height: int, width: int) -> np.ndarray:
    """Return which boxes end at a border of their tile that is not one of the photo, bool (N,).

    Args:
        corners: Boxes (N, 4), x0 y0 x1 y1.
        tiles: Tile of each box (N, 4).
        height: Height of the photo.
        width: Width of the photo.
    """
    margin = _BORDER * (tiles[:, 2:] - tiles[:, :2])
    low = (corners[:, :2] <= tiles[:, :2] + margin) & (tiles[:, :2] > 0)
    high = (corners[:, 2:] >= tiles[:, 2:] - margin) & (tiles[:, 2:] < [width, height])
    return (low | high).any(axis=1)


class _Pair(NamedTuple):
    """Two detections of a class that overlap in the region that their tiles share.

    Attributes:
        first: Row of the detection of one tile.
        second: Row of that of the other tile.
        small: The one of both rows with the smaller area in the region.
        iou: IoU in the region.
        inside: Intersection over the smaller area in the region.
    """

    first: int
    second: int
    small: int
    iou: float
    inside: float


def _pairs(parts: _Parts) -> Iterator[_Pair]:
    """Yield the pairs of detections that overlap in the region of their tiles."""
    labels = parts.detections.label
    rows_of = [np.flatnonzero(parts.of_tile == i) for i in range(len(parts.tiles))]
    firsts, seconds = np.triu_indices(len(parts.tiles), 1)
    regions = _intersection(parts.tiles[firsts], parts.tiles[seconds])
    for k in np.flatnonzero(_area(regions)):
        region = regions[k]
        mine, theirs = (
            rows[_area(_intersection(parts.corners[rows], region)) > 0]
            for rows in (rows_of[firsts[k]], rows_of[seconds[k]])
        )
        boxes, others = (_intersection(parts.corners[rows], region) for rows in (mine, theirs))
        common = _area(_intersection(boxes[:, None], others[None]))
        common[labels[mine][:, None] != labels[theirs]] = 0
        if not common.any():
            continue
        areas, other_areas = _area(boxes), _area(others)
        if parts.masks is not None:
            some, more = ([parts.masks[row] for row in rows] for rows in (mine, theirs))
            common, areas, other_areas = _mask_overlaps(some, more, common > 0, region)
        for a, b in np.argwhere(common > 0):
            yield _Pair(
                int(mine[a]),
                int(theirs[b]),
                int(mine[a] if areas[a] <= other_areas[b] else theirs[b]),
                common[a, b] / (areas[a] + other_areas[b] - common[a, b]),
                common[a, b] / min(areas[a], other_areas[b]),
            )


def _groups(parts: _Parts) -> list[list[int]]:
    """Return the rows of each object's detections, in the order of their first rows."""
    scores, of_tile = parts.detections.scores, parts.of_tile
    group = list(range(len(scores)))  # of each row
    rows = [[row] for row in group]
    tiles = [{int(tile)} for tile in of_tile]

    def join(pair: _Pair) -> None:
        kept, gone = sorted((group[pair.first], group[pair.second]))
        for row in rows[gone]:
            group[row] = kept
        rows[kept] += rows[gone]
        tiles[kept] |= tiles[gone]
        rows[gone] = []

    def lower(pair: _Pair) -> float:
        return min(scores[pair.first], scores[pair.second])

    def alike(pair: _Pair) -> bool:
        return lower(pair) >= _ALIKE * max(scores[pair.first], scores[pair.second])

    def may_be_part(pair: _Pair) -> bool:
        is_cut = parts.cut[pair.first] or parts.cut[pair.second]
        return bool(is_cut) and scores[pair.small] <= lower(pair)

    pairs = list(_pairs(parts))
    same = [pair for pair in pairs if pair.iou >= _SAME and alike(pair)]
    for pair in sorted(same, key=lambda pair: -pair.iou * lower(pair)):
        if not tiles[group[pair.first]] & tiles[group[pair.second]]:
            join(pair)
    before, absorbed = list(group), set()
    inside = [pair for pair in pairs if pair.inside >= _INSIDE and may_be_part(pair)]
    for pair in sorted(inside, key=lambda pair: -pair.inside * lower(pair)):
        first, second = group[pair.first], group[pair.second]
        lacks = of_tile[pair.second] not in tiles[first] or of_tile[pair.first] not in tiles[second]
        if first != second and lacks and before[pair.small] not in absorbed:
            absorbed.add(before[pair.small])
            join(pair)
    return [sorted(found) for found in rows if found]


def _chosen(rows: list[int], parts: _Parts) -> list[int]:
    """Return which of an object's detections make its box and mask."""
    if len(rows) == 1:
        return rows
    scores = parts.detections.scores
    likely = [row for row in rows if scores[row] >= _ALIKE * scores[rows].max()]
    whole = [row for row in likely if not parts.cut[row]]
    if not whole:
        return likely
    best = max(whole, key=lambda row: scores[row])
    if parts.masks is not None:
        area, total = parts.masks[best].area, united([parts.masks[row] for row in likely]).area
    else:
        bounds = np.concatenate(_bounds(parts.corners[likely]))
        area, total = float(_area(parts.corners[best])), float(_area(bounds))
    return [best] if area >= _WHOLE * total else likely


def _bounds(boxes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the left upper and the right lower corner of boxes (N, 4), together."""
    return boxes[:, :2].min(axis=0), boxes[:, 2:].max(axis=0)


def _intersection(boxes: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Return the intersections of boxes x0 y0 x1 y1, broadcast to (..., 4)."""
    low = np.maximum(boxes[..., :2], others[..., :2])
    return np.concatenate([low, np.minimum(boxes[..., 2:], others[..., 2:])], axis=-1)


def _area(boxes: np.ndarray) -> np.ndarray:
    """Return the areas (...) of boxes (..., 4); 0 for empty ones."""
    return np.maximum(boxes[..., 2:] - boxes[..., :2], 0).prod(axis=-1)


def _mask_overlaps(
    masks: Sequence[Runs], others: Sequence[Runs], wanted: np.ndarray, region: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the common pixels of masks in a region, and the pixels of each one there.

    Args:
        masks: N masks.
        others: M masks.
        wanted: bool (N, M), pairs to compare; others have 0 common pixels.
        region: x0, y0, x1, y1.

    Returns:
        Common pixels (N, M), and the pixels of `masks` (N,) and of `others` (M,); 0 for those that
        are in no pair.
    """
    x0, y0, x1, y1 = region.astype(int).tolist()
    empty = Runs(*np.zeros((3, 0), np.int64))
    areas, encoded = [], []
    for some, axis in ((masks, 1), (others, 0)):
        used = np.any(wanted, axis=axis).tolist()
        parts = [
            mask.clipped(x0, y0, x1, y1).moved(-x0, -y0) if use else empty
            for mask, use in zip(some, used, strict=True)
        ]
        areas.append(np.array([part.area for part in parts], float))
        encoded.append([part.encoded(y1 - y0, x1 - x0) for part in parts])
    iou = pycocotools.mask.iou(*encoded, [0] * len(others))
    common = np.where(wanted, iou * (areas[0][:, None] + areas[1]) / (1 + iou), 0)
    return common.round(), areas[0], areas[1]
