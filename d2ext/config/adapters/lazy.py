"""Turn a LazyConfig with Detectron2's sections into one with d2ext's, in place.

Keys that Detectron2 and d2ext share keep their names, so that overrides work as in Detectron2.
"""

import math
from collections.abc import Collection
from typing import Any

from d2ext.config.adapters.evaluators import translate_evaluators
from d2ext.config.check import target_name
from d2ext.config.flatten import flatten
from d2ext.config.model_kind import meta_architecture
from d2ext.config.options import WRITERS, TrainOptions, train_options

SECTIONS = ("model", "dataloader", "optimizer", "lr_multiplier", "train")
_WORLD_SIZE = 8  # GPUs that Detectron2's configs are written for
DATASET = "detectron2.data.build.get_detection_dataset_dicts"
_TRAIN = "detectron2.data.build.build_detection_train_loader"
_TEST = "detectron2.data.build.build_detection_test_loader"
_DETREX = ("clip_grad", "model_ema", "wandb")  # sections of detrex's `train`
_ARGUMENTS = ("train.ddp", "train.compile")  # sections that may hold other arguments
_SAMPLERS = "detectron2.data.samplers.distributed_sampler."


def is_detectron2s(cfg: Any) -> bool:
    """Return whether a config has all sections of Detectron2's, but not those of d2ext."""
    return all(name in cfg for name in SECTIONS) and not {"datasets", "evaluators"} & set(cfg)


def adapt(cfg: Any) -> None:
    """Turn a config with Detectron2's sections into one of d2ext, in place.

    The section `origin` lists what changed: `format` (of the file), `changes`, and `ignored`, the
    keys that have no meaning in d2ext.

    Args:
        cfg: DictConfig with the sections `model`, `dataloader`, `optimizer`, `lr_multiplier` and
            `train`; it may have an `origin`, to which lines are added.
    """
    origin = cfg.get("origin") or {
        "format": "Detectron2's LazyConfig",
        "changes": [],
        "ignored": [],
    }
    changes, ignored = list(origin["changes"]), list(origin["ignored"])
    _adapt_train(cfg, changes, ignored)
    _adapt_train_loader(cfg, changes, ignored)
    _adapt_test_loader(cfg, changes, ignored)
    proposals_only = meta_architecture(cfg.model) == "ProposalNetwork"
    evaluators, lines = translate_evaluators(cfg.dataloader.get("evaluator"), proposals_only)
    cfg.dataloader.pop("evaluator", None)
    cfg.evaluators = evaluators
    changes += lines
    cfg.datasets = {}
    if "device" in cfg.model:
        changes.append(f"model.device={cfg.model.device} follows train.device")
    cfg.origin = {"format": origin["format"], "changes": changes, "ignored": ignored}


def _adapt_train(cfg: Any, changes: list[str], ignored: list[str]) -> None:
    """Translate `train`: missing keys get d2ext's defaults, and keys that it lacks are listed.

    These keys stay, because other sections may refer to them.
    """
    from omegaconf import OmegaConf

    theirs = cfg.train
    translated = _translated(theirs)
    defaults = OmegaConf.create(TrainOptions().as_dict(), flags={"allow_objects": True})
    cfg.train = OmegaConf.merge(defaults, theirs)
    for key, (name, value) in translated.items():
        cfg.train[name] = value
        changes.append(f"train.{key} -> train.{name}={value}")
    disabled = [key for key in _DETREX if not _section(theirs, key).get("enabled", theirs.get(key))]
    ignored += _unknown_keys(theirs, {*translated, *disabled})
    if directory := cfg.train.output_dir:
        cfg.train.output_dir = None
        changes.append(f"train.output_dir={directory} is not used; set it, or --work-dir")
    fraction = cfg.lr_multiplier.get("warmup_length") or 0
    if fraction and cfg.train.warmup_iters is None and cfg.train.max_iter:
        cfg.train.warmup_iters = round(fraction * cfg.train.max_iter)
    if cfg.train.amp.enabled is True:
        cfg.train.amp.enabled = "auto"
        changes.append("train.amp.enabled=auto: mixed precision on a GPU, float32 on the CPU")


def _translated(theirs: Any) -> dict[str, tuple[str, Any]]:
    """Return, by key of detrex's `train`, d2ext's key and value."""
    clip, average, wandb = (_section(theirs, key) for key in _DETREX)
    made: dict[str, tuple[str, Any]] = {}
    norm = _section(clip, "params")
    if clip.get("enabled") and norm.get("max_norm") and norm.get("norm_type", 2) == 2:
        made["clip_grad"] = "clip_grad_norm", norm.max_norm
    if average.get("enabled") and average.get("decay"):
        made["model_ema"] = "ema_decay", average.decay
    if wandb.get("enabled"):
        project = _section(wandb, "params").get("project")
        writer = {"_target_": WRITERS["wandb"], "project": project} if project else "wandb"
        made["wandb"] = "writers", ["tensorboard", writer]
    if isinstance(seed := theirs.get("seed"), int) and seed < 0:  # random
        made["seed"] = "seed", TrainOptions().seed
    return made


def _section(node: Any, key: str) -> Any:
    """Return a section of a config, or {} for a key that is absent or holds something else."""
    value = node.get(key)
    return value if hasattr(value, "get") else {}


def _unknown_keys(theirs: Any, translated: Collection[str]) -> list[str]:
    """Return the keys of `train` that have no meaning in d2ext, each section as one."""
    from omegaconf import OmegaConf

    known = train_options()
    unknown: dict[str, None] = {}
    for key, _ in flatten(OmegaConf.to_container(theirs, resolve=False), "train"):
        top = ".".join(key.split(".")[:2])
        if key in known or top in _ARGUMENTS or top.removeprefix("train.") in translated:
            continue
        unknown[key if top in known else top] = None
    return list(unknown)


def _adapt_train_loader(cfg: Any, changes: list[str], ignored: list[str]) -> None:
    loader = cfg.dataloader.get("train")
    if not hasattr(loader, "get"):  # reported by `check_config`
        return
    batch = loader.get("total_batch_size")
    if isinstance(batch, int):
        source = f"total_batch_size={batch}"
        if cfg.train.reference_world_size is None:
            cfg.train.reference_world_size = math.gcd(_WORLD_SIZE, batch)
        else:
            source = "SOLVER.REFERENCE_WORLD_SIZE and SOLVER.IMS_PER_BATCH"
        cfg.train.reference_batch_size = batch
        loader.total_batch_size = "${train.reference_batch_size}"
        changes.append(
            f"reference: {cfg.train.reference_world_size} workers, {batch} images per step"
            f" (inferred from {source})"
        )
    field = "dataloader.train"
    if problem := _why_custom(loader, _TRAIN):
        changes.append(
            f"{field} runs unchanged ({problem}): a resumed run repeats its data from the start,"
            " and images depend on the number of processes"
        )
        return
    sampled = _sampling(loader)
    if sampled is None:
        name = target_name(loader.sampler.get("_target_"))
        changes.append(f"{field} runs unchanged ({name}): a resumed run repeats its data")
        return
    loader["_target_"] = "d2ext.data.loading.loader.build_train_loader"
    loader.pop("collate_fn", None)
    known = ("_target_", "dataset", "mapper", "total_batch_size", "num_workers")
    for key in [key for key in loader if key not in (*known, "aspect_ratio_grouping")]:
        loader.pop(key)
        ignored.append(f"{field}.{key}")
    if target_name(loader.dataset.get("_target_")) == DATASET:
        loader.dataset["_target_"] = "d2ext.data.datasets.mixing.training_set"
        loader.dataset.pop("check_consistency", None)
        loader.dataset.update(sampled)
    loader.setdefault("num_workers", 0)
    for key in ("seed", "accumulate", "bad_images", "reference_batch_size", "reference_world_size"):
        loader[key] = f"${{train.{key}}}"
    changes.append(f"{field} -> d2ext's loader with the same mapper (exact resume)")


def _sampling(loader: Any) -> dict[str, Any] | None:
    """Remove the sampler of a training loader; return the arguments of `training_set` for it.

    Returns:
        The arguments, or None for a sampler that d2ext has no equivalent of, which stays.
    """
    sampler = loader.get("sampler")
    if sampler is None:
        loader.pop("sampler", None)
        return {}
    name = target_name(sampler.get("_target_")).removeprefix(_SAMPLERS)
    factors = sampler.get("repeat_factors")
    made: dict[str, Any] | None = None
    if name == "TrainingSampler" and sampler.get("shuffle", True):
        made = {}
    elif name == "RandomSubsetTrainingSampler" and sampler.get("shuffle", True):
        made = {"subset": sampler.subset_ratio}
    elif name == "RepeatFactorTrainingSampler" and "repeat_thresh" in (factors or {}):
        if factors.get("sqrt", True):
            made = {"oversample_threshold": factors.repeat_thresh}
    if made is not None:
        del loader["sampler"]
    return made


def _adapt_test_loader(cfg: Any, changes: list[str], ignored: list[str]) -> None:
    field, loader = "dataloader.test", cfg.dataloader.get("test")
    cfg.dataloader.val = None if loader is None else "${dataloader.test}"
    if loader is None:
        cfg.dataloader.test = None
        return
    if problem := _why_custom(loader, _TEST):
        changes.append(f"{field} runs unchanged ({problem})")
        return
    loader["_target_"] = "d2ext.data.loading.loader.build_test_loader"
    known = ("_target_", "dataset", "mapper", "num_workers")
    for key in [key for key in loader if key not in known]:
        if loader.pop(key) is not None:
            ignored.append(f"{field}.{key}")
    if target_name(loader.dataset.get("_target_")) == DATASET:
        loader.dataset["_target_"] = "d2ext.data.datasets.mixing.evaluation_set"
        loader.dataset.setdefault("filter_empty", True)  # Detectron2's default
        for key in ("check_consistency", "min_keypoints"):
            if loader.dataset.pop(key, None):
                ignored.append(f"{field}.dataset.{key}")
    loader.setdefault("num_workers", 0)
    loader.bad_images = "${train.bad_images}"


def _why_custom(loader: Any, detectron2s: str) -> str | None:
    """Return why d2ext's loader cannot replace one, or None."""
    name = target_name(loader.get("_target_"))
    if name != detectron2s:
        return name.removeprefix("None.")  # functions of a config file have no module
    if loader.get("collate_fn") is not None:
        return "it has a collate_fn"
    return None if loader.get("mapper") and loader.get("dataset") else "it has no mapper"
