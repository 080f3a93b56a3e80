"""Dataset dicts of tiles, which are cut from those of the photos on access."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from d2ext.config.tiles import TileOptions
from d2ext.data.formats.annotation_kinds import is_object
from d2ext.data.records.columns import Columns, list_boxes, list_columns
from d2ext.data.records.records import View, columns_of, file_names_of
from d2ext.data.tiles.cut import Photo
from d2ext.data.tiles.plan import plan_tiles
from d2ext.errors import UserError


@dataclass(frozen=True)
class TileCounts:
    """Counts of the photos, tiles and objects of a dataset.

    Attributes:
        photos: Number of photos.
        tiles: Number of tiles.
        empty: Number of tiles without objects.
        objects: Number of objects in the photos.
        larger: Number of objects whose box is wider or higher than a tile.
        largest: Width and height in pixels of the largest of them, and its file; None without any.
        cut: Number of other objects that no tile has whole.
        dropped: Number of objects that no tile keeps.
        dropped_from: A file with such an object; None without any.
    """

    photos: int = 0
    tiles: int = 0
    empty: int = 0
    objects: int = 0
    larger: int = 0
    largest: tuple[int, int, str] | None = None
    cut: int = 0
    dropped: int = 0
    dropped_from: str | None = None

    def __add__(self, other: "TileCounts") -> "TileCounts":
        """Return the counts of two datasets together."""
        numbers = ("photos", "tiles", "empty", "objects", "larger", "cut", "dropped")
        both = filter(None, (self.largest, other.largest))
        return TileCounts(
            **{name: getattr(self, name) + getattr(other, name) for name in numbers},
            largest=max(both, key=lambda largest: largest[0] * largest[1], default=None),
            dropped_from=self.dropped_from or other.dropped_from,
        )


class Tiles(View):
    """The tiles of photos, photo by photo, as dataset dicts.

    Each has the keys of its photo, `tile` and `photo_size` (see `Photo.tile`), and `photo_tiles`,
    the number of the photo's tiles. Annotations are cut on access. A photo that is not larger than
    a tile has one tile.

    Args:
        photos: Dataset dicts with `height` and `width`.
        options: How to cut them.

    Attributes:
        photos: int64 (T,), index of each tile's photo.
        boxes: int32 (T, 4), x0 y0 x1 y1 of each tile in pixels of its photo.

    Raises:
        UserError: The size of a photo is unknown.
    """

    def __init__(self, photos: Sequence[dict], options: TileOptions):
        columns = columns_of(photos)
        unknown = np.flatnonzero(np.minimum(columns.heights, columns.widths) < 1)
        if len(unknown):
            name = file_names_of(photos)[unknown[0]]
            raise UserError(f"data.tiles: {name} has no height and width, which tiles need")
        sizes = zip(columns.heights.tolist(), columns.widths.tolist(), strict=True)
        plans = [plan_tiles(*size, options.side, options.shared) for size in sizes]
        counts = [len(plan) for plan in plans]
        self.photos = np.repeat(np.arange(len(plans)), counts)
        super().__init__([photos], self.photos)
        self.boxes = np.concatenate([*plans, np.zeros((0, 4), np.int32)])
        self._options = options
        self._firsts = np.cumsum([0, *counts])
        self._last: tuple[int, Photo] | None = None
        self._scanned: tuple[Columns, TileCounts] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_last": None}

    def _record(self, i: int) -> dict:
        photo, tile = int(self.photos[i]), self.boxes[i].tolist()
        count = int(self._firsts[photo + 1] - self._firsts[photo])
        if count == 1:
            record = self.parts[0][photo]
            size = [record["height"], record["width"]]
            return {**record, "tile": tile, "photo_size": size, "photo_tiles": 1}
        if self._last is None or self._last[0] != photo:  # the tiles of a photo often follow
            self._last = photo, Photo(self.parts[0][photo], self._options.min_share)
        return {**self._last[1].tile(tile), "photo_tiles": count}

    @property
    def columns(self) -> Columns:
        """Return the columns of the tiles."""
        return self._scan()[0]

    def columns_with_boxes(self) -> Columns:
        """Return the columns of the tiles, with boxes."""
        return replace(self.columns, boxes=list_boxes(self))

    @property
    def counts(self) -> TileCounts:
        """Return the counts of photos, tiles and objects."""
        return self._scan()[1]

    def _scan(self) -> tuple[Columns, TileCounts]:
        if self._scanned is None:
            self._scanned = self._measured()
        return self._scanned

    def _measured(self) -> tuple[Columns, TileCounts]:
        """Cut the photos that have several tiles; a single tile has the columns of its photo."""
        photos, firsts = self.parts[0], self._firsts
        of_photos = columns_of(photos)
        parts, counts = [], TileCounts()
        single = np.diff(firsts) == 1
        for is_single, group in itertools.groupby(range(len(photos)), lambda i: bool(single[i])):
            if is_single:
                parts.append(of_photos.take(np.array(list(group))))
                continue
            for i in group:
                photo = Photo(photos[i], self._options.min_share)
                tiles, counted = _cut_photo(photo, self.boxes[firsts[i] : firsts[i + 1]].tolist())
                parts.append(list_columns(tiles))
                counts += counted
        columns = _joined(parts) if parts else list_columns([])
        objects = int(of_photos.objects[single].sum()) + counts.objects
        numbers = {"photos": len(photos), "tiles": len(self), "objects": objects}
        empty = int(np.sum(columns.objects == 0))
        return columns, TileCounts(**{**counts.__dict__, **numbers, "empty": empty})


def _cut_photo(photo: Photo, tiles: Sequence[Sequence[int]]) -> tuple[list[dict], TileCounts]:
    """Return the dataset dicts of a photo's tiles, and the counts of its objects."""
    annotations = photo.record.get("annotations", ())
    kept, whole = np.zeros(len(annotations), bool), np.zeros(len(annotations), bool)
    records = []
    for tile in tiles:
        cuts = photo.cut(tile)
        kept[[cut.row for cut in cuts]] = True
        whole[[cut.row for cut in cuts if cut.whole]] = True
        size = {"height": tile[3] - tile[1], "width": tile[2] - tile[0]}
        records.append({**size, "annotations": [cut.annotation for cut in cuts]})
    objects = np.array([is_object(a) for a in annotations], bool)
    sizes = np.ceil(photo.boxes[:, 2:] - photo.boxes[:, :2])
    larger = objects & (sizes > np.subtract(tiles[0][2:], tiles[0][:2])).any(axis=1)
    largest, name = None, photo.record["file_name"]
    if larger.any():
        row = np.flatnonzero(larger)[sizes[larger].prod(axis=1).argmax()]
        largest = (*sizes[row].astype(int).tolist(), name)
    dropped = int(np.sum(objects & ~kept))
    return records, TileCounts(
        objects=int(objects.sum()),
        larger=int(larger.sum()),
        largest=largest,
        cut=int(np.sum(objects & ~whole & ~larger)),
        dropped=dropped,
        dropped_from=name if dropped else None,
    )


def _joined(parts: Sequence[Columns]) -> Columns:
    return Columns(*(np.concatenate([getattr(p, n) for p in parts]) for n in Columns.NAMES))


def tile_with_objects(record: dict, options: TileOptions) -> dict:
    """Return the tile of a photo with the most annotations, the first one if there are several.

    Args:
        record: Dataset dict of the photo.
        options: How to cut it.
    """
    tiles = Tiles([record], options)
    return tiles[int(np.argmax(tiles.columns.objects))]
