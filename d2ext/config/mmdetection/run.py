"""Translate optimizer, schedule, runner and hooks of an MMDetection config."""

import inspect
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from d2ext.config.mmdetection.draft import Call, Draft
from d2ext.config.mmdetection.fields import Fields
from d2ext.config.mmdetection.model import initial_weights
from d2ext.errors import UserError

_STEPWISE = "{} changes the rate once per epoch there, and in every iteration here"
_SCHEDULERS = "fvcore.common.param_scheduler"
_PARAMETERS = "detectron2.solver.build.get_default_optimizer_params"
_OPTIMIZERS = (
    *("SGD", "Adam", "AdamW", "Adagrad", "Adadelta", "Adamax", "ASGD", "NAdam", "RAdam"),
    *("RMSprop", "Rprop"),
)
_LONG = 6  # characters of a string that is not in two places by chance
_DEFAULT_WORKERS = 8  # of MMDetection's published configs
_WRITERS = {
    "TensorboardVisBackend": "tensorboard",
    "WandbVisBackend": "wandb",
    "MLflowVisBackend": "mlflow",
}
_RESULTS = {  # their name of a result, and ours
    "coco/bbox_mAP": "coco/bbox/AP",
    "coco/segm_mAP": "coco/segm/AP",
    "coco/bbox_mAP_50": "coco/bbox/AP50",
    "coco/segm_mAP_50": "coco/segm/AP50",
    "coco/bbox_mAP_75": "coco/bbox/AP75",
    "coco/segm_mAP_75": "coco/segm/AP75",
    "pascal_voc/mAP": "voc/bbox/AP50",
    "openimages/mAP": "open_images/bbox/AP",
}
_NO_EFFECT = {
    "default_scope": "a prefix of type names",
    "log_level": "d2ext logs what `--help` describes",
    "log_processor": "metrics.json holds the values of each iteration",
    "val_cfg": "the loop of d2ext",
    "test_cfg": "the loop of d2ext",
    "workflow": "the loop of d2ext",
    "opencv_num_threads": "d2ext sets its own threads",
    "mp_start_method": "d2ext starts its own processes",
    "cudnn_benchmark": "has no effect on the results",
    "gpu_ids": "--num-gpus sets the number of GPUs",
    "device": "--num-gpus and train.device choose the device",
    "launcher": "d2ext train finds the launcher",
    "experiment_name": "the run directory is the name",
    "tta_model": "--tta evaluates with dataloader.tta",
    "tta_pipeline": "--tta evaluates with dataloader.tta",
    "_scope_": "a prefix of type names",
}
# Variables of MMDetection's own files, which other files may leave without use.
_VARIABLES = (
    *("train_pipeline", "test_pipeline", "dataset_type", "data_root", "backend_args"),
    "img_norm_cfg",
)
# Values of EMAHook with which it averages as `train.ema_decay` does.
_EMA_DEFAULTS = {"begin_iter": 0, "begin_epoch": 0, "interval": 1, "update_buffers": False}
_HOOKS_WITHOUT_EFFECT = {
    "NumClassCheckHook": "preflight compares the classes of the model and of the data",
    "CheckInvalidLossHook": "train.bad_loss stops at a NaN or infinite loss",
    "SetEpochInfoHook": "no model here needs the epoch",
    "MemoryProfilerHook": "metrics.json has memory_mb",
}


def translate_run(config: Fields, draft: Draft, checkpoint: str | None, path: Path) -> str:
    """Write the sections `optimizer`, `lr_multiplier` and `train`.

    Args:
        config: Their config, in the spelling of MMDetection 3.x.
        draft: The config that is written.
        checkpoint: File to start from; None takes the one of the config.
        path: Their file, which may say `_8xb2_` in its name or `(8 GPUs) x (2 samples per GPU)`.

    Returns:
        The batch, in words.

    Raises:
        UserError: The optimizer is unknown.
    """
    wrapper = config.section("optim_wrapper")
    rate = _translate_optimizer(wrapper, draft)
    loop = config.section("train_cfg")
    total, by_epoch = _length(loop)
    schedule = _translate_schedule(config.sections("param_scheduler"), total, by_epoch, rate, draft)
    draft.start("train", "common/train.py")
    for field, value in schedule.items():
        draft.set(f"train.{field}", value)
    _translate_loop(loop, total, by_epoch, bool(config.get("val_dataloader")), draft)
    _translate_wrapper(wrapper, draft)
    batch = _translate_batch(config, path, draft)
    _translate_hooks(config, by_epoch, draft)
    _translate_start(config, checkpoint, draft)
    _translate_environment(config, draft)
    for field, why in _NO_EFFECT.items():
        config.unused(field, why)
    return batch


# ---- optimizer


def _translate_optimizer(wrapper: Fields, draft: Draft) -> float:
    """Write the section `optimizer`; return the learning rate."""
    f = wrapper.section("optimizer")
    kind = f.type or "SGD"
    if kind not in _OPTIMIZERS:
        raise UserError(
            f"{f.name('type')}={f.get('type')} is not supported; d2ext imports"
            f" {', '.join(_OPTIMIZERS)}"
        )
    given = _optimizer_arguments(f, kind)
    parameters = _paramwise(wrapper.section("paramwise_cfg"), f)
    if kind == "SGD":
        given = {"momentum": 0, "weight_decay": 0, **given}
        given = {"lr": given.pop("lr", 0.001), **given}
    if kind in ("SGD", "AdamW"):
        draft.start("optimizer", "common/optim.py", kind)
        defaults = {"momentum": 0.9, "weight_decay": 1e-4} if kind == "SGD" else {}
        for name, value in ({"weight_decay": 0.01} | given if kind == "AdamW" else given).items():
            if defaults.get(name) != value:
                draft.set(f"optimizer.{name}", value)
        for name, value in parameters.items():
            if name != "weight_decay_norm" or value != 0.0:
                draft.set(f"optimizer.params.{name}", value)
    else:
        call = Call(f"torch.optim.{kind}", {"params": Call(_PARAMETERS, parameters), **given})
        draft.set("optimizer", call)
    f.became("type", f"optimizer: torch.optim.{kind}")
    for name in given:
        f.became(name, f"optimizer.{name}={given[name]}")
    rate = given.get("lr", 0.001)
    return float(rate) if isinstance(rate, int | float) else 0.001


def _optimizer_arguments(f: Fields, kind: str) -> dict[str, Any]:
    """Return the arguments that the class in `torch.optim` has; others stay unknown.

    Raises:
        UserError: A value is neither a number nor a list of numbers.
    """
    import torch

    parameters = inspect.signature(getattr(torch.optim, kind)).parameters
    given: dict[str, Any] = {}
    for name in f:
        if name not in parameters or name == "params":
            continue
        value = list(f[name]) if isinstance(f[name], tuple) else f[name]
        if value is None and parameters[name].default is None:
            f.became(name, "the default of torch")
        else:
            given[name] = _number(f, name, value)
    return given


def _number(f: Fields, name: str, value: Any) -> Any:
    """Return a number or a list of numbers.

    Raises:
        UserError: The value is something else.
    """
    parts = value if isinstance(value, list) else [value]
    if not all(isinstance(part, int | float) for part in parts):
        raise UserError(f"{f.name(name)}={value!r} is neither a number nor a list of numbers")
    return value


def _paramwise(f: Fields, optimizer: Fields) -> dict[str, Any]:
    """Return the arguments of Detectron2's function for the parameters' groups."""
    for name in ("norm_decay_mult", "bias_lr_mult", "bias_decay_mult"):
        if f.get(name) is not None:
            _number(f, name, f[name])
    made: dict[str, Any] = {"weight_decay_norm": None}
    decay = optimizer.get("weight_decay") or 0
    if f.get("norm_decay_mult") is not None:
        made["weight_decay_norm"] = float(f["norm_decay_mult"] * decay)
    if f.get("bias_lr_mult") is not None:
        made["bias_lr_factor"] = f["bias_lr_mult"]
    if f.get("bias_decay_mult") is not None:
        made["weight_decay_bias"] = float(f["bias_decay_mult"] * decay)
    for theirs, ours in (
        ("norm_decay_mult", "weight_decay_norm"),
        ("bias_lr_mult", "bias_lr_factor"),
        ("bias_decay_mult", "weight_decay_bias"),
    ):
        f.became(theirs, f"optimizer.params.{ours}={made.get(ours)}")
    f.unused("bypass_duplicate", "parameters are never added twice")
    f.differs(list(f), "not supported: these parameters have the rate and decay of the others")
    return made


def _translate_wrapper(wrapper: Fields, draft: Draft) -> None:
    """Translate mixed precision, clipping and accumulation."""
    kind = wrapper.type
    if kind == "AmpOptimWrapper":
        draft.set("train.amp.enabled", "auto")
        dtype = wrapper.get("dtype")
        if dtype in ("float16", "bfloat16"):
            draft.set("train.amp.dtype", dtype)
        wrapper.became(["type", "dtype"], "train.amp.enabled=auto, on a GPU")
        if wrapper.get("loss_scale", "dynamic") == "dynamic":
            wrapper.became("loss_scale", "train.amp.enabled=auto, with a dynamic scale")
        wrapper.differs("loss_scale", "train.amp.enabled=auto, with a dynamic scale")
    elif kind in ("", "OptimWrapper"):
        wrapper.became("type", "the optimizer's step")
    else:
        wrapper.differs("type", f"{kind} is not supported; the optimizer takes plain steps")
    clip = wrapper.section("clip_grad")
    if clip.get("max_norm"):
        draft.set("train.clip_grad_norm", clip["max_norm"])
        clip.became(["type", "max_norm"], f"train.clip_grad_norm={clip['max_norm']}")
        if clip.get("norm_type", 2) == 2:
            clip.became("norm_type", "the L2 norm")
    clip.differs(list(clip), "only the L2 norm of the gradients can be clipped")
    if not clip:
        wrapper.became("clip_grad", "gradients are not clipped")
    count = wrapper.get("accumulative_counts", 1)
    if count != 1:
        draft.set("train.accumulate", count)
    text = f"train.accumulate={count}, in a batch of {count} times as many images"
    wrapper.became("accumulative_counts", text)
    wrapper.differs("constructor", "all parameters have the same rate")


# ---- schedule


def _length(loop: Fields) -> tuple[int, bool]:
    """Return the length of the run, and whether it is in epochs."""
    if loop.type == "IterBasedTrainLoop" or "max_iters" in loop and "max_epochs" not in loop:
        return int(loop.get("max_iters", 1)), False
    return int(loop.get("max_epochs", 12)), True


def _translate_schedule(
    schedulers: Sequence[Fields], total: int, by_epoch: bool, rate: float, draft: Draft
) -> dict[str, Any]:
    """Write the section `lr_multiplier`; return the fields of `train` for the warm-up.

    Args:
        schedulers: Their schedulers.
        total: Length of the run.
        by_epoch: Whether it is in epochs.
        rate: Learning rate.
        draft: The config that is written.
    """
    warmups: list[Fields] = []
    mains: list[Fields] = []
    for f in schedulers:
        is_short = f.type in ("LinearLR", "ConstantLR") and f.get("begin", 0) == 0
        (warmups if is_short and not warmups else mains).append(f)
    unit = "epochs" if by_epoch else "iterations"
    main = mains[0] if mains else None
    for other in mains[1:]:
        other.differs(list(other), "only one schedule after the warm-up is supported")
    made = _main_schedule(main, total, by_epoch, rate) if main is not None else None
    if main is not None and made is None:
        text = f"{main.type} is not supported in {unit}; the rate is constant after the warm-up"
        main.differs(list(main), text)
    draft.start("lr_multiplier", "common/schedule.py", "multistep_1x")
    default = _steps([1.0, 0.1, 0.01], [8, 11, 12])
    made = made or Call(f"{_SCHEDULERS}.ConstantParamScheduler", {"value": 1.0})
    if made != default:
        if made.target == default.target and made.arguments["values"] == [1.0, 0.1, 0.01]:
            draft.set("lr_multiplier.scheduler.milestones", made.arguments["milestones"])
        else:
            draft.set("lr_multiplier.scheduler", made)
    if not warmups:
        return {"warmup_iters": 0}
    return _translate_warmup(warmups[0], total, by_epoch, draft)


def _translate_warmup(f: Fields, total: int, by_epoch: bool, draft: Draft) -> dict[str, Any]:
    linear = f.type == "LinearLR"
    factor = f.get("start_factor", 1 / 3) if linear else f.get("factor", 1 / 3)
    end = f.get("end", total)
    if not linear:
        draft.set("lr_multiplier.warmup_method", "constant")
    if factor != 0.001:
        draft.set("lr_multiplier.warmup_factor", factor)
    in_epochs = f.get("by_epoch", True)
    if f.get("end_factor", 1) != 1:
        f.differs("end_factor", "the warm-up ends at the full rate")
    ours = "train.warmup_iters" if not in_epochs else "lr_multiplier.warmup_length"
    length = end if not in_epochs else f"{end / total:g}"
    text = f"{ours}={length}, lr_multiplier.warmup_factor={factor:g}"
    if linear and in_epochs and by_epoch and not f.get("convert_to_iter_based"):
        f.differs("type", _STEPWISE.format(f.type))
    f.became(list(f), text)
    if not in_epochs:
        return {} if end == 500 else {"warmup_iters": int(end)}
    if not by_epoch:  # epochs of a run in iterations
        f.change("end", "differs", "the run counts iterations: no warm-up")
        return {"warmup_iters": 0}
    draft.set("lr_multiplier.warmup_length", end / total)
    return {"warmup_iters": None}


def _main_schedule(f: Fields, total: int, by_epoch: bool, rate: float) -> Call | None:
    """Return our scheduler; None if there is none."""
    if f.get("by_epoch", True) != by_epoch and not (f.type != "MultiStepLR" and not f.get("begin")):
        return None
    begin, end = f.get("begin", 0), min(f.get("end", total), total)
    if f.get("by_epoch", True) != by_epoch:
        begin, end = 0, total
    if f.type in ("MultiStepLR", "StepLR"):
        gamma = f.get("gamma", 0.1)
        steps = f.get("milestones")
        if f.type == "StepLR":
            steps = list(range(f["step_size"], total, f["step_size"]))
        steps = [begin + step for step in steps or [] if begin + step < end]
        values = [float(f"{gamma**i:.12g}") for i in range(len(steps) + 1)]
        f.became(list(f), f"lr_multiplier.scheduler: x {gamma} at {steps} of {total}")
        if not steps:
            return Call(f"{_SCHEDULERS}.ConstantParamScheduler", {"value": 1.0})
        return _steps(values, [*steps, total])
    if f.type == "CosineAnnealingLR":
        ratio = f.get("eta_min_ratio")
        last = ratio if ratio is not None else (f.get("eta_min") or 0) / rate
        arguments: dict[str, Any] = {"start_value": 1.0, "end_value": last}
        made = Call(f"{_SCHEDULERS}.CosineParamScheduler", arguments)
        text = f"a cosine down to {last:g} of the rate"
    elif f.type == "PolyLR" and not f.get("eta_min"):
        arguments, last = {"base_value": 1.0, "power": f.get("power", 1)}, 0.0
        made = Call(f"{_SCHEDULERS}.PolynomialDecayParamScheduler", arguments)
        text = f"a polynomial of power {arguments['power']}"
    elif f.type == "LinearLR" and begin == 0 and end == total:
        arguments = {
            "start_value": f.get("start_factor", 1 / 3),
            "end_value": f.get("end_factor", 1.0),
        }
        made, last = Call(f"{_SCHEDULERS}.LinearParamScheduler", arguments), arguments["end_value"]
        text = "linear"
    else:
        return None
    if by_epoch and f.get("by_epoch", True) and not f.get("convert_to_iter_based"):
        f.differs("type", _STEPWISE.format(f.type))
    if f.get("T_max") not in (None, end - begin):
        f.differs("T_max", f"the cosine ends with the schedule, after {end - begin}")
    f.became(list(f), f"lr_multiplier.scheduler: {text}, from {begin} to {end} of {total}")
    parts = [(begin, Call(f"{_SCHEDULERS}.ConstantParamScheduler", {"value": 1.0}))]
    parts += [(end - begin, made)]
    parts += [(total - end, Call(f"{_SCHEDULERS}.ConstantParamScheduler", {"value": last}))]
    parts = [(length, part) for length, part in parts if length > 0]
    if len(parts) == 1:
        return made
    arguments = {
        "schedulers": [part for _, part in parts],
        "lengths": [length / total for length, _ in parts],
        "interval_scaling": ["rescaled"] * len(parts),
    }
    return Call(f"{_SCHEDULERS}.CompositeParamScheduler", arguments)


def _steps(values: Sequence[float], milestones: Sequence[int]) -> Call:
    arguments = {"values": list(values), "milestones": list(milestones)}
    return Call(f"{_SCHEDULERS}.MultiStepParamScheduler", arguments)


def _translate_loop(
    loop: Fields, total: int, by_epoch: bool, validates: bool, draft: Draft
) -> None:
    if by_epoch:
        if total != 12:
            draft.set("train.max_epochs", total)
        loop.became(["type", "max_epochs"], f"train.max_epochs={total}")
    else:
        draft.set("train.max_epochs", None)
        draft.set("train.max_iter", total)
        loop.became(["type", "max_iters"], f"train.max_iter={total}")
    interval = loop.get("val_interval", 1 if by_epoch else 1000)
    period = _period(interval, by_epoch) if validates else 0
    if period != "1 epoch":
        draft.set("train.eval_period", period)
    loop.became("val_interval", f"train.eval_period={period}")
    loop.unused("val_begin", "evaluations start with the first period")
    loop.differs("dynamic_intervals", "the period of evaluations is constant")


def _period(interval: Any, by_epoch: bool) -> int | str:
    interval = max(int(interval), 0) if isinstance(interval, int | float) else 0
    if not by_epoch or not interval:
        return interval
    return "1 epoch" if interval == 1 else f"{interval} epochs"


# ---- batch


def _translate_batch(config: Fields, path: Path, draft: Draft) -> str:
    """Set the batch that the rate was tuned for; return it in words."""
    loader, scaling = config.section("train_dataloader"), config.section("auto_scale_lr")
    each = loader.get("batch_size", 1)
    batch = _tuned_batch(scaling.get("base_batch_size"), each, path)
    divides = batch % each == 0
    if divides:
        world = batch // each
    else:  # the most workers that share the batch evenly, with fewer images than theirs
        world = next(n for n in range(-(-batch // each), batch + 1) if batch % n == 0)
    # Their accumulation multiplies the images of a step; `train.accumulate` divides them.
    count = config.section("optim_wrapper").get("accumulative_counts", 1)
    words = f"{batch * count} images, {world} workers x {batch // world}"
    words += f" x {count} accumulated" if count != 1 else ""
    batch *= count
    if (world, batch) != (8, 16):
        draft.set("train.reference_world_size", world)
        draft.set("train.reference_batch_size", batch)
    text = f"train.reference_batch_size={batch}, train.reference_world_size={world}"
    scaling.became("base_batch_size", text)
    fixed = "on any number of GPUs; MMDetection's is batch_size x GPUs, as with --auto-scale-lr"
    if divides:
        loader.became("batch_size", f"{text}: {fixed}")
    loader.differs("batch_size", f"{text}: {each} do not divide the batch")
    if scaling.get("enable"):
        draft.set("train.auto_scale_lr.enabled", True)
    scaling.became("enable", f"train.auto_scale_lr.enabled={bool(scaling.get('enable'))}")
    return words


def _tuned_batch(base: Any, each: int, path: Path) -> int:
    """Return the batch that the learning rate was tuned for, in images.

    MMDetection's files repeat it in a comment, which is right where an inherited `base_batch_size`
    is not, as in its configs for Cityscapes.
    """
    text = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
    said = re.search(r"\((\d+) GPUs?\) x \((\d+) samples? per GPU\)", text)
    if said and int(said[2]) == each:
        return int(said[1]) * each
    if isinstance(base, int) and base > 0:
        return base
    named = re.search(r"_(\d+)x(?:b)?(\d+)(?=[-_.])", path.name)
    return each * (int(named[1]) if named and int(named[2]) == each else _DEFAULT_WORKERS)


# ---- hooks


def _translate_hooks(config: Fields, by_epoch: bool, draft: Draft) -> None:
    hooks = config.section("default_hooks")
    saving, logging = hooks.section("checkpoint"), hooks.section("logger")
    if saving:
        _translate_checkpoints(saving, config, by_epoch, draft)
    if isinstance(logging.get("interval"), int) and logging["interval"] != 20:
        draft.set("train.log_period", logging["interval"])
    logging.became(["type", "interval"], f"train.log_period={logging.get('interval', 10)}")
    logging.unused(list(logging), "only changes the text of the log")
    for name in ("timer", "param_scheduler", "sampler_seed", "runtime_info"):
        hooks.became(name, "the loop of d2ext")
    hooks.unused(["visualization", "track_visualization"], "the report draws detections")
    for f in config.sections("custom_hooks"):
        _translate_custom_hook(f, draft)
    if not config.get("custom_hooks"):
        config.unused("custom_hooks", "there are none")


def _translate_checkpoints(f: Fields, config: Fields, by_epoch: bool, draft: Draft) -> None:
    f.became("type", "train.checkpointer")
    counts = f.get("by_epoch", True)
    period = _period(f.get("interval", 1), counts)
    if period != "1 epoch":
        draft.set("train.checkpointer.period", period)
    f.became(["interval", "by_epoch"], f"train.checkpointer.period={period}")
    keep = f.get("max_keep_ckpts")
    if isinstance(keep, int) and keep != 3:
        draft.set("train.checkpointer.max_to_keep", keep)
    f.became("max_keep_ckpts", f"train.checkpointer.max_to_keep={keep}")
    best = f.get("save_best")
    several = isinstance(best, list | tuple) and len(best) > 1
    if isinstance(best, list | tuple):
        best = best[0] if best else None
    if best == "auto":
        best = {"VOCMetric": "pascal_voc/mAP", "OpenImagesMetric": "openimages/mAP"}.get(
            next((e.type for e in config.sections("val_evaluator")), ""), "coco/bbox_mAP"
        )
    if best in _RESULTS:
        draft.set("train.best.metric", _RESULTS[best])
        if several:
            f.differs("save_best", f"train.best.metric={_RESULTS[best]}: only the first is used")
        f.became(["save_best", "rule"], f"train.best.metric={_RESULTS[best]}")
    elif best:
        f.differs(["save_best", "rule"], "unknown name of a result; set train.best.metric")
    f.unused(list(f), "the newest checkpoints are kept with all states")


def _translate_custom_hook(f: Fields, draft: Draft) -> None:
    kind, every = f.type, list(f)
    if kind in _HOOKS_WITHOUT_EFFECT:
        f.unused(every, _HOOKS_WITHOUT_EFFECT[kind])
    elif kind == "EMAHook":
        momentum = f.get("momentum", 0.0002)
        draft.set("train.ema_decay", round(1 - momentum, 12))
        text = f"train.ema_decay={1 - momentum:g}"
        average = str(f.get("ema_type", "ExponentialMovingAverage")).rpartition(".")[2]
        if average == "ExponentialMovingAverage":
            f.became(["type", "ema_type", "momentum"], text)
        same = [name for name, value in _EMA_DEFAULTS.items() if f.get(name, value) == value]
        f.became(same, "the default of train.ema_decay")
        f.unused(["priority", "strict_load"], "has no effect on the results")
        f.differs(every, f"{text}, updated in every iteration from the first one")
    else:
        f.differs(every, f"{kind} is not supported; the run has no such hook")


# ---- weights and environment


def _translate_start(config: Fields, checkpoint: str | None, draft: Draft) -> None:
    """Set `train.init_checkpoint` and what concerns resuming."""
    model, load = config.section("model"), config.get("load_from")
    start = checkpoint or load
    if start:
        backbone = model.section("backbone")
        backbone.unused("init_cfg", "train.init_checkpoint replaces these weights")
    else:
        start = initial_weights(model)
    if start:
        draft.set("train.init_checkpoint", start)
    if checkpoint and load:
        config.differs("load_from", f"train.init_checkpoint={checkpoint}, from the command line")
    if load:
        config.became("load_from", f"train.init_checkpoint={load}")
    config.unused("load_from", "the weights of the backbone")
    if config.get("resume"):
        text = "only weights of MMDetection's checkpoints are loaded; `--resume` resumes a run here"
        config.differs("resume", text)
    config.unused("resume", "`--resume` resumes a run")
    config.unused("auto_resume", "`--resume` resumes a run")


def _translate_environment(config: Fields, draft: Draft) -> None:
    # MMDetection's own runs are there, and a run of d2ext does not share a folder with others.
    config.unused("work_dir", "the default of train.output_dir, work_dirs/NAME of the new config")
    randomness = config.section("randomness")
    if isinstance(randomness.get("seed"), int):
        draft.set("train.seed", randomness["seed"])
    randomness.became("seed", f"train.seed={randomness.get('seed')}, with other random numbers")
    if randomness.get("deterministic"):
        draft.set("train.deterministic", True)
    randomness.became("deterministic", f"train.deterministic={randomness.get('deterministic')}")
    randomness.unused("diff_rank_seed", "each sample has its own seed")
    environment = config.section("env_cfg")
    dist = environment.section("dist_cfg")
    for name in ("backend", "port"):
        value = dist.get(name)
        if value is not None and value != "nccl":  # nccl is the default on GPUs
            draft.set(f"train.dist.{name}", value)
        dist.became(name, f"train.dist.{name}={value}")
    others = [name for name in environment if name != "dist_cfg"]
    environment.unused(others, "has no effect on the results")
    if config.get("find_unused_parameters"):
        draft.set("train.ddp.find_unused_parameters", True)
    config.became("find_unused_parameters", "train.ddp.find_unused_parameters")
    config.differs("custom_imports", "these modules are not imported; port what the config uses")
    visualizer = config.section("visualizer")
    backends = [*config.sections("vis_backends"), *visualizer.sections("vis_backends")]
    writers = sorted({_WRITERS[f.type] for f in backends if f.type in _WRITERS})
    if writers and writers != ["tensorboard"]:
        draft.set("train.writers", writers)
    text = f"train.writers={writers or ['tensorboard']}, and metrics.json"
    known = all(f.type in (*_WRITERS, "LocalVisBackend") for f in backends)
    for f in config.sections("vis_backends"):
        _record_backend(f, text)
    if known:
        visualizer.became("vis_backends", text)
    for f in visualizer.sections("vis_backends"):
        _record_backend(f, text)
    text = "`d2ext predict` and the report draw detections"
    visualizer.unused([name for name in visualizer if name != "vis_backends"], text)


def _record_backend(f: Fields, text: str) -> None:
    if f.type in (*_WRITERS, "LocalVisBackend"):
        f.became("type", text)
        f.unused(list(f), "set the writer's arguments in train.writers")
    f.differs(list(f), f"d2ext has no writer for {f.type}")


def unused_variables(config: Fields, given: Mapping[str, Any]) -> None:
    """Record variables of the config whose value other fields have, such as `data_root`.

    Args:
        config: Their config, with the outcomes of all sections.
        given: Their config as it was written, in the spelling of 2.x or 3.x.
    """
    variables = [name for name in config if not _has_rows(config, name)]
    sections = [name for name in given if name not in variables]
    for name in variables:
        value = config[name]
        uses = _has_number if type(value) in (int, float) else _uses
        user = next((s for s in sections if uses(given[s], value, name)), None)
        if user is not None:
            config.unused(name, f"a variable; see {user}")
        elif name in _VARIABLES:
            config.unused(name, "a variable that no section uses")


def _has_rows(config: Fields, name: str) -> bool:
    path = config.name(name)
    return any(row == path or row.startswith(f"{path}.") for row in config.rows)


def _has_number(where: Any, value: float, name: str) -> bool:
    """Return whether a section has a field with the name, or its plural, and the value."""
    if isinstance(where, Mapping):
        found = [where.get(key) for key in (name, f"{name}s")]
        if any(type(number) is type(value) and number == value for number in found):
            return True
        where = list(where.values())
    return isinstance(where, list | tuple) and any(_has_number(p, value, name) for p in where)


def _uses(where: Any, value: Any, name: str = "") -> bool:
    """Return whether a section contains a container or a long string, or all parts of it."""
    if isinstance(value, str):
        if isinstance(where, str):
            return len(value) >= _LONG and value in where
    elif not isinstance(value, Mapping | list | tuple) or not value:
        return False  # equal by chance
    elif type(where) is type(value) and where == value:
        return True
    elif isinstance(value, Mapping) and isinstance(where, Mapping):
        if value.items() <= where.items():  # dict(type="Normalize", **img_norm_cfg)
            return True
    parts = list(where.values()) if isinstance(where, Mapping) else where
    if isinstance(parts, list | tuple) and any(_uses(part, value) for part in parts):
        return True
    return isinstance(value, list | tuple) and all(_uses(where, part) for part in value)
