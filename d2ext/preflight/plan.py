"""Everything that can be known to be wrong before a process starts or a byte is written.

Preflight turns a config and the command's flags into a `Plan` of plain values, which travel to
every process; each of its checks names the field, the value and the remedy.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from detectron2.config import instantiate
from omegaconf import OmegaConf

from d2ext.checkpoint.files import find_newest
from d2ext.checkpoint.weights.initial import local_weights
from d2ext.config.lr_scaling import ScalingReport, check_batch, scale_config
from d2ext.config.schedule import Period, Schedule, resolve_schedule
from d2ext.data.datasets.class_mapping import register_run_datasets
from d2ext.data.datasets.mixing import TrainingSet
from d2ext.errors import UserError, config_errors
from d2ext.evaluation.expect import parse_expectation
from d2ext.evaluation.suite import test_sets
from d2ext.launch.device import choose_device
from d2ext.preflight.datasets import check_datasets
from d2ext.preflight.loader_needs import loader_warnings
from d2ext.preflight.model_fields import check_model_fields
from d2ext.preflight.num_classes import check_num_classes
from d2ext.preflight.options import best_metric, check_metrics, check_options, check_schedule
from d2ext.run_dir.lock import check_writable, refuse_mixing, wait_until_free
from d2ext.run_dir.schema import DatasetInfo

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Plan:
    """Preflight's decisions.

    Attributes:
        output_dir: of the run.
        device: `cpu` or `cuda`.
        classes: names, whose number every head of the model has.
        datasets: `DatasetInfo` by name.
        schedule: epochs and periods in iterations; None for an evaluation only.
        weights: local path of the initial weights, or of those to evaluate.
        resume: local path of the checkpoint to go on from, or None.
        scaling: `ScalingReport` where learning rates were scaled, else None.
        lines: the plan in words.
        best_metric: the result that decides what is best, or None.
        damaged: checkpoints that are to be set aside.
    """

    output_dir: Path
    device: str
    classes: list[str]
    datasets: dict[str, DatasetInfo]
    schedule: Schedule | None
    weights: str
    resume: Path | None
    scaling: ScalingReport | None
    lines: list[str]
    best_metric: str | None = None
    damaged: tuple[Path, ...] = ()


def plan_run(
    cfg: Any,
    name: str,
    *,
    num_gpus: int = 1,
    gpu_each: bool = False,
    world_size: int = 1,
    eval_only: bool = False,
    weights: str | None = None,
    resume: bool = False,
    resume_from: str | None = None,
    overwrite: bool = False,
    validate: bool = True,
    tta: bool = False,
    expect: Sequence[str] = (),
) -> Plan:
    """Checks a config against the data, the model and the machine, and logs the plan.

    Nothing is written but initial weights that are not at hand yet, to the cache ($D2EXT_CACHE).

    Args:
        cfg: of `load_config`.
        name: of the config file; the default output directory is called so.
        num_gpus: processes on this machine.
        gpu_each: of `choose_device`.
        world_size: processes over all machines.
        eval_only: no training; `weights` are evaluated.
        weights: `best`, `last` or a file, for an evaluation only.
        resume: go on from the newest good checkpoint of the output directory, if there is one.
        resume_from: go on from this checkpoint.
        overwrite: an earlier run in the output directory will be moved aside.
        validate: the run will be evaluated on `dataloader.val`.
        tta: test-time augmentation, for an evaluation only.
        expect: bounds on results, of `parse_expectation`.

    Raises:
        UserError: for whatever the user can mend.
    """
    lines: list[str] = []

    def say(*more: str) -> None:
        for line in more:
            logger.info(line)
        lines.extend(more)

    device, words = choose_device(cfg.train.get("device", "cuda"), num_gpus, gpu_each)
    output_dir = Path(cfg.train.get("output_dir") or Path("work_dirs") / name)
    say(f"output      {output_dir}", f"device      {words}")
    check_options(cfg, device, validate, eval_only, tta, expect)
    scaling = None
    if not eval_only and OmegaConf.select(cfg, "train.auto_scale_lr.enabled"):
        cfg, scaling = scale_config(cfg, world_size)
        say(*scaling.lines())
    if not eval_only:
        accumulate = cfg.train.get("accumulate", 1)
        check_batch(cfg.dataloader.train.total_batch_size, world_size, accumulate)
    checkpoint, damaged = Path(resume_from) if resume_from else None, []
    if resume_from and not checkpoint.is_file():
        raise UserError(f"--resume-from {resume_from}: no such file")
    # A checkpoint of the run that is in there goes on with it, another one does not.
    continues = resume or checkpoint and checkpoint.resolve().parent == output_dir.resolve()
    if not eval_only and not continues and not overwrite:
        refuse_mixing(output_dir)
    check_writable(output_dir)
    if resume:
        if not eval_only:
            wait_until_free(output_dir)
        checkpoint, damaged = find_newest(output_dir)

    differences = register_run_datasets(cfg)
    if eval_only:
        splits = {"test": cfg.dataloader.get("test") or cfg.dataloader.get("val")}
    else:
        splits = {"train": cfg.dataloader.train}
        if validate:
            splits["val"] = cfg.dataloader.get("val")
    notes = check_model_fields(cfg)
    datasets, classes, table = check_datasets(cfg, splits)
    say(*table, *(f"data        note: {note}" for note in [*differences, *notes]))
    check_num_classes(cfg.model, classes)
    tested = test_sets(splits["test" if eval_only else "val"]) if eval_only or validate else []
    wanted = {f"--expect {text!r}": parse_expectation(text).key for text in expect}
    best = None
    if validate and not eval_only and (best := best_metric(cfg.train, tested)):
        wanted["train.best.metric"] = best
    heads = cfg.model.get("roi_heads")
    masks = heads is None or heads.get("mask_head") is not None
    check_metrics(
        cfg.evaluators,
        wanted,
        {name: (classes, masks and datasets[name].masks) for name in tested},
    )

    field = "--weights" if weights else "train.init_checkpoint"
    if eval_only:
        source = weights_to_evaluate(
            weights, checkpoint, output_dir, cfg.train.get("init_checkpoint")
        )
        schedule = None
        say(f"weights     {source}")
    else:
        source = cfg.train.get("init_checkpoint") or ""
        schedule, images = _schedule(cfg)
        check_schedule(cfg.train, schedule)
        say(*_schedule_lines(cfg, schedule, world_size, images))
        if checkpoint:
            say(f"start       resumes {checkpoint}")
        else:
            nothing = "nothing to resume; " * resume
            say(f"start       {nothing}iteration 0, weights {source or 'at random'}")
    say(*loader_warnings(cfg, splits, world_size, num_gpus))
    return Plan(
        output_dir,
        device,
        classes,
        datasets,
        schedule,
        "" if checkpoint and not eval_only else local_weights(source, field),
        None if eval_only else checkpoint,
        scaling,
        lines,
        best,
        () if eval_only else tuple(damaged),
    )


def _schedule(cfg: Any) -> tuple[Schedule, str]:
    """The schedule, and the images of an epoch in words."""
    names = cfg.dataloader.train.dataset.names
    with config_errors(f"dataloader.train.dataset ({names})"):
        dataset = instantiate(cfg.dataloader.train.dataset)
    images = len(dataset)
    fraction = cfg.lr_multiplier.get("warmup_length") or 0.0
    schedule = resolve_schedule(cfg.train, cfg.dataloader.train.total_batch_size, images, fraction)
    return schedule, str(dataset) if isinstance(dataset, TrainingSet) else f"{images} images"


def _schedule_lines(cfg: Any, s: Schedule, world_size: int, images: str) -> list[str]:
    reference, batch = cfg.train.get("reference_world_size"), cfg.train.get("reference_batch_size")
    tuned, scaled = "", OmegaConf.select(cfg, "train.auto_scale_lr.enabled")
    if reference and batch and not scaled:
        tuned = f" (tuned for {reference} x {batch // reference} images"
        tuned += "; --auto-scale-lr adapts it)" if reference != world_size else ")"
    each = cfg.train.get("accumulate", 1)
    micro = f" in {each} micro-batches" if each > 1 else ""
    share = f"{s.batch_size // world_size} on each of {world_size} workers"
    workers = "on 1 worker" if world_size == 1 else share
    return [
        f"run         {images}, {s.batch_size} a step, {workers}{micro}:"
        f" {s.epochs:.4g} epochs = {s.max_iter} iterations",
        f"rate        lr {cfg.optimizer.lr:g}{tuned} after {s.warmup_iters or 0} iterations of"
        " warm-up",
        f"periods     evaluation {_words(s.eval_period)}, checkpoint {_words(s.checkpoint_period)}",
    ]


def _words(period: Period) -> str:
    number, unit = (period.epochs, "epoch") if period.epochs else (period.iterations, "iteration")
    if not number:
        return "at the end only"
    return f"every {unit}" if number == 1 else f"every {number} {unit}s"


def weights_to_evaluate(
    weights: str | None, checkpoint: Path | None, output_dir: Path, init_checkpoint: str | None
) -> str:
    """The file that `--weights` means: `best`, `last`, a file, or the run's own.

    Raises:
        UserError: there is none.
    """
    if weights == "last":
        found, _ = find_newest(output_dir)
        if not found:
            raise UserError(
                f"--weights last: {output_dir} has no checkpoint; train first, or name a file"
            )
        return str(found)
    if weights == "best":
        best = output_dir / "model_best.pth"
        if not best.is_file():
            raise UserError(f"--weights best: {best} does not exist; use --weights last or a file")
        return str(best)
    if weights:
        return weights
    if checkpoint:
        return str(checkpoint)
    if not init_checkpoint:
        raise UserError("nothing to evaluate: give --weights best, last or a file")
    return init_checkpoint
