"""Train any config on your own data: `data.train.json=...` in the overrides."""

from collections.abc import Sequence
from typing import Any

from d2ext.config.adapters.lazy import DATASET
from d2ext.config.check import target_name
from d2ext.config.num_classes import class_fields, follow_classes
from d2ext.errors import UserError

_WHOLE = ("data.json=", "data.images=")  # one file, which is split
_KEYS = (*_WHOLE, "data.train.", "data.val.")
TRAIN, VAL = "custom_train", "custom_val"
_OWN = {"train": TRAIN, "val": VAL, "test": VAL}
_METRICS = "d2ext.evaluation."
_SEMANTIC = "model.roi_heads.semantic"  # SCNet's branch
# Metrics and evaluators that need the annotations of a certain dataset.
_FOR_OTHERS = (f"{_METRICS}lvis.", f"{_METRICS}cityscapes.", "detectron2.evaluation.")
_COCO = "detectron2.evaluation.coco_evaluation.COCOEvaluator"  # also for proposals, on any dataset


def names_own_data(overrides: Sequence[str]) -> bool:
    """Return whether overrides set keys of `data` that name the user's own files."""
    return any(text.lstrip("+").startswith(_KEYS) for text in overrides)


def splits_own_data(cfg: Any) -> bool:
    """Return whether a config splits the file `data.json` into training and validation.

    Raises:
        UserError: Another file for training, or a folder for validation without a file, is given
            as well.
    """
    from omegaconf import OmegaConf

    data: Any = cfg.get("data") or {}
    if not data.get("json"):
        return False
    # Unless overridden, the files of both sets are interpolations of `data.json`.
    if not OmegaConf.is_interpolation(data.train, "json"):
        raise UserError(
            f"data.json={data.json} and data.train.json={data.train.json} are both given; give"
            " data.json alone to split it, or data.train.json and data.val.json"
        )
    splits = OmegaConf.is_interpolation(data.val, "json")
    if splits and data.val.images != data.images:
        raise UserError(
            f"data.val.images={data.val.images} needs a file for validation, because data.json="
            f"{data.json} is split, with all images in data.images={data.images}; give"
            " data.val.json=FILE as well, or leave data.val.images out"
        )
    return splits


def use_own_data(cfg: Any, template: Any, overrides: Sequence[str]) -> None:
    """Exchange the datasets of a config for the user's own, in place.

    The loaders read `custom_train` and `custom_val`, all class counts follow the data, and metrics
    that belong to another dataset are replaced by COCO's. `origin.changes` lists what changed.

    Args:
        cfg: Config with d2ext's sections; nothing changes if it already reads its own `data`.
        template: The variables of `configs/common/data/custom.py`.
        overrides: Overrides, which decide whether only the validation set is exchanged.
    """
    from omegaconf import OmegaConf

    if "train" in (cfg.get("data") or {}):
        return
    training = (*_WHOLE, "data.train.")
    trains = any(text.lstrip("+").startswith(training) for text in overrides)
    changes: list[str] = []
    before = _names(cfg)
    if trains and (count := _class_count(cfg)):
        changes += follow_classes(cfg.model, count)
    insists = any(text.lstrip("+").startswith(f"{_SEMANTIC}=") for text in overrides)
    if trains and OmegaConf.select(cfg, _SEMANTIC) and not insists:
        OmegaConf.update(cfg, _SEMANTIC, False)
        changes.append(f"{_SEMANTIC}=False: your data has no label maps ({_SEMANTIC}=True insists)")
    for split, name in _OWN.items():
        loader = cfg.dataloader.get(split)
        same = OmegaConf.is_interpolation(cfg.dataloader, split)  # val, where it is the test loader
        if loader and not same and (trains or split != "train"):
            changes += _exchange(loader, f"dataloader.{split}", name)
    for name in before - _names(cfg):  # their files may be missing
        cfg.datasets.pop(name, None)
    cfg.datasets = OmegaConf.merge(cfg.datasets, template.datasets)
    cfg.data = OmegaConf.merge(template.data, cfg.get("data") or {})
    changes += _exchange_metrics(cfg)
    origin = cfg.get("origin") or {"format": "", "changes": [], "ignored": []}
    cfg.origin = {**origin, "changes": [*origin["changes"], *dict.fromkeys(changes)]}


def _names(cfg: Any) -> set[str]:
    """Return the names of the datasets that the loaders read."""
    from omegaconf import OmegaConf

    found: set[str] = set()
    for split in _OWN:
        names = OmegaConf.select(cfg, f"dataloader.{split}.dataset.names") or []
        found |= {names} if isinstance(names, str) else set(names)
    return found


def _exchange(loader: Any, field: str, name: str) -> list[str]:
    """Make a loader read the dataset `name`."""
    made = "training_set" if name == _OWN["train"] else "evaluation_set"
    target = target_name(loader.get("_target_"))
    dataset = loader.get("dataset")
    source = target_name(dataset.get("_target_")) if hasattr(dataset, "get") else ""
    before = dataset.get("names") if hasattr(dataset, "get") else None
    if target.startswith("d2ext.") and not source.endswith(f".{made}"):
        loader.dataset = {"_target_": f"d2ext.data.datasets.mixing.{made}"}
    elif not target.startswith("d2ext.") and source != DATASET:
        name_of = target.removeprefix("None.")
        raise UserError(
            f"data.*.json: {field} is a loader of the config ({name_of}), whose data d2ext cannot"
            " replace; use build_detection_train_loader with"
            " get_detection_dataset_dicts, or change the datasets in the config"
        )
    loader.dataset.names = name
    for key in ("repeat", "proposal_files"):
        loader.dataset.pop(key, None)
    if (loader.get("mapper") or {}).get("keypoint_hflip_indices") is not None:
        loader.mapper.keypoint_hflip_indices = {
            "_target_": "d2ext.data.datasets.keypoints.flip_indices",
            "dataset_names": name,
        }
    return [f"{field}.dataset.names: {before} -> {name}"]


def _class_count(cfg: Any) -> int | None:
    """Return the class count of the datasets that a config was written for; None if unknown."""
    from detectron2.data import MetadataCatalog
    from omegaconf import OmegaConf

    names = OmegaConf.select(cfg, "dataloader.train.dataset.names") or []
    for name in [names] if isinstance(names, str) else names:
        declared = (cfg.datasets.get(name) or {}).get("classes")
        classes = declared or MetadataCatalog.get(name).get("thing_classes")
        if classes:
            return len(classes)
    # Unknown until the dataset is read; a model's heads agree, except for class-agnostic ones.
    return max((n for _, n in class_fields(cfg.model, "model") if isinstance(n, int)), default=None)


def _exchange_metrics(cfg: Any) -> list[str]:
    """Replace metrics that need another dataset's annotations by COCO's."""
    lines = []
    for name, node in list(cfg.evaluators.items()):
        target = target_name(node.get("_target_")) if "_target_" in node else ""
        if target.startswith(_FOR_OTHERS) and target != _COCO:
            del cfg.evaluators[name]
            lines.append(f"evaluators.{name} ({target.rpartition('.')[2] or name}) is removed")
        elif node.get("hierarchy_file"):  # of Open Images' classes
            node.hierarchy_file = None
            lines.append(f"evaluators.{name}.hierarchy_file is removed")
    if not cfg.evaluators:
        cfg.evaluators.coco = {"_target_": f"{_METRICS}coco.CocoMetric"}
        lines.append("evaluators.coco is added")
    best = cfg.train.best.get("metric") if "best" in cfg.train else None
    if best and not any(f"{name}/" in best for name in cfg.evaluators):
        cfg.train.best.metric = None
        lines.append(f"train.best.metric={best} is removed")
    return lines
