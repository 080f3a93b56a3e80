"""Build the sets of training and test images: join datasets, drop images and repeat others."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from detectron2.data import DatasetCatalog

from d2ext.config.tiles import MIN_SHARE, OVERLAP, TileOptions
from d2ext.data.datasets.proposals import with_proposals
from d2ext.data.formats.annotation_kinds import is_object
from d2ext.data.loading.sampler import epoch_length
from d2ext.data.records.columns import Columns
from d2ext.data.records.records import applied, columns_of, join, select
from d2ext.data.tiles.records import TileCounts, Tiles
from d2ext.errors import UserError
from d2ext.text import plural


@dataclass(frozen=True)
class TrainingSet:
    """Training images and how often each is shown per epoch.

    Attributes:
        records: Detectron2 dataset dicts; objects that are not trained on are marked as crowds.
        repeats: Mean number of times that each record is shown per epoch, float array (N,).
        left_out: Number of images without objects that `filter_empty` dropped.
        few_keypoints: Number of other images that `min_keypoints` dropped.
        small: Number of images that `min_size` dropped.
        tile_counts: Counts of photos, tiles and objects; None if photos are not cut into tiles. A
            tile then is an image.
    """

    records: Sequence[dict]
    repeats: np.ndarray
    left_out: int = 0
    few_keypoints: int = 0
    small: int = 0
    tile_counts: TileCounts | None = None

    def __len__(self) -> int:
        """Return the number of images per epoch."""
        return epoch_length(self.repeats)

    def __str__(self) -> str:
        """Describe the images of an epoch, and how they differ from those of the files."""
        text = plural(len(self), "tile" if self.tile_counts else "image")
        if self.left_out:
            text += f" ({self.left_out} without objects dropped, filter_empty)"
        if self.few_keypoints:
            text += f" ({self.few_keypoints} with few keypoints dropped, min_keypoints)"
        if self.small:
            text += f" ({self.small} smaller images dropped, min_size)"
        if len(self) != len(self.records):
            most = f"{self.repeats.max():.3g}"
            text += f" from {len(self.records)}, repeated up to {most} times"
        return text


def training_set(
    names: str | Sequence[str],
    filter_empty: bool = True,
    repeat: int | Sequence[int] = 1,
    oversample_threshold: float | None = None,
    min_keypoints: int = 0,
    proposal_files: Sequence[str] | None = None,
    subset: float | None = None,
    min_size: int = 0,
    tiles: int | None = None,
    tile_overlap: float = OVERLAP,
    tile_min_share: float = MIN_SHARE,
) -> TrainingSet:
    """Combine registered datasets, like MMDetection's Concat-, Repeat- and ClassBalancedDataset.

    With the arguments of Detectron2's `get_detection_dataset_dicts`, the records are the same.

    Args:
        names: One dataset, or several to join.
        filter_empty: Whether to drop images without objects (see `is_object`).
        repeat: How often each image is shown per epoch; a list has one number for each of `names`.
        oversample_threshold: If fewer than this fraction of the images (of all `names`, without
            dropped ones) contain a class, the images with it are shown more often: on average
            sqrt(threshold / fraction) times (Gupta et al. 2019, LVIS; the paper uses 0.001).
        min_keypoints: Number of labeled keypoints below which images are dropped.
        proposal_files: A file of precomputed proposals for each of `names` (see `with_proposals`).
        subset: Fraction of the images to train on, chosen at random and the same in each run; None
            is all. Use it to measure how accuracy depends on the amount of data. With tiles, it is
            a fraction of the tiles, from all photos.
        min_size: Pixels; images with a smaller width or height are dropped.
        tiles: Side in pixels of the tiles that photos are cut into, each of which is an image for
            all other arguments; None keeps photos whole. `data.tiles` sets it.
        tile_overlap: Share of the side that neighboring tiles have in common.
        tile_min_share: Smallest share of an object's area inside of a tile with which the tile
            keeps it.

    Raises:
        UserError: An argument is invalid, or no image is left.
    """
    names = [names] if isinstance(names, str) else list(names)
    times = [repeat] * len(names) if isinstance(repeat, int) else list(repeat)
    field = "dataloader.train.dataset"
    if len(times) != len(names) or not all(type(t) is int and t > 0 for t in times):
        raise UserError(
            f"{field}.repeat={repeat}: give a positive integer, or one for each of"
            f" {', '.join(names)}"
        )
    parts, repeats, left_out, few, small = [], [], 0, 0, 0
    _check_no_proposals(tiles, proposal_files)
    counts = None
    for every, count in zip(_loaded(names, proposal_files), times, strict=True):
        if tiles:
            every = Tiles(every, TileOptions(tiles, tile_overlap, tile_min_share))
            counts = every.counts + (counts or TileCounts())
        columns, kept = columns_of(every), np.ones(len(every), bool)
        if len(every) and "annotations" in every[0]:  # some datasets only have maps of stuff
            filled = columns.objects > 0 if filter_empty else kept
            kept = filled & (columns.labeled_keypoints >= min_keypoints)
            left_out += int(np.sum(~filled))
            few += int(np.sum(filled & ~kept))
        large = np.minimum(columns.heights, columns.widths) >= min_size
        small += int(np.sum(kept & ~large))
        kept = kept & large
        parts.append(every if kept.all() else select(every, kept))
        repeats += [float(count)] * len(parts[-1])
    if not repeats and few:
        raise UserError(
            f"{', '.join(names)}: no image has {min_keypoints} labeled keypoints; annotate some, or"
            f" lower {field}.min_keypoints"
        )
    if not repeats and small:
        raise UserError(
            f"{', '.join(names)}: no image with an object has sides of {min_size} pixels; lower"
            f" {field}.min_size"
        )
    if not repeats:
        raise UserError(
            f"{', '.join(names)}: no image has an object; annotate some, or set"
            f" {field}.filter_empty=False"
        )
    records = parts[0] if len(parts) == 1 else join(parts)
    factors = np.array(repeats)
    if subset is not None:
        chosen = _random_subset(len(records), subset)
        records, factors = select(records, chosen), factors[chosen]
    if oversample_threshold is not None:
        if not isinstance(oversample_threshold, int | float) or not 0 < oversample_threshold <= 1:
            raise UserError(
                f"{field}.oversample_threshold={oversample_threshold}: give a fraction of the"
                " images above 0 and up to 1, or null"
            )
        factors *= _rare(columns_of(records), oversample_threshold)
    records = applied(records, _others_as_crowds)
    return TrainingSet(records, factors, left_out, few, small, counts)


def _loaded(names: Sequence[str], proposal_files: Sequence[str] | None) -> Iterator[Sequence[dict]]:
    """Yield the records of each dataset, with the proposals of its file, if there are any."""
    if proposal_files is not None and len(proposal_files) != len(names):
        raise UserError(
            f"proposal_files={list(proposal_files)}: give a file for each of {', '.join(names)}"
        )
    for i, name in enumerate(names):
        records = DatasetCatalog.get(name)
        yield with_proposals(records, proposal_files[i], name) if proposal_files else records


def _check_no_proposals(tiles: int | None, proposal_files: Sequence[str] | None) -> None:
    if tiles and proposal_files:
        raise UserError(
            f"data.tiles={tiles} cannot cut proposals (proposal_files={list(proposal_files)}); set"
            " one of them to null"
        )


def _random_subset(count: int, fraction: float) -> np.ndarray:
    """Return which of `count` images to train on, as a bool array (count,)."""
    if not isinstance(fraction, int | float) or not 0 < fraction <= 1:
        raise UserError(
            f"dataloader.train.dataset.subset={fraction}: give a fraction of the images above 0 and"
            " up to 1, or null"
        )
    chosen = np.zeros(count, bool)
    order = np.random.default_rng(0).permutation(count)
    chosen[order[: max(int(count * fraction), 1)]] = True
    return chosen


def _others_as_crowds(record: dict) -> dict:
    """Mark objects that are not trained on as crowds, the only ones Detectron2's mapper drops."""
    annotations = record.get("annotations", ())
    if all(map(is_object, annotations)):
        return record
    marked = [a if is_object(a) else {**a, "iscrowd": 1} for a in annotations]
    return {**record, "annotations": marked}


def _rare(columns: Columns, threshold: float) -> np.ndarray:
    """Return how often to show each image by its rarest class, as a float array (N,)."""
    factors, objects = np.ones(len(columns.heights)), columns.objects_only()
    _, images = objects.category_counts(int(objects.categories.max(initial=0)) + 1)
    of_class = np.sqrt(threshold * len(factors) / np.maximum(images, 1))
    np.maximum.at(factors, objects.images(), of_class[objects.categories])
    return factors


def evaluation_set(
    names: str | Sequence[str],
    filter_empty: bool = False,
    proposal_files: Sequence[str] | None = None,
    tiles: int | None = None,
    tile_overlap: float = OVERLAP,
    tile_min_share: float = MIN_SHARE,
) -> Sequence[dict]:
    """Return the images of registered datasets in order, decoded on access.

    Args:
        names: One dataset, or several that are evaluated separately.
        filter_empty: Whether to drop images without objects (see `is_object`).
        proposal_files: A file of precomputed proposals for each of `names` (see `with_proposals`).
        tiles: Side in pixels of the tiles that photos are cut into; the detections of a photo's
            tiles are joined. None keeps photos whole. `data.tiles` sets it.
        tile_overlap: Share of the side that neighboring tiles have in common.
        tile_min_share: Argument of `training_set`, for pictures of the ground truth.

    Raises:
        UserError: A proposal file is invalid, or their number is not that of `names`.
    """
    names = [names] if isinstance(names, str) else list(names)
    _check_no_proposals(tiles, proposal_files)
    parts = list(_loaded(names, proposal_files))
    records = parts[0] if len(parts) == 1 else join(parts)
    if filter_empty:
        records = select(records, columns_of(records).objects > 0)
    if not tiles:
        return records
    return Tiles(records, TileOptions(tiles, tile_overlap, tile_min_share))
