"""Split the annotation file of `data.json` for a run, and keep the split when it is resumed."""

import os
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from d2ext.config.adapters.own_data import TRAIN, splits_own_data
from d2ext.data.records.records import columns_of, file_names_of
from d2ext.data.splitting.groups import find_groups
from d2ext.data.splitting.split import SplitOptions, split_images
from d2ext.errors import UserError, config_errors
from d2ext.files import read_kept
from d2ext.text import plural

SPLIT = "split.json"  # name in the run directory
_NAMES = ("data.val_fraction", "", "data.group_by")


class Split(msgspec.Struct, kw_only=True):
    """The split of `data.json` in a run, in split.json.

    Attributes:
        val_fraction: Share of the images for validation that was asked for.
        seed: Seed of the split.
        train: File names of the images to train on, relative to the folder of the images.
        val: File names of the images for validation.
        unused: File names of the images that were added later, and share a group with an image for
            validation.
    """

    val_fraction: float
    seed: int
    train: list[str]
    val: list[str]
    unused: list[str] = []


def kept_split(folder: Path) -> Split | None:
    """Read the split of the run in a folder; return None if it has none.

    Raises:
        UserError: The file is damaged.
    """
    return read_kept(
        folder / SPLIT,
        Split,
        "the validation images of the run are unknown; restore it, or delete it to split again",
    )


def own_split(cfg: Any, kept: Split | None = None) -> tuple[Split | None, list[str]]:
    """Split the images of `data.json`, or return the split that a run has kept.

    Images that were added to the file since then are trained on, except for those that are in a
    group with a validation image: they are in neither set, so that results stay comparable.

    Args:
        cfg: Config returned by `load_config`.
        kept: Split of the run that is resumed or evaluated.

    Returns:
        The split, or None if the config does not split a file, and sentences about it.

    Raises:
        UserError: The file cannot be read or split, or has none of the kept validation images.
    """
    if not splits_own_data(cfg):
        return None, []
    from detectron2.config import instantiate

    data = cfg.data
    with config_errors(f"datasets.{TRAIN}"):
        records = instantiate(cfg.datasets[TRAIN]).load()
    prefix = os.path.join(data.images or "", "")
    names = [os.fspath(name).removeprefix(prefix) for name in file_names_of(records)]
    root = data.images if data.near_duplicates else None
    if kept:
        return _with_added(kept, names, data, root)
    options = SplitOptions(
        data.val_fraction, seed=data.split_seed, group_by=data.group_by, names=_NAMES
    )
    options.check()
    objects = columns_of(records).objects_only()
    known = objects.categories >= 0
    sides, lines = split_images(
        names, objects.images()[known], objects.categories[known], root, options
    )
    if not data.near_duplicates:
        lines.append("near-duplicates: not searched for (data.near_duplicates=False)")
    split = Split(
        val_fraction=data.val_fraction,
        seed=data.split_seed,
        train=[names[i] for i in np.flatnonzero(sides == 0)],
        val=[names[i] for i in np.flatnonzero(sides == 1)],
    )
    how = f"data.val_fraction={split.val_fraction:g}, data.split_seed={split.seed}"
    return split, [f"{_sizes(split, data.json)} ({how})", *lines]


def _with_added(
    kept: Split, names: list[str], data: Any, image_root: str | None
) -> tuple[Split, list[str]]:
    """Return the kept split for the images that the file has now, and lines for the plan."""
    present, val = set(names), set(kept.val)
    if not present & val:
        raise UserError(
            f"{data.json} has none of the {plural(len(val), 'validation image')} in the run's"
            f" {SPLIT}; give the run's own data.json, or another file for validation with"
            " data.val.json=FILE data.val.images=FOLDER"
        )
    added = present - val - set(kept.train)
    unused: set[str] = set()
    lines = []
    if added:
        ordered = sorted(present)
        groups = find_groups(ordered, image_root, data.group_by, _NAMES[2])
        of_name = dict(zip(ordered, groups.of_image.tolist(), strict=True))
        taken = {of_name[name] for name in present & val}
        unused = {name for name in added if of_name[name] in taken}
        lines += groups.lines
    others = val | unused
    split = Split(
        val_fraction=kept.val_fraction,
        seed=kept.seed,
        train=[name for name in names if name not in others],
        val=[name for name in names if name in val],
        unused=sorted(unused),
    )
    lines.insert(0, f"{_sizes(split, data.json)}, as kept in the run's {SPLIT}")
    if used := len(added - unused):
        lines.append(f"{plural(used, 'image')} added since the split, for training")
    if unused:
        lines.append(
            f"{plural(len(unused), 'image')} added since the split, such as {min(unused)},"
            f" {'is' if len(unused) == 1 else 'are'} not used, because a validation image is a"
            " near-duplicate or in the same group"
        )
    if gone := len({*kept.train, *val} - present):
        lines.append(f"{plural(gone, 'image')} removed since the split")
    return split, lines


def _sizes(split: Split, json_file: str) -> str:
    train = plural(len(split.train), "image")
    return f"{json_file}: {train} for training, {len(split.val)} for validation"
