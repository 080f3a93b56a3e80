"""Bring the spellings of MMDetection 2.x to those of 3.x."""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from d2ext.config.mmdetection.fields import Outcome

_OF_RUNNERS = ("type", "max_epochs", "max_iters", "val_interval")  # in `train_cfg` since 3.0
# Metrics of 2.x by dataset; `evaluation` names COCO's.
_METRICS: dict[str, dict[str, Any]] = {
    "VOCDataset": {"type": "VOCMetric", "metric": "mAP"},
    "XMLDataset": {"type": "VOCMetric", "metric": "mAP"},
    "OpenImagesDataset": {"type": "OpenImagesMetric"},
    "OpenImagesChallengeDataset": {"type": "OpenImagesMetric"},
}
_BACKENDS = {
    "TensorboardLoggerHook": "TensorboardVisBackend",
    "WandbLoggerHook": "WandbVisBackend",
    "MMDetWandbHook": "WandbVisBackend",
    "MlflowLoggerHook": "MLflowVisBackend",
    "TextLoggerHook": "LocalVisBackend",
}
# Fields of `lr_config` by those of the schedulers that they became.
_WARMUP = {
    **{"type": "warmup", "start_factor": "warmup_ratio", "factor": "warmup_ratio"},
    **{"end": "warmup_iters", "by_epoch": "warmup_by_epoch"},
}
_POLICY = {
    **{"type": "policy", "milestones": "step", "gamma": "gamma", "power": "power"},
    **{"eta_min": "min_lr", "eta_min_ratio": "min_lr_ratio", "by_epoch": "by_epoch"},
}
_PACKED = ("DefaultFormatBundle", "Collect", "ImageToTensor")


@dataclass
class Spelling:
    """A config in the spelling of 3.x.

    Attributes:
        values: The config.
        names: Original names of the fields that moved, by their new name; those inside a moved
            field moved with it. "" for a field that the original does not have.
        given: The config as it was written.
        done: Outcomes, and the reasons, of fields of the original that the result does not have.
    """

    values: dict[str, Any]
    names: dict[str, str] = field(default_factory=dict)
    given: Mapping[str, Any] = field(default_factory=dict)
    done: dict[str, tuple[Outcome, str]] = field(default_factory=dict)

    def original(self, name: str) -> str:
        """Return the original name of a field; "" if the original does not have it."""
        parts = name.split(".")
        for i in range(len(parts), 0, -1):
            before = self.names.get(".".join(parts[:i]))
            if before is not None:
                return ".".join([before, *parts[i:]]) if before else ""
        return name

    def written(self, old: str) -> tuple[str, Any]:
        """Return the name and the value of a field in the original; "" if it does not have it.

        Args:
            old: Its original name. If a value became a section, fields in it have the value's name.
        """
        found: list[str] = []
        value: Any = self.given
        for part in old.split("."):
            if isinstance(value, Mapping) and part in value:
                value = value[part]
            elif isinstance(value, list | tuple) and part.isdigit() and int(part) < len(value):
                value = value[int(part)]
            else:
                return ("", None) if isinstance(value, Mapping) else (".".join(found), value)
            found.append(part)
        return ".".join(found), value

    def record(self, name: str, outcome: Outcome, text: str) -> None:
        """Record the outcome of a field of the original that the result does not have."""
        if name:
            self.done[name] = (outcome, text)

    def move(self, old: str, new: str) -> None:
        """Move a field; nothing happens if there is none, or if it is None."""
        owner, name = _owner(self.values, old)
        if owner is None or owner.get(name) is None:
            return
        self.add(new, owner.pop(name), old)

    def add(self, new: str, value: Any, old: str = "") -> None:
        """Add a field that stands for one of the original.

        Args:
            new: Its name.
            value: Its value.
            old: Name of the original field; "" for a field that the original does not have.
        """
        target = self.values
        *parents, name = new.split(".")
        for parent in parents:
            if not isinstance(target.get(parent), dict):
                target[parent] = {}
            target = target[parent]
        target[name] = value
        self.names[new] = self.original(old) if old else ""


def spelled(values: Mapping[str, Any]) -> Spelling:
    """Return a config in the spelling of MMDetection 3.x.

    Args:
        values: Result of `read_config`, in the spelling of 2.x or 3.x.
    """
    spelling = Spelling(dict(copy.deepcopy(values)), given=values)
    given = spelling.values
    for name in ("train_cfg", "test_cfg"):  # in 2.x, those of the model
        section = given.get(name)
        if isinstance(section, dict) and section and not set(section) & set(_OF_RUNNERS):
            spelling.move(name, f"model.{name}")
    if isinstance(given.get("model"), dict) and given["model"].get("pretrained"):
        checkpoint = given["model"].pop("pretrained")
        init = {"type": "Pretrained", "checkpoint": checkpoint}
        spelling.add("model.backbone.init_cfg", init, "model.pretrained")
        spelling.record("model.backbone.init_cfg", "unused", "see model.pretrained")
    for section in ("model.train_cfg.rpn_proposal", "model.test_cfg.rpn"):
        _spell_proposals(spelling, section)
    if isinstance(given.get("data"), dict):
        _spell_data(spelling)
    _spell_schedule(spelling)
    _spell_runner(spelling)
    return spelling


def _spell_proposals(spelling: Spelling, name: str) -> None:
    """Spell the numbers of proposals and the NMS of early versions of 2.x."""
    owner, key = _owner(spelling.values, f"{name}.type")
    if owner is None:
        return
    for old in ("max_num", "nms_post"):
        if "max_per_img" not in owner:
            spelling.move(f"{name}.{old}", f"{name}.max_per_img")
    if "nms" not in owner and owner.get("nms_thr") is not None:
        spelling.add(f"{name}.nms.type", "nms")
        spelling.move(f"{name}.nms_thr", f"{name}.nms.iou_threshold")


def _spell_data(spelling: Spelling) -> None:
    data = spelling.values["data"]
    evaluated = data.get("val") or data.get("test")
    kind = _dataset_type(evaluated)
    # VOCDataset of 2.x takes the year of its data from `img_prefix`.
    is_2007 = kind == "VOCDataset" and "VOC2007" in repr(evaluated)
    names = ("samples_per_gpu", "workers_per_gpu")
    shared = {name: data.pop(name) for name in names if name in data}
    for split in ("train", "val", "test"):
        loader = f"{split}_dataloader"
        options = data.get(loader)
        if split in data:
            spelling.names[loader] = f"data.{split}"
        spelling.move(f"data.{split}", f"{loader}.dataset")
        for old, new in (("samples_per_gpu", "batch_size"), ("workers_per_gpu", "num_workers")):
            if isinstance(options, dict):
                spelling.move(f"data.{loader}.{old}", f"{loader}.{new}")
            found = spelling.values.get(loader)
            if found and old in shared and new not in found:
                spelling.add(f"{loader}.{new}", shared[old], f"data.{old}")
        if isinstance(options, dict):
            for name in list(options):
                spelling.move(f"data.{loader}.{name}", f"{loader}.{name}")
            if not options:
                del data[loader]
        _spell_dataset(spelling, f"{loader}.dataset")
    if "train_dataloader" in spelling.values:  # 2.x always groups images by orientation
        batches = {"type": "AspectRatioBatchSampler"}
        spelling.add("train_dataloader.batch_sampler", batches)
    spelling.move("data.persistent_workers", "train_dataloader.persistent_workers")
    if not data:
        del spelling.values["data"]
    _spell_evaluation(spelling, kind, is_2007)


def _dataset_type(dataset: Any) -> str:
    while isinstance(dataset, dict) and isinstance(dataset.get("dataset"), dict):
        dataset = dataset["dataset"]
    return str(dataset.get("type", "")) if isinstance(dataset, dict) else ""


def _spell_dataset(spelling: Spelling, name: str) -> None:
    """Spell a dataset and those inside it."""
    owner, key = _owner(spelling.values, name)
    dataset = owner.get(key) if owner is not None else None
    if isinstance(dataset, list):  # a list of datasets, to join
        old = spelling.original(name)
        spelling.add(name, {"type": "ConcatDataset", "datasets": dataset})
        spelling.names[f"{name}.datasets"] = old
        dataset = owner[key]  # type: ignore[index]
    if not isinstance(dataset, dict):
        return
    if isinstance(dataset.get("dataset"), dict):
        _spell_dataset(spelling, f"{name}.dataset")
    for i, inner in enumerate(dataset.get("datasets") or []):
        if isinstance(inner, dict):
            # `move` and `add` work on dicts, so the list is one while its items are spelled.
            items = {str(k): value for k, value in enumerate(dataset["datasets"])}
            dataset["datasets"] = items
            _spell_dataset(spelling, f"{name}.datasets.{i}")
            dataset["datasets"] = list(items.values())
    is_voc = str(dataset.get("type", "")).endswith(("VOCDataset", "XMLDataset"))
    prefix = "sub_data_root" if is_voc else "img"
    if isinstance(dataset.get("ann_file"), list | tuple):
        _join_files(spelling, name, dataset, prefix)
        return
    spelling.move(f"{name}.img_prefix", f"{name}.data_prefix.{prefix}")
    spelling.move(f"{name}.seg_prefix", f"{name}.data_prefix.seg")
    if not isinstance(dataset.get("metainfo"), dict):
        spelling.move(f"{name}.classes", f"{name}.metainfo.classes")
    spelling.move(f"{name}.filter_empty_gt", f"{name}.filter_cfg.filter_empty_gt")
    if "dataset" not in dataset and "datasets" not in dataset:
        if not dataset.get("test_mode") and name.startswith("train"):
            filters = dataset.setdefault("filter_cfg", {})
            for key, value in {"filter_empty_gt": True, "min_size": 32}.items():
                if key not in filters:  # the defaults of 2.x
                    spelling.add(f"{name}.filter_cfg.{key}", value)
    if isinstance(dataset.get("pipeline"), list):
        dataset["pipeline"] = _spell_pipeline(spelling, f"{name}.pipeline", dataset["pipeline"])


def _join_files(spelling: Spelling, name: str, dataset: dict, prefix: str) -> None:
    """Make a dataset of several annotation files the join of one dataset for each file."""
    old, files = spelling.original(name), dataset["ann_file"]
    folders = dataset.get("img_prefix")
    parts = []
    for i, file in enumerate(files):
        part = {**copy.deepcopy(dataset), "ann_file": file}
        if isinstance(folders, list | tuple):
            part["img_prefix"] = folders[i]
        parts.append(part)
    spelling.add(name, {"type": "ConcatDataset", "datasets": parts})
    for i in range(len(parts)):
        spelling.names[f"{name}.datasets.{i}"] = old if i == 0 else ""
    _spell_dataset(spelling, name)


def _spell_pipeline(spelling: Spelling, name: str, steps: Sequence[Any]) -> list[Any]:
    """Return a pipeline in the spelling of 3.x, and record the original names."""
    made: list[Any] = []
    old = spelling.original(name)
    for i, step in enumerate(steps):
        _spell_step(spelling, name, _inside(old, i), step, made)
    spelling.names[name] = old
    return made


def _inside(name: str, part: object) -> str:
    """Return the name of a field in another; "" if that one has no name."""
    return f"{name}.{part}" if name else ""


def _spell_step(spelling: Spelling, name: str, old: str, step: Any, made: list[Any]) -> None:
    """Append the steps of 3.x that stand for one of 2.x."""
    if not isinstance(step, dict):
        made.append(step)
        return
    kind, step = str(step.get("type", "")), dict(step)
    if kind == "MultiScaleFlipAug":
        scale = _inside(old, "img_scale")
        spelling.record(
            _inside(old, "type"), "set", "dataloader.val, and dataloader.tta with --tta"
        )
        for key in ("flip", "flip_direction"):
            text = "images are not flipped; --tta evaluates with dataloader.tta"
            spelling.record(_inside(old, key), "differs" if step.get("flip") else "unused", text)
        for k, part in enumerate(step.get("transforms") or []):
            inner, kind = _inside(old, f"transforms.{k}"), part.get("type")
            if kind == "Resize":
                new = f"{name}.{len(made)}"
                part = {**part, "img_scale": step.get("img_scale")}
                _spell_step(spelling, name, inner, part, made)
                spelling.names[f"{new}.scale"] = spelling.names[f"{new}.scales"] = scale
            elif kind == "RandomFlip":
                spelling.record(inner, "unused", f"see {_inside(old, 'flip')}")
            else:
                _spell_step(spelling, name, inner, part, made)
        return
    new = f"{name}.{len(made)}"
    spelling.names[new] = old
    if kind == "Resize":
        made.append(_spell_resize(spelling, new, old, step))
        return
    if kind == "RandomFlip" and "flip_ratio" in step:
        spelling.names[f"{new}.prob"] = _inside(old, "flip_ratio")
        step["prob"] = step.pop("flip_ratio")
    if kind == "Normalize":
        _spell_normalize(spelling, step, old)
        del spelling.names[new]
        return
    if kind == "Pad" and step.get("size_divisor") and isinstance(spelling.values["model"], dict):
        divisor = step["size_divisor"]
        spelling.add("model.data_preprocessor.pad_size_divisor", divisor)
    made.append({**step, "type": "PackDetInputs"} if kind in _PACKED else step)


def _spell_resize(spelling: Spelling, new: str, old: str, step: dict) -> dict:
    """Return a Resize of 2.x as Resize, RandomResize or RandomChoiceResize."""
    scale = step.pop("img_scale", None)
    mode = step.pop("multiscale_mode", "range")
    spelling.names[f"{new}.scale"] = spelling.names[f"{new}.scales"] = _inside(old, "img_scale")
    spelling.record(_inside(old, "multiscale_mode"), "set", f"see {_inside(old, 'img_scale')}")
    step.setdefault("keep_ratio", True)  # False in 3.x
    if "ratio_range" in step and step["ratio_range"] is not None:
        return {**step, "type": "RandomResize", "scale": scale}
    several = isinstance(scale, list) and len(scale) > 1
    if isinstance(scale, list) and len(scale) == 1:
        scale = scale[0]
    if not several:
        return {**step, "scale": scale} if scale is not None else step
    if mode == "value":
        return {**step, "type": "RandomChoiceResize", "scales": scale}
    return {**step, "type": "RandomResize", "scale": scale}


def _spell_normalize(spelling: Spelling, step: dict, old: str) -> None:
    """Move the normalization to the model, where it is since 3.0."""
    if not isinstance(spelling.values.get("model"), dict):
        return
    preprocessor = "model.data_preprocessor"
    if not spelling.values["model"].get("data_preprocessor"):
        spelling.add(preprocessor, {"type": "DetDataPreprocessor"})
        spelling.record(preprocessor, "unused", "the pipelines normalize images")
    made = spelling.values["model"]["data_preprocessor"]
    spelling.record(_inside(old, "type"), "unused", "the model normalizes images")
    for name, its in (("mean", "mean"), ("std", "std"), ("to_rgb", "bgr_to_rgb")):
        value, field_name = step.get(name, True if name == "to_rgb" else None), _inside(old, name)
        if value is not None and its not in made:
            spelling.add(f"{preprocessor}.{its}", value)
            spelling.names[f"{preprocessor}.{its}"] = field_name
        elif value == made.get(its):
            spelling.record(field_name, "set", "the model normalizes all images alike")
        else:
            text = f"the model normalizes all images with {name}={made.get(its)}"
            spelling.record(field_name, "differs", text)


def _spell_evaluation(spelling: Spelling, kind: str, is_2007: bool) -> None:
    """Turn `evaluation` into evaluators, `val_interval` and `save_best`."""
    given = spelling.values.get("evaluation")
    evaluation = given if isinstance(given, dict) else {}
    if "val_dataloader" in spelling.values or "test_dataloader" in spelling.values:
        default = {"type": "CocoMetric", "metric": "bbox"}
        metric = dict(_METRICS.get(kind, default))
        if metric["type"] == "VOCMetric":
            metric["eval_mode"] = "11points" if is_2007 else "area"
        names = evaluation.get("metric", [])
        names = [names] if isinstance(names, str) else list(names)
        evaluators: list[dict] = [metric]
        if kind == "CityscapesDataset" and "cityscapes" in names:
            names.remove("cityscapes")
            evaluators.append({"type": "CityScapesMetric"})
        if metric["type"] == "CocoMetric" and names:
            metric["metric"] = names
        for name in ("val_evaluator", "test_evaluator"):
            made = copy.deepcopy(evaluators)
            spelling.add(name, made[0] if len(made) == 1 else made)
        at = "val_evaluator" if len(evaluators) == 1 else "val_evaluator.0"
        if "metric" in evaluation:
            spelling.names[f"{at}.metric"] = "evaluation.metric"
    if evaluation:
        evaluation.pop("metric", None)
        spelling.move("evaluation.interval", "train_cfg.val_interval")
        best = evaluation.get("save_best")
        spelling.move("evaluation.save_best", "default_hooks.checkpoint.save_best")
        if isinstance(best, str) and best.startswith(("bbox", "segm")):
            spelling.values["default_hooks"]["checkpoint"]["save_best"] = f"coco/{best}"
        if not evaluation:
            del spelling.values["evaluation"]


def _spell_schedule(spelling: Spelling) -> None:
    """Spell `optimizer`, `optimizer_config`, `fp16` and `lr_config`."""
    given = spelling.values
    if isinstance(given.get("optimizer"), dict):
        spelling.move("optimizer.paramwise_cfg", "optim_wrapper.paramwise_cfg")
        spelling.move("optimizer", "optim_wrapper.optimizer")
    config = given.get("optimizer_config")
    if isinstance(config, dict):
        spelling.move("optimizer_config.grad_clip", "optim_wrapper.clip_grad")
        spelling.move("optimizer_config.cumulative_iters", "optim_wrapper.accumulative_counts")
        if not any(value is not None for value in config.values()):
            for name in given.pop("optimizer_config"):
                spelling.record(f"optimizer_config.{name}", "unused", "None is the default")
            spelling.add("optim_wrapper.type", "OptimWrapper")
    if isinstance(given.get("fp16"), dict):
        spelling.add("optim_wrapper.type", "AmpOptimWrapper", "" if given["fp16"] else "fp16")
        spelling.move("fp16.loss_scale", "optim_wrapper.loss_scale")
        if not given["fp16"]:
            del given["fp16"]
    policy = given.get("lr_config")
    if isinstance(policy, dict) and (made := _schedulers(policy)):
        del given["lr_config"]
        spelling.add("param_scheduler", made, "lr_config")
        for i, scheduler in enumerate(made):
            names = _WARMUP if scheduler["type"] in ("LinearLR", "ConstantLR") else _POLICY
            for name in scheduler:
                old = names.get(name)
                given_name = f"lr_config.{old}" if old in policy else ""
                spelling.names[f"param_scheduler.{i}.{name}"] = given_name


def _schedulers(policy: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the schedulers of 3.x for `lr_config`; none for a policy that 3.x does not have."""
    by_epoch = policy.get("by_epoch", True)
    made: list[dict[str, Any]] = []
    if policy.get("warmup"):
        kind = {"linear": "LinearLR", "constant": "ConstantLR"}.get(policy["warmup"])
        if kind is None:
            return []
        factor = "start_factor" if kind == "LinearLR" else "factor"
        end = policy.get("warmup_iters", 0)
        start = {factor: policy.get("warmup_ratio", 0.1), "begin": 0, "end": end}
        made.append({"type": kind, "by_epoch": policy.get("warmup_by_epoch", False), **start})
    main: dict[str, Any]
    name = str(policy.get("policy", "")).lower()
    if name == "step":
        steps = policy.get("step", [])
        milestones = [steps] if isinstance(steps, int) else list(steps)
        main = {"type": "MultiStepLR", "milestones": milestones, "gamma": policy.get("gamma", 0.1)}
    elif name in ("cosineannealing", "cosine"):
        main = {"type": "CosineAnnealingLR"}
        if policy.get("min_lr_ratio") is not None:
            main["eta_min_ratio"] = policy["min_lr_ratio"]
        else:
            main["eta_min"] = policy.get("min_lr", 0)
    elif name == "poly":
        main = {"type": "PolyLR", "power": policy.get("power", 1.0)}
        main["eta_min"] = policy.get("min_lr", 0)
    elif name == "fixed":
        return made
    else:
        return []
    return [*made, {**main, "by_epoch": by_epoch}]


def _spell_runner(spelling: Spelling) -> None:
    """Spell `runner`, hooks, loggers, `dist_params`, `resume_from` and seeds."""
    given = spelling.values
    runner = given.get("runner")
    if isinstance(runner, dict):
        loops = {"EpochBasedRunner": "EpochBasedTrainLoop", "IterBasedRunner": "IterBasedTrainLoop"}
        kind = loops.get(str(runner.get("type")))
        for name in ("max_epochs", "max_iters"):
            spelling.move(f"runner.{name}", f"train_cfg.{name}")
        if kind:
            del runner["type"]
            spelling.add("train_cfg.type", kind, "runner.type")
        if not runner:
            del given["runner"]
    for old, loop in (("max_epochs", "EpochBased"), ("max_iters", "IterBased")):
        total = {"max_epochs": "total_epochs", "max_iters": "total_iters"}[old]
        if isinstance(given.get(total), int) and "runner" not in given:
            spelling.move(total, f"train_cfg.{old}")
            spelling.add("train_cfg.type", f"{loop}TrainLoop")
    if isinstance(given.get("checkpoint_config"), dict):
        for name in list(given["checkpoint_config"]):
            spelling.move(f"checkpoint_config.{name}", f"default_hooks.checkpoint.{name}")
        if not given["checkpoint_config"]:
            del given["checkpoint_config"]
    log = given.get("log_config")
    if isinstance(log, dict):
        spelling.move("log_config.interval", "default_hooks.logger.interval")
        hooks = log.get("hooks")
        kinds = [str(h.get("type")) if isinstance(h, dict) else "" for h in hooks or []]
        if hooks is not None and all(kind in _BACKENDS for kind in kinds):
            log.pop("hooks")
            made = [{"type": _BACKENDS[kind]} for kind in kinds]
            spelling.add("vis_backends", made, "log_config.hooks")
        if not log:
            del given["log_config"]
    spelling.move("dist_params", "env_cfg.dist_cfg")
    if given.get("resume_from"):
        spelling.add("resume", True, "resume_from")
        if "load_from" in given:
            spelling.record("load_from", "unused", "resume_from replaces it")
        spelling.add("load_from", given.pop("resume_from"), "resume_from")
    elif "resume_from" in given:
        del given["resume_from"]
        spelling.add("resume", False, "resume_from")
    spelling.move("seed", "randomness.seed")
    spelling.move("deterministic", "randomness.deterministic")


def _owner(values: Any, name: str) -> tuple[dict | None, str]:
    """Return the dict that holds a field, None if there is none, and the field's last name."""
    *parents, last = name.split(".")
    for parent in parents:
        values = values.get(parent) if isinstance(values, dict) else None
    return (values if isinstance(values, dict) else None), last
