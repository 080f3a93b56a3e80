"""Find out what kind of model a config builds, from lazy calls or from yacs keys."""

from typing import Any

from omegaconf import OmegaConf

from d2ext.config.check import target_name

_BOXES_ONLY = {"RetinaNet", "FCOS"}
_HEADS_BY_FLAG = {"GeneralizedRCNN", "PanopticFPN"}  # of yacs models, MASK_ON and KEYPOINT_ON


def yacs_model(model: Any) -> Any:
    """Return the section MODEL of a yacs model's keys; None for a model of lazy calls."""
    return OmegaConf.select(model, "config.MODEL", default=None)


def meta_architecture(model: Any) -> str:
    """Return the name of a model's class, such as `GeneralizedRCNN`.

    Args:
        model: Section `model` of a config: lazy calls, or one call with yacs keys as its `config`.
    """
    keys = yacs_model(model)
    if keys is not None:
        return keys.META_ARCHITECTURE
    return target_name(model.get("_target_")).rpartition(".")[2]


def returns_masks(model: Any) -> bool:
    """Return whether a model predicts masks; models that d2ext does not know may do so."""
    return _has_head(model, "mask_head", "MASK_ON")


def returns_keypoints(model: Any) -> bool:
    """Return whether a model predicts keypoints; models that d2ext does not know may do so."""
    return _has_head(model, "keypoint_head", "KEYPOINT_ON")


def _has_head(model: Any, head: str, flag: str) -> bool:
    """Return whether a model has a head, by its config's key or its yacs flag, or may have it."""
    kind, keys = meta_architecture(model), yacs_model(model)
    if kind in _BOXES_ONLY:
        return False
    if keys is not None:
        return bool(keys[flag]) or kind not in _HEADS_BY_FLAG
    heads = model.get("roi_heads")
    return heads is None or heads.get(head) is not None
