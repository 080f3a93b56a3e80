"""Join the detections of a photo's tiles, so that no object is counted twice and none is split.

Neighboring tiles see the same pixels in the region that they share. Detections of both are compared
in this region only, where two detections of an object agree, no matter how much of the object each
tile contains:

1. Detections of one class whose IoU in the region is at least 0.5 are the same object. Each
   detection has at most one counterpart in every other tile; the best pairs are chosen first.
2. A detection without a counterpart in the other tile may be a part of an object: the remnant at a
   border, or one of several parts that a tile sees. It joins a detection of the other tile that has
   at least its score and contains at least half of it in the region, if a border cuts one of both.

Objects that extend over more tiles are joined in a chain. SAHI (greedy non-maximum merging, 2022,
https://doi.org/10.1109/ICIP46576.2022.9897990) compares whole detections by their intersection over
the smaller area. This also joins neighboring objects of a class, and does not join the parts of
objects that are much larger than the overlap.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pycocotools.mask

from d2ext.data.tiles.runs import Runs, decoded, united
from d2ext.evaluation.instances import Detections, take

_SAME = 0.5  # IoU in the shared region
_INSIDE = 0.5  # share of the smaller detection in the shared region
_WHOLE = 0.7  # share of all parts' area that a detection of the entire object has
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

        Boxes and masks of an object's detections are united. Its score is the highest one, and each
        of its keypoints the one with the highest score.
        """
        detections, masks, of_tile = self._concatenated()
        corners = detections.boxes.copy()
        corners[:, 2:] += corners[:, :2]
        cut = self._cut(corners, np.array(self._tiles, float)[of_tile])
        pairs = list(self._pairs(detections, masks, of_tile, corners, cut))
        groups = _groups(pairs, detections.scores, of_tile)
        height, width = self._size
        made = take(detections, np.array([rows[0] for rows in groups], np.int64))
        boxes, scores = made.boxes.copy(), made.scores.copy()
        keypoints = None if made.keypoints is None else made.keypoints.copy()
        encoded: list[dict] | None = None if masks is None else []
        for i, rows in enumerate(groups):
            parts = _parts(rows, corners, masks, detections.scores, cut)
            low, high = corners[parts, :2].min(axis=0), corners[parts, 2:].max(axis=0)
            if len(rows) > 1:
                boxes[i] = [*low, *(high - low)]
            scores[i] = detections.scores[rows].max()
            if keypoints is not None and detections.keypoints is not None:
                points = detections.keypoints[rows]
                best = points[..., 2].argmax(axis=0)
                keypoints[i] = points[best, np.arange(points.shape[1])]
            if masks is not None and encoded is not None:
                encoded.append(united([masks[row] for row in parts]).encoded(height, width))
        return Detections(made.image, made.label, boxes, scores, encoded, keypoints=keypoints)

    def _concatenated(self) -> tuple[Detections, list[Runs] | None, np.ndarray]:
        """Return all detections, their masks, and the index of each one's tile."""
        of_tile = np.repeat(np.arange(len(self)), [len(found.scores) for found in self._found])
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
        return Detections(image, label, boxes, scores, None, keypoints=keypoints), masks, of_tile

    def _pairs(
        self,
        detections: Detections,
        masks: list[Runs] | None,
        of_tile: np.ndarray,
        corners: np.ndarray,
        cut: np.ndarray,
    ) -> Iterator["_Pair"]:
        """Yield the pairs of detections of two tiles that overlap in their shared region."""
        tiles = np.array(self._tiles, float)
        rows_of = [np.flatnonzero(of_tile == i) for i in range(len(tiles))]
        firsts, seconds = np.triu_indices(len(tiles), 1)
        regions = _intersection(tiles[firsts], tiles[seconds])
        for k in np.flatnonzero(_area(regions)):
            i, j, region = firsts[k], seconds[k], regions[k]
            mine, theirs = (
                rows[_area(_intersection(corners[rows], region)) > 0]
                for rows in (rows_of[i], rows_of[j])
            )
            parts, others = (_intersection(corners[rows], region) for rows in (mine, theirs))
            common = _area(_intersection(parts[:, None], others[None]))
            common[detections.label[mine][:, None] != detections.label[theirs]] = 0
            if not common.any():
                continue
            areas, other_areas = _area(parts), _area(others)
            if masks is not None:
                common, areas, other_areas = _mask_overlaps(
                    [masks[row] for row in mine], [masks[row] for row in theirs], common > 0, region
                )
            for a, b in np.argwhere(common > 0):
                inside, smaller = common[a, b], min(areas[a], other_areas[b])
                first, second = int(mine[a]), int(theirs[b])
                iou = inside / (areas[a] + other_areas[b] - inside)
                small, large = (first, second) if areas[a] <= other_areas[b] else (second, first)
                yield _Pair(
                    first,
                    second,
                    iou,
                    inside / smaller,
                    bool(cut[first] or cut[second])
                    and detections.scores[small] <= detections.scores[large],
                )

    def _cut(self, corners: np.ndarray, tiles: np.ndarray) -> np.ndarray:
        """Return which boxes end at a border of their tile that is not one of the photo, (N,)."""
        height, width = self._size
        margin = _BORDER * (tiles[:, 2:] - tiles[:, :2])
        low = (corners[:, :2] <= tiles[:, :2] + margin) & (tiles[:, :2] > 0)
        high = (corners[:, 2:] >= tiles[:, 2:] - margin) & (tiles[:, 2:] < [width, height])
        return (low | high).any(axis=1)


class _Pair(NamedTuple):
    """Two detections that overlap in the region that their tiles share.

    Attributes:
        first: Row of the detection of one tile.
        second: Row of that of the other tile.
        iou: IoU in the region.
        inside: Intersection over the smaller area in the region.
        part: Whether the smaller one may be a part of the larger one.
    """

    first: int
    second: int
    iou: float
    inside: float
    part: bool


def _parts(
    rows: Sequence[int],
    corners: np.ndarray,
    masks: Sequence[Runs] | None,
    scores: np.ndarray,
    cut: np.ndarray,
) -> list[int]:
    """Return which of an object's detections to unite.

    A tile that sees the object whole has a better outline than the parts in other tiles, so its
    detection is used alone, if no part adds much to it.
    """
    whole = [row for row in rows if not cut[row]]
    if not whole or len(rows) == 1:
        return list(rows)
    best = max(whole, key=lambda row: scores[row])
    if masks is not None:
        share = masks[best].area / max(united([masks[row] for row in rows]).area, 1)
    else:
        low, high = corners[rows, :2].min(axis=0), corners[rows, 2:].max(axis=0)
        share = float(_area(corners[best]) / max(_area(np.append(low, high)), 1))
    return [best] if share >= _WHOLE else list(rows)


def _groups(pairs: Sequence[_Pair], scores: np.ndarray, of_tile: np.ndarray) -> list[list[int]]:
    """Return the rows of each object's detections, in the order of their first rows."""
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

    def weight(pair: _Pair, overlap: float) -> float:
        return overlap * min(scores[pair.first], scores[pair.second])

    same = [pair for pair in pairs if pair.iou >= _SAME]
    for pair in sorted(same, key=lambda pair: -weight(pair, pair.iou)):
        if not tiles[group[pair.first]] & tiles[group[pair.second]]:
            join(pair)
    parts = [pair for pair in pairs if pair.part and pair.inside >= _INSIDE]
    for pair in sorted(parts, key=lambda pair: -weight(pair, pair.inside)):
        first, second = group[pair.first], group[pair.second]
        lacks = of_tile[pair.second] not in tiles[first] or of_tile[pair.first] not in tiles[second]
        if first != second and lacks:
            join(pair)
    return [sorted(found) for found in rows if found]


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
