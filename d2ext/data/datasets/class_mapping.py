"""Register the datasets of a run and match their classes by name."""

import os
from collections.abc import Iterator, Sequence
from typing import Any

from detectron2.data import DatasetCatalog, MetadataCatalog
from omegaconf import OmegaConf

from d2ext.config.adapters.own_data import TRAIN, VAL, splits_own_data
from d2ext.config.tiles import use_tiles
from d2ext.data.datasets.register import register_datasets, use_classes, use_images
from d2ext.data.splitting.own_data import Split, own_split
from d2ext.errors import UserError
from d2ext.text import did_you_mean, plural, shortened


def register_run_datasets(cfg: Any, split: Split | None = None) -> list[str]:
    """Register a config's datasets in this process, and map all of them to the trained classes.

    The training sets define the classes and their order; all other sets are mapped to them by name.
    Objects of other classes are dropped, and trained classes without objects are kept.

    Args:
        cfg: Config returned by `load_config`.
        split: Split of `data.json`, if the config has one; None splits it.

    Returns:
        A line for each difference between the classes of datasets, other than their order.

    Raises:
        UserError: A declaration is invalid, or a dataset has no class in common with the others.
    """
    use_tiles(cfg)  # code may have set `data.tiles` after the config was loaded
    register_datasets(cfg.datasets)
    if splits_own_data(cfg) and (split := split or own_split(cfg)[0]):
        val, unused = (
            {os.path.join(cfg.data.images, name) for name in names}
            for names in (split.val, split.unused)
        )
        use_images(TRAIN, val | unused, keep=False)
        use_images(VAL, val, keep=True)
    trained = _known(cfg, "train")
    if not trained:
        return []
    union = list(dict.fromkeys(c for name in trained for c in _classes(name)))
    colors = MetadataCatalog.get(trained[0]).get("thing_colors")
    notes: list[str] = []
    for name in dict.fromkeys([*trained, *_known(cfg, "val"), *_known(cfg, "test")]):
        notes += _differences(name, _classes(name), union, trained)
        use_classes(name, union)
        metadata = MetadataCatalog.get(name)
        if colors and len(colors) == len(union) and "thing_colors" not in metadata.as_dict():
            metadata.set(thing_colors=colors)  # for pictures of the validation
    return notes


def _known(cfg: Any, split: str) -> list[str]:
    """Return the datasets of a split whose classes are known before they are read."""
    names = OmegaConf.select(cfg, f"dataloader.{split}.dataset.names") or []
    names = [names] if isinstance(names, str) else names
    return [name for name in names if name in DatasetCatalog.list() and _classes(name)]


def _classes(name: str) -> list[str]:
    return list(MetadataCatalog.get(name).get("thing_classes", ()))


def _differences(
    name: str, mine: Sequence[str], union: Sequence[str], trained: Sequence[str]
) -> Iterator[str]:
    others = ", ".join(t for t in trained if t != name)
    if not set(mine) & set(union):
        raise UserError(
            f"the datasets {others} and {name} have no class in common: {_quoted(union)} and"
            f" {_quoted(mine)}; correct their classes"
        )
    lacks, extra = [c for c in union if c not in mine], [c for c in mine if c not in union]
    if lacks:
        yield f"{name} lacks {plural(len(lacks), 'class')} of {others}: {_quoted(lacks)}"
    if extra:
        near = "; ".join(filter(None, (did_you_mean(c, lacks) for c in extra)))
        hint = f" ({near})" if near else ""
        yield (
            f"{name} has {plural(len(extra), 'class')} that {others} lacks, whose objects are"
            f" dropped: {_quoted(extra)}{hint}"
        )


def _quoted(classes: Sequence[str]) -> str:
    return shortened(list(map(repr, classes)), 8)
