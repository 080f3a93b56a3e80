"""Build the parts of a run from its config; errors name the section of the config."""

import copy
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from detectron2.config import LazyCall, instantiate
from detectron2.engine import HookBase
from detectron2.solver.build import get_default_optimizer_params
from detectron2.utils.events import EventWriter
from detectron2.utils.registry import locate
from omegaconf import DictConfig, ListConfig
from torch import nn
from torch.optim import Optimizer

from d2ext.config.check import target_name
from d2ext.config.lr_factors import LrFactors
from d2ext.config.model_kind import yacs_model
from d2ext.config.num_classes import with_num_classes
from d2ext.config.options import Amp, TrainOptions
from d2ext.config.schedule import Schedule
from d2ext.engine.techniques import freeze, use_channels_last, use_cpu_sync_bn, with_sync_bn
from d2ext.errors import UserError, config_errors, format_exception
from d2ext.evaluation.suite import Suite
from d2ext.heap import reuse_freed_memory
from d2ext.launch.collectives import broadcast_from_rank0
from d2ext.modeling.cpu.fast_layers import use_fast_layers
from d2ext.modeling.deterministic_roi_align import DeterministicROIAlign
from d2ext.modeling.gpu.fast_layers import use_async_layers
from d2ext.modeling.roi_align import use_embedding_bag_roi_align
from d2ext.preflight.model_fields import check_levels
from d2ext.preflight.options import writer_call
from d2ext.preflight.plan import Plan
from d2ext.text import without_credentials

logger = logging.getLogger(__name__)

# Packages whose models train in the channels_last layout.
_TESTED = {"d2ext", "detectron2", "fvcore", "timm", "torch", "torchvision"}
# Its data starts at any iteration; loaders of others always start with the first batch.
_LOADER = "d2ext.data.loading.loader.build_train_loader"
_FUSED = (torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW)


def build_model(cfg: Any, plan: Plan) -> nn.Module:
    """Build the model on its device, with the data's class count and seeded initial weights."""
    options = TrainOptions.from_config(cfg.train)
    on_cpu = torch.device(plan.device).type == "cpu"
    torch.manual_seed(options.seed)  # initial weights
    config = with_device(with_num_classes(cfg.model, len(plan.classes)), plan.device)
    model = _instantiate(config, "model")
    check_levels(cfg.model, model)
    if options.sync_bn:
        model = with_sync_bn(model, plan.device)
    elif on_cpu:
        use_cpu_sync_bn(model)
    freeze(model, options.freeze)
    if options.fast_layers and on_cpu:
        use_fast_layers(model)
        reuse_freed_memory()
    if options.fast_layers and torch.device(plan.device).type == "cuda":
        use_async_layers(model)
    if options.deterministic and not on_cpu:
        use_embedding_bag_roi_align(model, DeterministicROIAlign)
    model = model.to(plan.device)
    chosen = options.channels_last
    if chosen is None:
        # Rank 0 decides for all ranks, because gradients are exchanged in memory order.
        chosen = broadcast_from_rank0(lambda: channels_last_pays(plan.device, model, options.amp))
    if chosen:
        use_channels_last(model)
    count = sum(p.numel() for p in model.parameters())
    logger.info("The model has %.1f million parameters", count / 1e6)
    return model


def with_device(config: Any, device: str) -> Any:
    """Return a model's config in which `device`, which some models have, is the run's device."""
    if "device" not in config and yacs_model(config) is None:
        return config
    config = copy.deepcopy(config)  # keeps its parent, which interpolations need
    config.device = device
    return config


def channels_last_pays(device: str, model: nn.Module, amp: Amp) -> bool:
    """Return whether channels_last is faster and safe for the model.

    On CPUs it was measured for float32. On GPUs, convolutions of 16-bit numbers use tensor cores,
    whose kernels in cuDNN need this layout and otherwise convert inputs and outputs
    (https://docs.nvidia.com/deeplearning/performance/dl-performance-convolutional). In this layout,
    `view` fails for many shapes, and models of other packages may call it.
    """
    if device == "cpu":
        pays = torch.backends.cpu.get_cpu_capability() == "AVX512"
    else:
        pays = amp.active(device)
    return pays and not untested_packages(model)


def untested_packages(model: nn.Module) -> set[str]:
    """Return the names of packages whose modules d2ext knows nothing about."""
    return {type(module).__module__.partition(".")[0] for module in model.modules()} - _TESTED


def build_optimizer(cfg: Any, model: nn.Module) -> Optimizer:
    """Build the optimizer of a model's parameters."""
    settings = copy.deepcopy(cfg.optimizer)
    settings.setdefault("params", LazyCall(get_default_optimizer_params)())
    settings.params.model = model
    with config_errors("optimizer"):
        target = settings["_target_"]
        target = locate(target) if isinstance(target, str) else target  # a string in config.yaml
        chosen = any(settings.get(name) for name in ("fused", "foreach", "differentiable"))
        # A fused SGD would also dampen its first step; see `_start_momentum` of the trainer.
        if target in _FUSED and not chosen and not settings.get("dampening"):
            settings.fused = True  # one pass over the weights, also on a CPU
        factors = instantiate(settings.params.get("lr_factor_func"))
        if isinstance(factors, LrFactors):
            factors.check(name for name, _ in model.named_parameters())
        optimizer = instantiate(settings)
    # torch before 2.7 keeps omegaconf's lists, which a checkpoint cannot hold.
    for values in (optimizer.defaults, *optimizer.param_groups):
        values |= {key: tuple(v) for key, v in values.items() if isinstance(v, ListConfig)}
    return optimizer


def build_multiplier(cfg: Any, schedule: Schedule) -> Any:
    """Build the learning rate schedule, with the warm-up as a fraction of the run."""
    settings = copy.deepcopy(cfg.lr_multiplier)
    if schedule.warmup_iters is not None and "warmup_length" in settings:
        settings.warmup_length = schedule.warmup_iters / schedule.max_iter
    return _instantiate(settings, "lr_multiplier")


def build_train_loader(cfg: Any, start_iter: int, dataset: Any = None) -> Any:
    """Build the training loader.

    Args:
        cfg: Config with registered datasets.
        start_iter: First iteration to load.
        dataset: Dataset of `dataloader.train.dataset`, if it has been built already.
    """
    settings = copy.deepcopy(cfg.dataloader.train)  # keeps its parent, which interpolations need
    if target_name(settings.get("_target_")) == _LOADER:
        settings.start_iter = start_iter
    elif start_iter:
        logger.warning(
            "dataloader.train is not d2ext's loader: its data starts from the beginning again"
        )
    with config_errors("dataloader.train"):
        return instantiate(settings if dataset is None else {**settings, "dataset": dataset})


def build_hooks(entries: Sequence[Any]) -> list[HookBase]:
    """Build hooks from the entries of `train.hooks`.

    Raises:
        UserError: An entry cannot be built or is not a hook.
    """
    hooks = []
    for i, entry in enumerate(entries):
        with config_errors(f"train.hooks[{i}]"):
            hook = instantiate(entry)
        if not isinstance(hook, HookBase):
            raise UserError(
                f"train.hooks[{i}]: _target_ returned {type(hook).__name__}, not a hook; give a"
                " class derived from detectron2.engine.HookBase"
            )
        hooks.append(hook)
    return hooks


def build_writers(entries: Sequence[Any], output_dir: Path) -> list[EventWriter]:
    """Build the writers of `train.writers`; one that cannot be built is skipped with a warning.

    Preflight has already checked the entries; the failure of a server must not end a run that was
    requeued.

    Args:
        entries: Entries of `train.writers`.
        output_dir: Run directory.
    """
    writers = []
    for i, entry in enumerate(entries):
        try:
            writer = instantiate(writer_call(entry, str(output_dir)))
            if not isinstance(writer, EventWriter):
                raise TypeError(f"_target_ returned {type(writer).__name__}, not an EventWriter")
            writers.append(writer)
        except Exception as e:
            reason = without_credentials(format_exception(e))
            logger.warning("train.writers[%d] is skipped: it cannot be built (%s)", i, reason)
    return writers


def build_suite(section: str, loader: Any, cfg: Any) -> Suite:
    """Build test sets and metrics; `section` is the loader's section of the config."""
    with config_errors(f"{section} or evaluators"):
        options = TrainOptions.from_config(cfg.train)
        return Suite(loader, cfg.evaluators, options.intervals, options.resamples)


def _instantiate(config: DictConfig, field: str) -> Any:
    """Instantiate a section of the config; a UserError names the innermost part that fails.

    Do not use this for loaders and optimizers: it builds parts again to find the one that fails,
    and theirs may communicate with other ranks.
    """
    try:
        return instantiate(config)
    except UserError:
        raise
    except Exception:
        place, part = _failing(config, field) or (field, config)
        arguments = [f"{k}={v}" for k, v in part.items() if k != "_target_" and _is_plain(v)]
        with config_errors(place, arguments):
            raise


def _failing(config: Any, field: str) -> tuple[str, DictConfig] | None:
    """Return the innermost lazy call that fails, by instantiating all from the inside out."""
    if isinstance(config, ListConfig):
        parts = [(f"{field}[{i}]", part) for i, part in enumerate(config)]
    elif isinstance(config, DictConfig) and "_target_" in config:
        parts = [(f"{field}.{key}", part) for key, part in config.items()]
    else:
        return None
    for place, part in parts:
        if found := _failing(part, place):
            return found
    try:
        instantiate(config)
    except Exception:
        return (field, config) if isinstance(config, DictConfig) else None
    return None


def _is_plain(value: Any) -> bool:
    """Return whether a value fits in a message: a number, a string, or a list of these."""
    if isinstance(value, ListConfig):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, bool | int | float | str)
