"""Run steps before training: one on a small image to find errors, or several to measure the speed.

Most inconsistent fields of a model's config cause errors only in the first step, deep inside torch.
`misfits_explained` names the fields around the module that fails.
"""

import contextlib
import copy
import logging
import os
import statistics
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import detectron2.data.transforms as T
import torch
from detectron2.config import LazyCall as L
from detectron2.config import instantiate
from detectron2.layers import NaiveSyncBatchNorm
from detectron2.utils import comm
from detectron2.utils.events import EventStorage
from omegaconf import DictConfig, ListConfig
from torch import nn

from d2ext.config.options import TrainOptions
from d2ext.data.datasets.mixing import TrainingSet
from d2ext.data.loading.sample_errors import Failure, ReportFailures, RleAsBitmaps
from d2ext.data.loading.tiles import mapper_of_tiles
from d2ext.engine.builders import (
    build_model,
    build_multiplier,
    build_optimizer,
    build_suite,
    build_train_loader,
    channels_last_pays,
    untested_packages,
)
from d2ext.engine.losses import losses_of
from d2ext.engine.resource_errors import batch_words, is_resource_error, resource_errors_explained
from d2ext.engine.techniques import autocast, use_channels_last
from d2ext.engine.trainer import sends_objects, sent
from d2ext.errors import UserError, config_errors, format_exception
from d2ext.evaluation.suite import test_sets
from d2ext.evaluation.validation_loss import loss_loader
from d2ext.launch.device import share_cores
from d2ext.launch.failures import describe_failure
from d2ext.modeling.gpu.deferred_storage import DeferredStorage
from d2ext.preflight.budget import Speed, Workload
from d2ext.preflight.plan import Plan
from d2ext.seeding import generators_seeded

logger = logging.getLogger(__name__)

_WARMUP, _STEPS, _IMAGES = 2, 5, 4  # to time, with images of each validation set
_CELLS = 2  # cells per side of the coarsest level, because BatchNorm needs more than one value
_STRIDE = 64  # of the coarsest level, if the backbone does not state it
_MAX_SHOWN = 12
_MISFITS = (RuntimeError, ValueError, AssertionError, LookupError, TypeError, AttributeError)
_INPUT = ("input_format", "pixel_mean", "pixel_std")
_SHAPES = {
    *("in_features", "head_in_features", "box_in_features", "mask_in_features"),
    *("keypoint_in_features", "out_features", "in_channels", "out_channels", "channels"),
    *("height", "width", "num_anchors", "sizes", "aspect_ratios", "strides", "scales"),
    *("output_size", "conv_dims", "fc_dims", "num_classes", "num_keypoints", "box_dim"),
    *("weights", "cls_agnostic_bbox_reg", "norm", "square_pad", "img_size", "name"),
}


def dry_step(cfg: Any, plan: Plan | None) -> None:
    """Build all parts of a run, and run one forward and backward pass on its device.

    The image is the first training image, resized so that the coarsest level has 2 x 2 cells. The
    model has random weights and is discarded; random number generators are restored.

    Args:
        cfg: Config returned by `load_config`.
        plan: Plan returned by `plan_run` in this process; None if another process plans.

    Raises:
        UserError: A part of the run cannot be built, fields of the config contradict each other, or
            the machine runs out of memory.
    """
    if plan is None or plan.eval_only:
        return
    if "D2EXT_PLAN_GPUS" in os.environ:
        logger.info("dry step    skipped: the run is for other machines")
        return
    started = time.perf_counter()
    with generators_seeded(0):
        model = build_model(cfg, plan).train()
        build_optimizer(cfg, model)
        build_multiplier(cfg, plan.schedule)
        build_train_loader(cfg, 0, plan.built.train_dataset)
        if plan.validate:
            build_suite("dataloader.val", cfg.dataloader.val, cfg)
        sample = _sample(cfg, _side(model), plan.built.train_dataset)
        if isinstance(sample, Failure):
            logger.info("dry step    skipped: %s", sample.message)
            return
        try:
            _step(cfg, plan.device, model, [sample])
        except FloatingPointError as e:  # may be due to the random weights
            logger.info("dry step    not finished: %s", e)
            return
    seconds = time.perf_counter() - started
    height, width = sample["image"].shape[-2:]
    logger.info(
        "dry step    forward and backward on %d x %d pixels: %.1f s", height, width, seconds
    )


def measure_speed(work: Workload) -> Speed:
    """Time training steps and evaluated images as in the run, on this process's share of a batch.

    The model has random weights, which do not change, and is discarded; random number generators
    are restored. The exchange of gradients between processes is not included.

    Args:
        work: What the run computes.

    Raises:
        UserError: A part of the run cannot be built or fails, or the processes have already met and
            the model's forward pass may communicate.
    """
    joined = comm.get_world_size() > 1
    options = TrainOptions.from_config(work.cfg.train)
    cfg = copy.deepcopy(work.cfg)
    processes = 1 if joined else work.world_size  # a loader takes its rank's share itself
    batch = cfg.dataloader.train.get("total_batch_size")
    if processes > 1 and batch:  # a loader of your own may have none
        cfg.dataloader.train.total_batch_size = batch // processes
    if joined:  # the other ranks wait for the plan and do not answer
        cfg.train.channels_last = bool(options.channels_last)
        cfg.train.sync_bn = False
    plan = Plan(Path(), work.device, list(work.classes), {}, None, "", None, None, [])
    logger.info("budget      timing %d steps and %d evaluated images", _STEPS, _IMAGES)
    with (
        generators_seeded(0),
        DeferredStorage() as storage,
        _threads_of_one(1 if joined else work.here, work.device),
    ):
        started = time.perf_counter()
        model = build_model(cfg, plan).train()
        if joined:
            _refuse_communication(model)
            if options.channels_last is None and channels_last_pays(
                work.device, model, options.amp
            ):
                use_channels_last(model)
        steps = _step_times(cfg, work, model, storage)
        first = time.perf_counter() - started - sum(steps)
        evaluation = _evaluation_time(cfg, work, model) / processes if work.evaluates else 0.0
    if work.device == "cuda":
        torch.cuda.empty_cache()
    return Speed(first, statistics.median(steps), evaluation)


def _step_times(
    cfg: Any, work: Workload, model: nn.Module, storage: DeferredStorage
) -> list[float]:
    """Return the seconds of some optimizer steps, with the time to wait for their data."""
    options = TrainOptions.from_config(cfg.train)
    optimizer, precision = build_optimizer(cfg, model), autocast(options.amp, work.device)
    for group in optimizer.param_groups:
        group["lr"] = 0.0  # random weights stay finite
    device, with_objects = torch.device(work.device), sends_objects(model)
    batches = iter(build_train_loader(cfg, 0, work.dataset))
    batch: list[dict] = []
    memory = resource_errors_explained(
        lambda: f"while steps are timed ({batch_words(batch)})",
        "lower dataloader.train.total_batch_size, or use smaller images"
        " (dataloader.train.mapper.augmentations)",
        "dataloader.train.num_workers",
    )
    times = []
    try:
        with memory, misfits_explained(cfg, model):
            for _ in range(_WARMUP + _STEPS):
                start = time.perf_counter()
                for _ in range(options.accumulate):
                    batch = next(batches)
                    with precision(), storage.deferring():
                        losses = losses_of(model(sent(batch, device, with_objects)))
                    sum(losses.values()).backward()
                    storage.values_of(list(losses.values()))
                optimizer.step()
                optimizer.zero_grad()
                _synchronize(work.device)
                times.append(time.perf_counter() - start)
    except FloatingPointError as e:
        raise UserError(
            f"train.budget: the steps to be timed fail with random weights ({e}); set"
            " train.max_epochs instead"
        ) from e
    finally:
        if hasattr(batches, "close"):  # ends the loader's workers
            batches.close()
    return times[_WARMUP:]


def _evaluation_time(cfg: Any, work: Workload, model: nn.Module) -> float:
    """Return the seconds of an evaluation of all validation sets, extrapolated from some images."""
    options, total = TrainOptions.from_config(cfg.train), 0.0
    precision = autocast(options.amp, work.device)

    def inference(batch: list[dict]) -> None:
        model.eval()
        model(batch)

    def loss(batch: list[dict]) -> None:
        model.train()
        model(batch)

    for name in test_sets(cfg.dataloader.val):
        one_set = copy.deepcopy(cfg.dataloader.val)  # keeps its parent, for interpolations
        one_set.dataset.names, one_set.num_workers = name, 0
        with config_errors("dataloader.val"):
            loaders = [(instantiate(one_set), inference)]
        if name in work.losses:
            loaders.append((loss_loader(cfg.dataloader, name), loss))
        for loader, run in loaders:
            times = []
            batches = iter(loader)
            with torch.no_grad(), precision():
                for _ in range(min(_IMAGES + 1, len(loader))):
                    start = time.perf_counter()
                    run(next(batches))
                    _synchronize(work.device)
                    times.append(time.perf_counter() - start)
            if hasattr(batches, "close"):
                batches.close()
            total += statistics.median(times[1:] or times or [0.0]) * len(loader)
    return total


def _synchronize(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


@contextlib.contextmanager
def _threads_of_one(processes: int, device: str) -> Iterator[None]:
    """Use the threads that one of several processes on this machine gets, also in OpenCV."""
    before = torch.get_num_threads(), cv2.getNumThreads()
    share_cores(processes, device)
    try:
        yield
    finally:
        torch.set_num_threads(before[0])
        cv2.setNumThreads(before[1])


def _refuse_communication(model: nn.Module) -> None:
    """Raise a UserError if a forward pass of the model may wait for the other ranks."""
    package = next(iter(untested_packages(model)), None)
    syncs = any(isinstance(m, nn.SyncBatchNorm | NaiveSyncBatchNorm) for m in model.modules())
    if package or syncs:
        what = f"modules of {package}" if package else "BatchNorm over all workers"
        raise UserError(
            f"train.budget cannot time a model with {what} in ranks that torchrun or srun started;"
            " set train.max_epochs instead"
        )


@contextlib.contextmanager
def misfits_explained(cfg: Any, model: nn.Module) -> Iterator[None]:
    """Turn errors of a model's first step into a UserError that names fields of its config.

    Out-of-memory errors, lost peers, GPU errors and NaN are explained elsewhere.

    Args:
        cfg: Config returned by `load_config`.
        model: Model of `cfg`, unwrapped.
    """
    try:
        yield
    except _MISFITS as e:
        if is_resource_error(e) or "CUDA error" in str(e) or describe_failure(0, e).kind != "other":
            raise
        raise UserError(_explanation(cfg.model, model, e)) from e


def _side(model: nn.Module) -> int:
    backbone = getattr(model, "backbone", None)
    shapes = backbone.output_shape().values() if hasattr(backbone, "output_shape") else ()
    strides = [shape.stride for shape in shapes if shape.stride]
    if inner := getattr(backbone, "coarsest_stride", None):  # of a level that it does not return
        strides.append(inner)
    return _CELLS * max(strides, default=_STRIDE)


def _sample(cfg: Any, side: int, dataset: Any) -> dict | Failure:
    """Return the first training sample, resized to `side` if the mapper has augmentations."""
    settings = copy.deepcopy(cfg.dataloader.train)  # keeps its parent, which interpolations need
    if not settings.get("mapper"):
        return Failure("dataloader.train has no mapper")
    if "augmentations" in settings.mapper:
        settings.mapper.augmentations = [L(T.Resize)(shape=[side, side])]
    with config_errors("dataloader.train"):
        records = dataset.records if isinstance(dataset, TrainingSet) else dataset
        mapper = mapper_of_tiles(instantiate(settings.mapper), records)
        return ReportFailures(RleAsBitmaps(mapper))(records[0])


def _step(cfg: Any, device: str, model: nn.Module, batch: list[dict]) -> None:
    memory = resource_errors_explained(
        lambda: f"in the dry step ({batch_words(batch)})",
        "end other programs, or use a smaller model",
    )
    with memory, misfits_explained(cfg, model), EventStorage():
        with autocast(TrainOptions.from_config(cfg.train).amp, device)():
            losses = losses_of(model(batch))
        sum(losses.values()).backward()
        if device == "cuda":
            torch.cuda.synchronize()


def _explanation(config: DictConfig, model: nn.Module, e: Exception) -> str:
    frame = traceback.extract_tb(e.__traceback__)[-1]
    path = _failing_module(model, e)
    place = "the backward pass" if path is None else _field(config, path)
    fields = ", ".join(_fields_around(config, place)[:_MAX_SHOWN])
    hint = f"; fields that must agree: {fields}" if fields else ""
    return (
        f"the first step fails in {place} ({format_exception(e)},"
        f" {frame.filename}:{frame.lineno}){hint}"
    )


def _failing_module(model: nn.Module, e: Exception) -> str | None:
    """Return the path of the innermost module whose method raised, or None."""
    names = {id(module): name for name, module in model.named_modules()}
    path = None
    for frame, _ in traceback.walk_tb(e.__traceback__):
        path = names.get(id(frame.f_locals.get("self")), path)
    return path


def _field(config: DictConfig, path: str) -> str:
    """Return the config field of a module, or of the nearest enclosing module that has one."""
    node, field = config, "model"
    for part in filter(None, path.split(".")):
        if isinstance(node, ListConfig):
            key = int(part) if part.isdecimal() and int(part) < len(node) else None
        else:  # config names differ: `head` for `rpn_head`, `box_heads` for `box_head` in a cascade
            names = (part, part.rpartition("_")[2], f"{part}s")
            key = next((name for name in names if name in node), None)
        if key is None or not isinstance(node[key], DictConfig | ListConfig):
            break
        node, field = node[key], f"{field}.{key}"
    return field


def _fields_around(config: DictConfig, place: str) -> list[str]:
    """Return `field=value` for the fields near `place` that determine tensor shapes."""
    _, top, sub, *_ = [*place.split("."), "", ""]
    node = config.get(top) if top else None
    if node is None or top == "backbone":
        fields = [f"model.{name}={config[name]}" for name in _INPUT if name in config]
        return fields + list(_shape_fields(node, "model.backbone"))
    if top == "roi_heads" and "_" in sub:  # the box, mask or keypoint branch
        branch = sub.partition("_")[0]
        node = {k: v for k, v in node.items() if k.startswith(branch) or k == "num_classes"}
    fields = list(_shape_fields(node, f"model.{top}"))
    return fields + list(_shape_fields({"backbone": config.get("backbone")}, "model", deep=False))


def _shape_fields(node: Any, field: str, deep: bool = True) -> Iterator[str]:
    if isinstance(node, ListConfig | list):
        node = dict(enumerate(node))
    for key, value in node.items() if isinstance(node, DictConfig | dict) else ():
        inner = isinstance(value, DictConfig) or (
            isinstance(value, ListConfig) and value and isinstance(value[0], DictConfig)
        )
        name = f"{field}[{key}]" if isinstance(key, int) else f"{field}.{key}"
        if inner and (deep or key == "backbone"):
            yield from _shape_fields(value, name, deep)
        elif not inner and key in _SHAPES:
            yield f"{name}={value}"
