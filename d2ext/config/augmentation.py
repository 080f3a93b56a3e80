"""Augment training images by a preset: `data.augmentation=light`."""

import copy
from typing import Any

from d2ext.config.check import target_name
from d2ext.errors import UserError

_T = "detectron2.data.transforms."
_OURS = "d2ext.data.loading.augment."
_FORMAT = "${model.input_format}"
PRESETS: dict[str, list[dict[str, Any]]] = {
    "none": [],
    "light": [
        {"_target_": f"{_T}RandomFlip", "horizontal": True},
        {"_target_": f"{_OURS}color.ColorJitter", "image_format": _FORMAT},
    ],
}
# Augmentations that set the size of the images; presets follow them.
_SIZES = ("Resize", "RandomCrop", "FixedSizeCrop", "ObjectCrop", "LargeScaleJitter", "ScaleJitter")


def with_augmentation(cfg: Any) -> Any:
    """Return a config with the augmentations that `data.augmentation` names; the input stays.

    The recipe's augmentations that set the size of the images stay in front of them.

    Args:
        cfg: Config returned by `load_config`.

    Raises:
        UserError: The mapper has no list of augmentations.
    """
    chosen = (cfg.get("data") or {}).get("augmentation")
    if chosen is None:
        return cfg
    mapper = cfg.dataloader.train.get("mapper") or {}
    if "augmentations" not in mapper:
        raise UserError(
            f"data.augmentation={chosen}: dataloader.train.mapper has no list `augmentations` to"
            " change; set the arguments of that mapper instead"
        )
    cfg = copy.deepcopy(cfg)
    kept = [a for a in cfg.dataloader.train.mapper.augmentations if _sets_size(a)]
    added = PRESETS[chosen] if isinstance(chosen, str) else chosen
    cfg.dataloader.train.mapper.augmentations = [*kept, *added]
    return cfg


def _sets_size(augmentation: Any) -> bool:
    name = target_name(augmentation.get("_target_", "")).rpartition(".")[2]
    return name.startswith(_SIZES)
