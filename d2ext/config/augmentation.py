"""Augment training images by a preset: `data.augmentation=light`.

A preset replaces the augmentations of the training mapper, except for those that set the size of
the images, which stay in front of it in their order.
"""

import copy
import pydoc
from collections.abc import Iterator
from typing import Any

from d2ext.config.check import PRESETS, target_name
from d2ext.config.model_kind import returns_masks, yacs_model
from d2ext.config.overrides import parameters
from d2ext.errors import UserError, config_errors
from d2ext.text import did_you_mean

_KEY = "data.augmentation"
_MAPPER = "dataloader.train.mapper"
_T = "detectron2.data.transforms."
_OURS = "d2ext.data.loading.augment."
_DETECTRON2S = "detectron2.data.dataset_mapper.DatasetMapper"
_LOADER = "d2ext.data.loading.loader.build_train_loader"
_PASTE = "dataloader.train.copy_paste"
_COPY_PASTE = {"_target_": f"{_OURS}copy_paste.CopyPaste", "prob": 0.5}
# Parts of the names of augmentations that set the size of the images.
_SIZES = ("Resize", "Crop", "Pad", "Scale", "Extent")
# Parts of the names of those that make boxes larger than their objects.
_LOOSENING = ("Rotate", "Rotation", "Crop", "LargeScale", "Albumentations")
_GRAY = 128.0  # of rotated corners, if the model states no mean
_FORMATS = ("RGB", "BGR", "L")


def with_augmentation(cfg: Any) -> Any:
    """Return a config with the augmentations that `data.augmentation` names.

    The input does not change. `data.augmentation` of the result is None, so that applying this
    again changes nothing.

    Args:
        cfg: Config returned by `load_config`.

    Raises:
        UserError: An entry of the list is invalid, or the mapper has no list of augmentations.
    """
    if (chosen := _chosen(cfg)) is None:
        return cfg
    if not _is_list((cfg.dataloader.train.get("mapper") or {}).get("augmentations")):
        raise UserError(
            f"{_KEY}={chosen}: {_MAPPER} has no list `augmentations` to change; set the arguments"
            " of that mapper instead"
        )
    cfg = copy.deepcopy(cfg)
    cfg.data.augmentation = None
    mapper = cfg.dataloader.train.mapper
    if target_name(mapper.get("_target_")) == _DETECTRON2S:  # gives no boxes to augmentations
        mapper["_target_"] = "d2ext.data.loading.mapper.Mapper"
    entries = [(None, chosen)] if isinstance(chosen, str) else list(enumerate(chosen))
    added: list[Any] = []
    places: list[str] = []
    for i, entry in entries:
        field = _KEY if i is None else f"{_KEY}[{i}]"
        found = _preset(field, entry, cfg) if isinstance(entry, str) else [_call(field, entry)]
        added += found
        places += [field] * len(found)
    kept = [a for a in mapper.augmentations if sets_size(a)]
    mapper.augmentations = [*kept, *added]
    for field, node in zip(places, mapper.augmentations[len(kept) :], strict=True):
        _set_image_format(node, _image_format(cfg))
        _check_built(field, node)
    if _reads_masks(cfg) and _loosens_boxes(mapper.augmentations[len(kept) :]):
        mapper.recompute_boxes = True
    if mapper.get("use_keypoint") and mapper.get("keypoint_hflip_indices") is None:
        mapper.keypoint_hflip_indices = {
            "_target_": "d2ext.data.datasets.keypoints.flip_indices",
            "dataset_names": "${dataloader.train.dataset.names}",
        }
    if any(entry == "strong" for _, entry in entries) and not _why_no_paste(cfg):
        cfg.dataloader.train.setdefault("copy_paste", dict(_COPY_PASTE))
    return cfg


def augmentation_lines(cfg: Any, effective: Any) -> list[str]:
    """Return sentences for the plan about the augmentations of a training.

    Args:
        cfg: Config returned by `load_config`.
        effective: The result of `with_augmentation` for it.
    """
    chosen, loader = _chosen(cfg), effective.dataloader.train
    mapper: Any = loader.get("mapper") or {}
    if not _is_list(mapper.get("augmentations")):
        return []
    parts = [_described(node) for node in mapper.augmentations]
    paste = loader.get("copy_paste")
    if paste:
        parts.append(f"copy-paste ({_percent(paste.get('prob', 0.5))})")
    entries = [chosen] if isinstance(chosen, str) else chosen or []
    label = "the recipe's" if chosen is None else chosen if isinstance(chosen, str) else "your list"
    lines = [f"{label}: {', '.join(parts) or 'nothing'}"]
    if "strong" in entries:
        if not _reads_masks(cfg):
            lines.append("no rotation, because boxes without masks cannot be fitted to objects")
        if reason := _why_no_paste(cfg):
            lines.append(f"no copy-paste, because {reason}")
        elif not paste:
            lines.append(f"no copy-paste, because {_PASTE} is null")
    if mapper.get("recompute_boxes") and not cfg.dataloader.train.mapper.get("recompute_boxes"):
        lines.append(f"boxes are fitted to the augmented masks ({_MAPPER}.recompute_boxes=True)")
    return lines


def _chosen(cfg: Any) -> Any:
    """Return `data.augmentation` of any config: a name, a list, or None."""
    data = cfg.get("data")
    return data.get("augmentation") if hasattr(data, "get") else None


def _preset(field: str, name: str, cfg: Any) -> list[dict[str, Any]]:
    """Return the augmentations of a preset for a config.

    Raises:
        UserError: There is no such preset, or it cannot change images of the mapper's format.
    """
    if name not in PRESETS:
        hint = did_you_mean(name, PRESETS, f"choose one of {', '.join(PRESETS)}")
        raise UserError(f"{field}={name!r} is not the name of a preset; {hint}")
    if name == "none":
        return []
    image_format = _image_format(cfg)
    if image_format not in _FORMATS:
        raise UserError(
            f"{field}={name} cannot change the colors of {_MAPPER}.image_format={image_format};"
            f" use {', '.join(_FORMATS)}, or give a list of augmentations"
        )
    flip = {"_target_": f"{_T}RandomFlip", "horizontal": True}
    jitter = {"_target_": f"{_OURS}color.ColorJitter"}
    if name == "light":
        return [flip, jitter]
    if name == "aerial":
        return [flip, {"_target_": f"{_OURS}quarter_turn.RandomQuarterTurn"}, jitter]
    stronger = {"brightness": 48, "contrast": [0.6, 1.4], "saturation": [0.5, 1.5], "hue": 12}
    rotation = {
        "_target_": f"{_OURS}affine.RandomRotateShear",
        "angle": [-10, 10],
        "shear": [-5, 5],
        "expand": False,
        "pad_value": _pad_value(cfg, 1 if image_format == "L" else 3),
    }
    return [
        flip,
        *([_applied(0.3, rotation)] if _reads_masks(cfg) else []),
        _applied(0.8, jitter | stronger),
        _applied(0.1, {"_target_": f"{_OURS}quality.RandomBlur"}),
        _applied(0.1, {"_target_": f"{_OURS}quality.RandomNoise"}),
        _applied(0.1, {"_target_": f"{_OURS}quality.RandomJpeg"}),
    ]


def _image_format(cfg: Any) -> str:
    """Return the format of the training mapper's images; without one, photos are read as RGB."""
    return cfg.dataloader.train.mapper.get("image_format", "BGR") or "RGB"


def _set_image_format(node: Any, image_format: str) -> None:
    """Set the argument `image_format`, where an augmentation has it and the config does not."""
    for inner in _nodes(node):
        if "_target_" in inner and "image_format" in parameters(inner):
            inner.setdefault("image_format", image_format)


def _applied(prob: float, augmentation: dict[str, Any]) -> dict[str, Any]:
    return {"_target_": f"{_T}RandomApply", "prob": prob, "tfm_or_aug": augmentation}


def _pad_value(cfg: Any, channels: int) -> list[float]:
    """Return the model's mean color, which it sees as 0; gray if it is not in levels."""
    keys = yacs_model(cfg.model)
    mean = cfg.model.get("pixel_mean") if keys is None else keys.PIXEL_MEAN
    if _is_list(mean) and len(mean) == channels and max(mean) > 1:
        return [float(level) for level in mean]
    return [_GRAY] * channels


def _call(field: str, entry: Any) -> Any:
    """Return an entry of the user's list; raise a UserError if it is not a call."""
    if not hasattr(entry, "get") or "_target_" not in entry:
        raise UserError(
            f"{field}={entry!r}: takes a dict with the _target_ of an augmentation, or the name of"
            f" a preset ({', '.join(PRESETS)})"
        )
    return entry


def _check_built(field: str, node: Any) -> None:
    """Raise a UserError if an entry is not an augmentation or has wrong arguments."""
    import detectron2.data.transforms as T
    from detectron2.config import instantiate
    from detectron2.utils.registry import locate

    target = node.get("_target_")
    if isinstance(target, str):
        try:
            locate(target)
        except pydoc.ErrorDuringImport as e:  # the module exists
            raise UserError(
                f"{field}._target_={target}: its module cannot be imported:"
                f" {str(e).splitlines()[0]}; fix the module"
            ) from None
        except Exception:  # raised by the import of any module
            raise UserError(
                f"{field}._target_={target} cannot be imported; give the full name of a class, such"
                f" as {_OURS}color.ColorJitter"
            ) from None
    with config_errors(field):
        made = instantiate(node)
    if not isinstance(made, T.Augmentation | T.Transform):
        remedy = "give a Detectron2 Augmentation or Transform"
        if target_name(target) == _COPY_PASTE["_target_"]:
            remedy = f"set {_PASTE} instead, because it needs two samples"
        elif type(made).__module__.partition(".")[0] == "albumentations":
            remedy = f"put it into the transforms of {_OURS}pipeline.AlbumentationsPipeline"
        raise UserError(f"{field}: {_name(node)} makes a {type(made).__name__}; {remedy}")


def _why_no_paste(cfg: Any) -> str:
    """Return why a preset does not turn on copy-paste; "" if it does."""
    if not returns_masks(cfg.model):
        return "the model has no masks"
    if not _reads_masks(cfg):
        return f"{_MAPPER}.use_instance_mask is False"
    if target_name(cfg.dataloader.train.get("_target_")) != _LOADER:
        return "dataloader.train is a loader of the config's own"
    return ""


def _reads_masks(cfg: Any) -> bool:
    """Return whether the training mapper reads masks, for a model that is trained on them."""
    return returns_masks(cfg.model) and bool(cfg.dataloader.train.mapper.get("use_instance_mask"))


def sets_size(augmentation: Any) -> bool:
    """Return whether an augmentation of a config sets the size of images, by its name."""
    return any(part in _name(node) for node in _nodes(augmentation) for part in _SIZES)


def _loosens_boxes(augmentations: Any) -> bool:
    """Return whether boxes become larger than their objects in augmented images."""
    return any(part in _name(node) for node in _nodes(augmentations) for part in _LOOSENING)


def _described(node: Any) -> str:
    """Return the name of an augmentation, with the share of the images that it is applied to."""
    name, inner = _name(node), node.get("tfm_or_aug") if hasattr(node, "get") else None
    if name == "RandomApply" and inner is not None:
        return f"{_name(inner)} ({_percent(node.get('prob', 0.5))})"
    return name


def _percent(share: float) -> str:
    return f"{100 * share:g} %"


def _name(node: Any) -> str:
    """Return the name of the class of an augmentation, which is a lazy call or an object."""
    target = node.get("_target_", "") if hasattr(node, "get") else type(node)
    return target_name(target).rpartition(".")[2]


def _nodes(node: Any) -> Iterator[Any]:
    """Yield an augmentation and those inside of it."""
    if _is_list(node):
        for inner in node:
            yield from _nodes(inner)
    elif hasattr(node, "get"):
        if "_target_" in node:
            yield node
        for inner in node.values():
            if _is_list(inner) or hasattr(inner, "get"):
                yield from _nodes(inner)
    elif not isinstance(node, str | int | float | bool | None):
        yield node


def _is_list(value: Any) -> bool:
    from omegaconf import ListConfig

    return isinstance(value, ListConfig | list | tuple)
