"""Apply values that preflight chose for a config: `data.auto` and `train.budget`."""

import copy
from collections.abc import Sequence
from typing import Any

import msgspec

from d2ext.config.augmentation import sets_size
from d2ext.config.by_hand import CROP, KEYS, overridden
from d2ext.config.flatten import flatten
from d2ext.config.load import execute_config
from d2ext.config.recipes import recipe_path
from d2ext.errors import UserError


class Choice(msgspec.Struct, frozen=True):
    """A value chosen for a field of the config.

    Attributes:
        key: Dotted key, one of `by_hand.KEYS`.
        value: Plain value.
        reason: Sentence for the plan; choices that belong together have the same one.
    """

    key: str
    value: Any
    reason: str


def with_choices(cfg: Any, choices: Sequence[Choice]) -> Any:
    """Return a copy of a config with chosen values, and with nothing left to choose.

    A value is written to the node that its key leads to: if `dataloader.val` refers to
    `dataloader.test`, both loaders get it.

    Args:
        cfg: Config returned by `load_config`.
        choices: Chosen values.
    """
    from omegaconf import OmegaConf

    cfg = copy.deepcopy(cfg)
    for choice in choices:
        if choice.key == CROP:
            OmegaConf.select(cfg, CROP.rpartition(".")[0]).insert(1, choice.value)
        else:
            section, _, name = choice.key.rpartition(".")
            # An update through `cfg` would replace an interpolation instead of following it.
            node = OmegaConf.select(cfg, section)
            if node is None:  # an optional section
                node, name = cfg, choice.key
            OmegaConf.update(node, name, choice.value, merge=False, force_add=True)
    off: dict[str, Any] = {"auto": False, "recipe": None, "by_hand": []}
    for key in off.keys() & (cfg.get("data") or {}).keys():
        cfg.data[key] = off[key]
    if cfg.train.get("budget"):
        cfg.train.budget = None
    return cfg


def is_auto(cfg: Any) -> bool:
    """Return whether a config has `data.auto` set; some have no such field."""
    return bool((cfg.get("data") or {}).get("auto"))


def recipe_of(cfg: Any) -> Any:
    """Return the recipe that `data.recipe` names, as its file defines it; None without a name.

    Raises:
        UserError: There is no such recipe.
    """
    if not (name := (cfg.get("data") or {}).get("recipe")):
        return None
    try:
        path = recipe_path(name, parts=False)
    except UserError as e:
        raise UserError(f"data.recipe: {e}") from e
    return execute_config(path)


def set_by_hand(cfg: Any, recipe: Any = None) -> set[str]:
    """Return those of `by_hand.KEYS` that the user has set.

    These are the keys in `data.by_hand`, where `load_config` records overrides, and all keys whose
    value differs from the recipe's.

    Args:
        cfg: Config returned by `load_config`.
        recipe: Recipe returned by `recipe_of`; None compares with nothing.
    """
    found = overridden(cfg)
    if CROP in found and not _sets_crop(cfg):
        found.remove(CROP)
    if recipe is not None:
        found |= differing(cfg, recipe)
    return found


def _sets_crop(cfg: Any) -> bool:
    """Return whether overrides set a crop, and not only arguments of, say, the recipe's flip."""
    from omegaconf import OmegaConf

    listed = OmegaConf.select(cfg, CROP.rpartition(".")[0]) or []
    given = [key.replace("[", ".").replace("]", "") for key in cfg.data.by_hand]
    whole = any(CROP == key or CROP.startswith(f"{key}.") for key in given)
    return whole or sets_size(listed[1])


def differing(cfg: Any, other: Any) -> set[str]:
    """Return those of `by_hand.KEYS` whose values differ between two configs."""
    return {key for key in KEYS if _value(cfg, key) != _value(other, key)}


def _value(cfg: Any, key: str) -> Any:
    """Return a field as plain values; None if it is absent."""
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    if key == CROP:  # all augmentations that set a size
        listed = OmegaConf.select(cfg, key.rpartition(".")[0]) or []
        sized = [OmegaConf.to_container(a) for a in listed[1:] if sets_size(a)]
        return [sorted((k, str(v)) for k, v in flatten(a) if k != "_target_") for a in sized]
    try:
        value = OmegaConf.select(cfg, key)
    except OmegaConfBaseException:  # the parent is not a dict
        return None
    if OmegaConf.is_config(value):
        value = OmegaConf.to_container(value, resolve=True)
    return _lists(value)


def _lists(value: Any) -> Any:
    return [_lists(v) for v in value] if isinstance(value, list | tuple) else value
