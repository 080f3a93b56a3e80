"""Check that a config can cut photos into tiles, and describe the tiles of a run."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from detectron2.data import DatasetCatalog, DatasetMapper
from detectron2.utils.registry import locate
from omegaconf import OmegaConf

from d2ext.config.check import target_name
from d2ext.config.model_kind import meta_architecture
from d2ext.config.tiles import TileOptions, cuts_tiles, tile_options
from d2ext.data.datasets.mixing import TrainingSet
from d2ext.data.loading.mapper import Mapper
from d2ext.data.tiles.records import TileCounts, Tiles
from d2ext.errors import UserError
from d2ext.text import plural

_SEGMENTERS = ("PanopticFPN", "SemanticSegmentor", "PanopticDeepLab")
_MAPPER = "d2ext.data.loading.mapper.Mapper"


def check_tiles(cfg: Any, loaders: Mapping[str, Any]) -> None:
    """Check that the loaders of a run can cut photos into tiles, if `data.tiles` is set.

    Args:
        cfg: Config returned by `load_config`.
        loaders: Configs of the loaders by split, train, val or test.

    Raises:
        UserError: A loader, its dataset or its mapper, or the model, does not support tiles.
    """
    if not (tiles := tile_options(cfg)):
        return
    field = f"data.tiles={tiles.side}"
    if (model := meta_architecture(cfg.model)) in _SEGMENTERS:
        raise UserError(
            f"{field} joins only objects, but the model ({model}) also segments regions; set"
            " data.tiles=null"
        )
    for split, loader in loaders.items():
        if not loader:
            continue  # reported by `check_datasets`
        section = f"dataloader.{split}"
        if not target_name(loader.get("_target_")).startswith("d2ext."):
            raise UserError(
                f"{field}: {section} is a loader of the config, whose photos d2ext cannot cut; set"
                " data.tiles=null"
            )
        if not cuts_tiles(loader):
            name = "training_set" if split == "train" else "evaluation_set"
            raise UserError(
                f"{field}: {section}.dataset is not d2ext's {name}, which cuts photos; set"
                f" {section}.dataset._target_=d2ext.data.datasets.mixing.{name}, or data.tiles=null"
            )
        mapper = _located(loader.mapper.get("_target_")) if loader.get("mapper") else None
        if not isinstance(mapper, type) or not (
            issubclass(mapper, Mapper) or mapper is DatasetMapper
        ):
            name = getattr(mapper, "__name__", mapper)
            raise UserError(
                f"{field}: {section}.mapper ({name}) does not read tiles; set"
                f" {section}.mapper._target_={_MAPPER}, or data.tiles=null"
            )


def _located(target: Any) -> Any:
    return locate(target) if isinstance(target, str) else target


def tile_lines(cfg: Any, tested: Sequence[str], dataset: Any = None) -> Iterator[str]:
    """Yield the lines of the plan about tiles; none if photos are not cut.

    Args:
        cfg: Config returned by `load_config`.
        tested: Names of the datasets that are evaluated.
        dataset: Training dataset of the run; None for an evaluation.
    """
    if not (tiles := tile_options(cfg)):
        return
    about = f"{tiles.side} pixels, overlap {tiles.shared}"
    counts = dataset.tile_counts if isinstance(dataset, TrainingSet) else None
    start = "tiles       "
    if counts:
        yield (
            f"{start}{about}: {plural(counts.photos, 'photo')} -> {plural(counts.tiles, 'tile')},"
            f" {counts.empty} of them without objects"
        )
        yield from (f"{start}note: {note}" for note in _notes(counts, tiles))
    for name in dict.fromkeys(tested):
        of_set = Tiles(DatasetCatalog.get(name), tiles).counts
        photos = plural(of_set.photos, "photo")
        yield f"{start}{name}: {photos} -> {plural(of_set.tiles, 'tile')}, joined"
        if of_set.largest:
            yield f"{start}{name}: note: {_larger(of_set)}"
    used = ("train", "val", "test") if dataset is not None else ("val", "test")
    if any(_is_detectron2s(cfg, split) for split in used):
        yield f"{start}note: Mapper ({_MAPPER}) replaces Detectron2's DatasetMapper"


def _larger(counts: TileCounts) -> str:
    assert counts.largest
    width, height, file = counts.largest
    are, have = ("is", "has") if counts.larger == 1 else ("are", "have")
    return (
        f"{counts.larger} of {plural(counts.objects, 'object')} {are} larger than a tile and"
        f" {have} to be joined, such as one of {width} x {height} pixels in {file}"
    )


def _notes(counts: TileCounts, tiles: TileOptions) -> Iterator[str]:
    objects = f"of {plural(counts.objects, 'object')}"
    if counts.largest:
        yield _larger(counts)
    if counts.cut:
        yield (
            f"{counts.cut} {objects} {'is' if counts.cut == 1 else 'are'} whole in no tile; a"
            " larger data.tile_overlap changes that"
        )
    if counts.dropped:
        yield (
            f"{counts.dropped} {objects} {'is' if counts.dropped == 1 else 'are'} in no tile with"
            f" data.tile_min_share={tiles.min_share:g} of the area, such as in"
            f" {counts.dropped_from}, and not trained on; lower it, or use larger tiles"
        )


def _is_detectron2s(cfg: Any, split: str) -> bool:
    target = OmegaConf.select(cfg, f"dataloader.{split}.mapper._target_")
    return _located(target) is DatasetMapper if target else False
