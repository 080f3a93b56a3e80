"""Join the detections of a photo's tiles, so that no object is counted twice and none is split.

Neighboring tiles see the same pixels in the region that they share. Detections of one class in two
tiles are compared in this region only, where those of an object agree, no matter how much of the
object each tile contains:

1. Two detections with an IoU of at least 0.5 in the region are the same object, if their scores are
   alike: the lower one is at least half of the higher one. A detection has at most one counterpart
   in every other tile. The best pairs are joined first, by the IoU times the lower score.
2. A detection may be a part of an object: the remnant at a border, one of several parts that a
   tile sees, or the object with another score. It joins a detection of another tile with at least
   its score, if their IoU in the region is at least 0.5, or if a border cuts it and the other one
   is larger there and contains at least half of it. It must not have a counterpart in that tile
   yet. A part joins one object only.

Objects that extend over more tiles are joined in a chain. The result has the highest score of its
detections. If a tile sees the object whole, and its detection covers at least 0.7 of all of them,
its box and mask are used; otherwise those of all detections are united, without parts of less than
half of the score.

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
_INSIDE = 0.5  # share of the part in the shared region
_ALIKE = 0.5  # ratio of two scores
_WHOLE = 0.7  # share of all detections' area that one of the entire object covers
_BORDER = 0.01  # share of a tile's side; a box that ends this close to a border is cut there


class OpenPhotos:
    """Photos of an evaluation whose tiles arrive one by one."""

    def __init__(self) -> None:
        self._open: dict[int, JoinedTiles] = {}
        self._names: dict[int, str] = {}

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
        self._names[place] = sample["file_name"]
        photo.add(sample["tile"], detections)
        if len(photo) < sample["photo_tiles"]:
            return None
        del self._names[place]
        return self._open.pop(place).joined()

    @property
    def incomplete(self) -> list[str]:
        """Return the files of the photos of which tiles are still missing."""
        return list(self._names.values())


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
        objects = _objects(parts)
        found = parts.detections
        made = take(found, np.array([found.rows[0] for found in objects], np.int64))
        boxes, scores = made.boxes.copy(), made.scores.copy()
        keypoints = None if made.keypoints is None else made.keypoints.copy()
        masks: list[dict] | None = None if parts.masks is None else []
        for i, (rows, likely) in enumerate(objects):
            scores[i] = found.scores[rows].max()
            chosen = _chosen(likely, parts)
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
        part: Row of the one that may be a part of the other: that with the lower score, or with the
            smaller area in the region if the scores are equal.
        other: Row of the other one.
        iou: IoU in the region.
        inside: Share of the part's area in the region that the other one contains.
        is_smaller: Whether the part's area in the region is at most that of the other one.
    """

    part: int
    other: int
    iou: float
    inside: float
    is_smaller: bool


def _pairs(parts: _Parts) -> Iterator[_Pair]:
    """Yield the pairs of detections that overlap in the region of their tiles."""
    # Compare each tile with the following ones: all pairs at once would take too much memory.
    filled, firsts = np.unique(parts.of_tile, return_index=True)
    rows_of = np.split(np.arange(len(parts.of_tile)), firsts[1:])
    tiles = parts.tiles[filled]
    for i, tile in enumerate(tiles):
        regions = _intersection(tile, tiles[i + 1 :])
        for k in np.flatnonzero(_area(regions)).tolist():
            yield from _pairs_in(regions[k], rows_of[i], rows_of[i + 1 + k], parts)


def _pairs_in(
    region: np.ndarray, rows: np.ndarray, others: np.ndarray, parts: _Parts
) -> Iterator[_Pair]:
    """Yield the pairs of detections of two tiles that overlap in a region.

    Args:
        region: x0, y0, x1, y1.
        rows: Rows of the detections of one tile.
        others: Rows of those of the other tile.
        parts: Detections of all tiles.
    """
    scores, labels = parts.detections.scores, parts.detections.label
    mine, theirs = (
        some[_area(_intersection(parts.corners[some], region)) > 0] for some in (rows, others)
    )
    boxes, more = (_intersection(parts.corners[some], region) for some in (mine, theirs))
    common = _area(_intersection(boxes[:, None], more[None]))
    common[labels[mine][:, None] != labels[theirs]] = 0
    if not common.any():
        return
    areas, other_areas = _area(boxes), _area(more)
    if parts.masks is not None:
        masks, other_masks = ([parts.masks[row] for row in some] for some in (mine, theirs))
        common, areas, other_areas = _mask_overlaps(masks, other_masks, common > 0, region)
    for a, b in np.argwhere(common > 0).tolist():
        both = [
            (scores[mine[a]], areas[a], mine[a]),
            (scores[theirs[b]], other_areas[b], theirs[b]),
        ]
        (_, area, part), (_, other_area, other) = sorted(both)
        iou = common[a, b] / (area + other_area - common[a, b])
        yield _Pair(int(part), int(other), iou, common[a, b] / area, bool(area <= other_area))


class _Object(NamedTuple):
    """Detections of an object.

    Attributes:
        rows: Rows of all of them, in order.
        likely: Rows of those that can make its box and mask, in order.
    """

    rows: list[int]
    likely: list[int]


def _objects(parts: _Parts) -> list[_Object]:
    """Return the detections of each object, in the order of their first rows."""
    scores, of_tile = parts.detections.scores, parts.of_tile.tolist()
    group = list(range(len(scores)))  # of each row
    rows = [[row] for row in group]
    tiles = [{tile} for tile in of_tile]

    def join(pair: _Pair) -> None:
        kept, gone = sorted((group[pair.part], group[pair.other]))
        for row in rows[gone]:
            group[row] = kept
        rows[kept] += rows[gone]
        tiles[kept] |= tiles[gone]
        rows[gone] = []

    def same(pair: _Pair) -> bool:
        return pair.iou >= _SAME and scores[pair.part] >= _ALIKE * scores[pair.other]

    def inside(pair: _Pair) -> bool:
        remnant = bool(parts.cut[pair.part]) and pair.is_smaller and pair.inside >= _INSIDE
        return remnant or pair.iou >= _SAME

    pairs = list(_pairs(parts))
    for pair in sorted(filter(same, pairs), key=lambda pair: -pair.iou * scores[pair.part]):
        if not tiles[group[pair.part]] & tiles[group[pair.other]]:
            join(pair)
    chains, absorbed = list(group), set()
    best = np.zeros(len(scores))  # score of each chain
    np.maximum.at(best, chains, scores)
    for pair in sorted(filter(inside, pairs), key=lambda pair: -pair.inside * scores[pair.part]):
        part, other = group[pair.part], group[pair.other]
        is_new = part != other and of_tile[pair.other] not in tiles[part]
        if is_new and chains[pair.part] not in absorbed:
            absorbed.add(chains[pair.part])
            join(pair)
    made = []
    for found in filter(None, rows):
        least = _ALIKE * scores[found].max()
        made.append(
            _Object(sorted(found), [row for row in sorted(found) if best[chains[row]] >= least])
        )
    return made


def _chosen(likely: list[int], parts: _Parts) -> list[int]:
    """Return which of an object's likely detections make its box and mask."""
    whole = [row for row in likely if not parts.cut[row]]
    if len(likely) == 1 or not whole:
        return likely
    scores = parts.detections.scores
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
