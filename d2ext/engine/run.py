"""One run, from a checked plan to a directory of results."""

import datetime
import json
import logging
import os
import platform
import time
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from detectron2.config import LazyConfig, instantiate
from detectron2.data import MetadataCatalog
from detectron2.engine import hooks as d2_hooks
from detectron2.utils import comm
from detectron2.utils.events import CommonMetricPrinter, JSONWriter, TensorboardXWriter
from omegaconf import OmegaConf
from torch import nn
from torch.optim import Optimizer

from d2ext import __version__
from d2ext.config.load import load_config
from d2ext.config.scaling import scale_config
from d2ext.data.catalog import register_datasets
from d2ext.engine import checkpoint as ckpt
from d2ext.engine.distributed import copy_from_main, distributed, from_main, log_ranks
from d2ext.engine.hooks import Checkpoint, Evaluate, LearningRate, ProgressBar
from d2ext.engine.log import setup_logging
from d2ext.engine.output_dir import check_free_space, make_output_dir
from d2ext.engine.preflight import Plan, plan_run, with_num_classes
from d2ext.engine.signals import EXIT_STOPPED, StopSignals
from d2ext.engine.trainer import Trainer
from d2ext.errors import UserError
from d2ext.evaluation.suite import Suite, finite_or_none, write_predictions
from d2ext.files import write_json
from d2ext.inference.overlay import write_overlays
from d2ext.report import write_report

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Job:
    """What travels to every rank: plain values; each loads the config again.

    Attributes:
        config_file, overrides: for `load_config`.
        work_dir: of the flag, or None.
        about: name, config file and command, for run.json.
        options: of `plan_run`.
        plan: of `plan_run`; None lets rank 0 make it, and is so on other machines.
        eval_only: evaluate instead of training.
        validate: evaluate at the config's periods and at the end.
    """

    config_file: str
    overrides: list[str]
    work_dir: str | None
    about: dict[str, Any]
    options: dict[str, Any]
    plan: Plan | None
    eval_only: bool
    validate: bool


def run_rank(job: Job) -> int:
    """What each rank of a run does; returns the exit status, 75 when a signal stopped it."""
    cfg = load_config(job.config_file, job.overrides)
    if job.work_dir:
        cfg.train.output_dir = job.work_dir
    plan = from_main(lambda: job.plan or plan_run(cfg, job.about["name"], **job.options))
    if job.eval_only:
        return evaluate_only(cfg, plan, job.about)
    return train(cfg, plan, job.about, job.options["overwrite"], job.validate)


def train(cfg: Any, plan: Plan, about: dict[str, Any], overwrite: bool, validate: bool) -> int:
    """Trains, evaluates, and leaves the run directory that docs/architecture.md describes.

    Args:
        cfg: of `load_config`.
        plan: of `plan_run`.
        about: name, config file and command, for run.json.
        overwrite: move an earlier run in the output directory aside.
        validate: evaluate at the config's periods and at the end.

    Returns:
        The exit status: 0, or 75 when a signal stopped the run after it was saved.
    """
    out = plan.output_dir
    main = comm.is_main_process()
    unscaled = cfg
    if plan.scaling:
        cfg, _ = scale_config(cfg, comm.get_world_size())
    if main:
        aside = make_output_dir(out, overwrite)
        setup_logging(out / "log.txt")
        _log_plan(plan)
        if aside:
            logger.info("The earlier run was moved to %s", aside)
    else:
        setup_logging(quiet=True)
    log_ranks(plan.device)
    register_datasets(cfg.datasets)
    model, optimizer = _build(cfg, plan)
    if main:
        check_free_space(out, _checkpoint_bytes(model))
        LazyConfig.save(unscaled, str(out / "config.yaml"))
        if plan.scaling:
            write_json(out / "scaling.json", plan.scaling)
        _write_about(out, plan, about)
    start_iter = _start(model, optimizer, plan)
    schedule = plan.schedule
    if start_iter >= schedule.max_iter:
        logger.info("Nothing to train: the run ends at iteration %d", schedule.max_iter)
        return 0

    def content(done: int) -> dict[str, Any]:
        return {
            "model": model.state_dict(),
            "optimizer": optimizer.state_dict(),
            "iterations_done": done,
            "images_seen": done * schedule.batch_size,
        }

    suite = Suite(cfg.dataloader.val, cfg.evaluators) if validate else None
    hooks = [LearningRate(optimizer, _lr_multiplier(cfg, plan)), d2_hooks.IterationTimer()]
    if main:
        keep = cfg.train.checkpointer.get("max_to_keep", 0)
        hooks += [ProgressBar(), Checkpoint(out, schedule, keep, content)]
    if suite:
        hooks.append(Evaluate(schedule, lambda done: _evaluate(model, suite, plan, out, done)))
    if main:
        writers = [
            CommonMetricPrinter(schedule.max_iter),
            JSONWriter(str(out / "metrics.json")),
            TensorboardXWriter(str(out)),
        ]
        hooks.append(d2_hooks.PeriodicWriter(writers, period=cfg.train.get("log_period", 20)))
    trainer = Trainer(
        distributed(model, cfg, plan.device),
        optimizer,
        _train_loader(cfg, start_iter),
        hooks,
        cfg.train.get("seed", 0),
        cfg.train.get("accumulate", 1),
    )
    started = time.perf_counter()
    with StopSignals() as signals:
        trainer.train(start_iter, schedule.max_iter, signals)
    if main:
        about = about | {"train_seconds": round(time.perf_counter() - started, 1)}
        if trainer.stopped_by:
            about["stopped_by"] = trainer.stopped_by
        _write_about(out, plan, about)
        logger.info("The report is %s", write_report(out))
    if trainer.stopped_by:
        logger.warning("Stopped by %s and saved; --resume goes on", trainer.stopped_by)
        return EXIT_STOPPED
    return 0


def evaluate_only(cfg: Any, plan: Plan, about: dict[str, Any]) -> int:
    """Evaluates `plan.weights` and writes the results to `<output_dir>/eval`.

    Returns:
        The exit status 0.
    """
    out = plan.output_dir / "eval"
    main = comm.is_main_process()
    if main:
        make_output_dir(out, overwrite=False)
        setup_logging(out / "log.txt")
        _log_plan(plan)
        LazyConfig.save(cfg, str(out / "config.yaml"))
        _write_about(out, plan, about)
    else:
        setup_logging(quiet=True)
    log_ranks(plan.device)
    register_datasets(cfg.datasets)
    model = instantiate(with_num_classes(cfg.model, plan.num_classes)).to(plan.device)
    if main:
        ckpt.load_weights(model, plan.weights)
    copy_from_main(model)
    suite = Suite(cfg.dataloader.get("test") or cfg.dataloader.val, cfg.evaluators)
    _evaluate(model, suite, plan, out, done=None)
    if main:
        logger.info("The report is %s", write_report(out))
    return 0


def _build(cfg: Any, plan: Plan) -> tuple[nn.Module, Optimizer]:
    torch.manual_seed(cfg.train.get("seed", 0))  # initial weights
    model = instantiate(with_num_classes(cfg.model, plan.num_classes)).to(plan.device)
    if cfg.train.get("channels_last", False):
        model = model.to(memory_format=torch.channels_last)
    cfg.optimizer.params.model = model
    optimizer = instantiate(cfg.optimizer)
    cfg.optimizer.params.pop("model")
    count = sum(p.numel() for p in model.parameters())
    logger.info("The model has %.1f million parameters", count / 1e6)
    return model, optimizer


def _start(model: nn.Module, optimizer: Optimizer, plan: Plan) -> int:
    """Loads what the plan says and returns the first iteration."""
    if not plan.resume:
        if plan.weights and comm.is_main_process():
            ckpt.load_weights(model, plan.weights)
        copy_from_main(model)
        return 0
    state = from_main(lambda: ckpt.read_checkpoint(plan.resume))
    settings = [
        {k: v for k, v in group.items() if k != "params"} for group in optimizer.param_groups
    ]
    try:
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
    except (KeyError, RuntimeError, ValueError) as e:
        raise UserError(
            f"{plan.resume} does not fit this config ({str(e).splitlines()[0]}); resume needs the"
            " model and optimizer it was trained with, train.init_checkpoint takes weights alone"
        ) from e
    # The config's rates and decays win over the stored ones.
    for group, mine in zip(optimizer.param_groups, settings, strict=True):
        group.update(mine)
    batch = plan.schedule.batch_size
    start = state["images_seen"] // batch
    before = state["images_seen"] // max(state["iterations_done"], 1)
    change = f" ({before} images a step before, {batch} now)" if before != batch else ""
    logger.info("Resumed %s: goes on at iteration %d%s", plan.resume, start, change)
    return start


def _lr_multiplier(cfg: Any, plan: Plan) -> Any:
    warmup = plan.schedule.warmup_iters
    if warmup is not None:
        cfg.lr_multiplier.warmup_length = warmup / plan.schedule.max_iter
    return instantiate(cfg.lr_multiplier)


def _train_loader(cfg: Any, start_iter: int) -> Any:
    loader = cfg.dataloader.train
    if OmegaConf.select(loader, "seed") is None:
        if start_iter:
            logger.warning(
                "dataloader.train is not d2ext's: its data starts anew, not in the middle"
            )
        return instantiate(loader)
    loader.start_iter = start_iter
    return instantiate(loader)


def _evaluate(model: nn.Module, suite: Suite, plan: Plan, out: Path, done: int) -> dict[str, float]:
    evaluations = suite.evaluate(model)
    if not comm.is_main_process():
        return {}
    results = {key: value for e in evaluations for key, value in e.results.items()}
    write_json(
        out / "results.json", {"last": {"iteration": done, "results": finite_or_none(results)}}
    )
    for evaluation in evaluations:
        name = evaluation.dataset
        synthetic = " (synthetic data)" * plan.datasets[name]["synthetic"]
        for key, value in evaluation.results.items():
            if key.endswith("/AP"):
                logger.info("%s%s %.1f", key, synthetic, value)
        write_predictions(evaluation, out / "predictions")
        metadata = MetadataCatalog.get(name)
        folder = out / "overlays" / name
        write_overlays(evaluation.records, evaluation.predictions, metadata, folder)
    return results


def _checkpoint_bytes(model: nn.Module) -> int:
    """An upper bound: weights and two optimizer moments."""
    return 3 * sum(t.numel() * t.element_size() for t in model.state_dict().values())


def _log_plan(plan: Plan) -> None:
    for line in plan.lines:  # the terminal has seen them
        logger.debug(line)


def _write_about(out: Path, plan: Plan, about: dict[str, Any]) -> None:
    packages = ("torch", "torchvision", "detectron2", "sal-detectron2", "numpy", "timm", "hotcoco")
    versions = {"d2ext": __version__, "python": platform.python_version()}
    for package in packages:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    content = {
        **about,
        "started": datetime.datetime.now().astimezone().isoformat(timespec="seconds"),
        "versions": versions,
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} CPU cores",
        "device": plan.device,
        "datasets": plan.datasets,
    }
    previous = out / "run.json"
    if previous.is_file() and "train_seconds" in about:
        content["started"] = json.loads(previous.read_text())["started"]
    write_json(previous, content)
