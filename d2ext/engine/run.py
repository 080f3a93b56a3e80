"""One run, from a checked plan to a directory of results."""

import copy
import json
import logging
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from detectron2.config import LazyConfig
from detectron2.data import MetadataCatalog
from detectron2.engine import hooks as d2_hooks
from detectron2.utils import comm
from detectron2.utils.events import CommonMetricPrinter, JSONWriter, TensorboardXWriter
from torch import nn

from d2ext.config.check import shared_fields
from d2ext.config.load import load_config
from d2ext.config.scaling import scale_config
from d2ext.data.catalog import register_datasets
from d2ext.engine import checkpoint as ckpt
from d2ext.engine.about import finish_about, write_about
from d2ext.engine.build import (
    build_model,
    build_multiplier,
    build_optimizer,
    build_suite,
    build_train_loader,
    load_start,
)
from d2ext.engine.distributed import copy_from_main, distributed, from_main, log_ranks
from d2ext.engine.hooks import Checkpoint, Evaluate, LearningRate, ProgressBar
from d2ext.engine.log import log_to_file, setup_logging
from d2ext.engine.output_dir import check_free_space, make_output_dir
from d2ext.engine.preflight import Plan, plan_run
from d2ext.engine.signals import EXIT_STOPPED, StopSignals
from d2ext.engine.trainer import Trainer
from d2ext.errors import UserError
from d2ext.evaluation.suite import Suite, finite_or_none, write_predictions
from d2ext.files import replaced, write_json
from d2ext.inference.overlay import write_overlays
from d2ext.report import write_report

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Job:
    """What travels to every rank: plain values; each loads the config again.

    Attributes:
        config_file, overrides: for `load_config`.
        about: of `about.describe`.
        options: of `plan_run`.
        plan: of `plan_run`; None lets rank 0 make it, and is so on other machines.
    """

    config_file: str
    overrides: list[str]
    about: dict[str, Any]
    options: dict[str, Any]
    plan: Plan | None


def run_rank(job: Job) -> int:
    """What each rank of a run does; returns the exit status, 75 when a signal stopped it."""
    if comm.get_world_size() > 1:  # else the tool has done so
        setup_logging(quiet=not comm.is_main_process())
    cfg = load_config(job.config_file, job.overrides)
    _check_same_config(cfg)
    # The flags of the first machine are those of the run.
    options = from_main(lambda: job.options)
    plan = from_main(lambda: job.plan or plan_run(cfg, job.about["name"], **options))
    if options["eval_only"]:
        return evaluate_only(cfg, plan, job.about)
    return train(cfg, plan, job.about, options["overwrite"], options["validate"])


def _check_same_config(cfg: Any) -> None:
    mine = shared_fields(cfg)
    first = from_main(lambda: mine)
    for key in sorted(mine.keys() | first.keys()):
        if mine.get(key) != first.get(key):
            raise UserError(
                f"{key} is {mine.get(key, 'absent')} here and {first.get(key, 'absent')} for rank"
                " 0; give every machine the same config and overrides"
            )


def train(cfg: Any, plan: Plan, about: dict[str, Any], overwrite: bool, validate: bool) -> int:
    """Trains, evaluates, and leaves the run directory that docs/architecture.md describes.

    Everything is built and loaded before the output directory is touched.

    Args:
        cfg: of `load_config`.
        plan: of `plan_run`.
        about: of `about.describe`.
        overwrite: move an earlier run in the output directory aside.
        validate: evaluate at the config's periods and at the end.

    Returns:
        The exit status: 0, or 75 when a signal stopped the run after it was saved.
    """
    out, schedule, main = plan.output_dir, plan.schedule, comm.is_main_process()
    unscaled = cfg
    if plan.scaling:
        cfg, _ = scale_config(cfg, comm.get_world_size())
    log_ranks(plan.device)
    register_datasets(cfg.datasets)
    model = build_model(cfg, plan)
    optimizer = build_optimizer(cfg, model)
    start_iter = load_start(model, optimizer, plan)
    multiplier = build_multiplier(cfg, schedule)
    loader = build_train_loader(cfg, start_iter)
    suite = build_suite("dataloader.val", cfg.dataloader.val, cfg) if validate else None

    def open_folder() -> None:
        check_free_space(out, _checkpoint_bytes(model))
        aside = make_output_dir(out, overwrite)
        log_to_file(out / "log.txt")
        if aside:
            logger.info("The earlier run was moved to %s", aside)
        if plan.scaling:
            write_json(out / "scaling.json", plan.scaling)

    def describe_run() -> float:
        _save_config(unscaled, out)
        return write_about(out, plan, about)

    from_main(open_folder)
    if start_iter >= schedule.max_iter:
        return _end(model, suite, plan, start_iter)
    started = from_main(describe_run)

    def content(done: int) -> dict[str, Any]:
        return {
            "model": model.state_dict(),
            "optimizer": optimizer.state_dict(),
            "optimizer_type": type(optimizer).__name__,
            "iterations_done": done,
            "images_seen": done * schedule.batch_size,
        }

    hooks = [LearningRate(optimizer, multiplier), d2_hooks.IterationTimer()]
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
        loader,
        hooks,
        cfg.train.get("seed", 0),
        cfg.train.get("accumulate", 1),
    )
    with StopSignals() as signals:
        trainer.train(start_iter, schedule.max_iter, signals)
    if main:
        finish_about(out, started, trainer.stopped_by)
        _report(out, plan)
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
    log_ranks(plan.device)
    register_datasets(cfg.datasets)
    model = build_model(cfg, plan)
    from_main(lambda: ckpt.load_weights(model, plan.weights))
    copy_from_main(model)
    suite = build_suite("dataloader.test", cfg.dataloader.get("test") or cfg.dataloader.val, cfg)

    def open_folder() -> None:
        make_output_dir(out, overwrite=False)
        log_to_file(out / "log.txt")
        _save_config(cfg, out)
        write_about(out, plan, about)

    from_main(open_folder)
    _evaluate(model, suite, plan, out, done=None)
    if comm.is_main_process():
        _report(out, plan)
    return 0


def _end(model: nn.Module, suite: Suite | None, plan: Plan, done: int) -> int:
    """For a resumed run that has no step left: what it may not have come to at its end."""
    out = plan.output_dir
    logger.info("Nothing left to train: the run ends at iteration %d", plan.schedule.max_iter)
    if comm.is_main_process() and plan.resume.name != "model_final.pth":
        ckpt.save_final(plan.resume, out)
    # Rank 0's answer for all: others may not see its disk.
    if suite and from_main(lambda: _last_evaluated(out)) != done:
        _evaluate(model, suite, plan, out, done)
    if comm.is_main_process():
        _report(out, plan)
    return 0


def _report(out: Path, plan: Plan) -> None:
    synthetic = " (synthetic data)" * any(d["synthetic"] for d in plan.datasets.values())
    logger.info("The report%s is %s", synthetic, write_report(out))


def _last_evaluated(out: Path) -> int | None:
    path = out / "results.json"
    return json.loads(path.read_text())["last"]["iteration"] if path.is_file() else None


def _save_config(cfg: Any, out: Path) -> None:
    """Writes config.yaml, which resumes where it lies, whole or not at all."""
    cfg = copy.deepcopy(cfg)
    cfg.train.output_dir = str(out)
    # Detectron2 writes in place, and logs what goes wrong with the disk.
    with tempfile.TemporaryDirectory() as folder:
        LazyConfig.save(cfg, f"{folder}/config.yaml")
        text = Path(folder, "config.yaml").read_text()
    with replaced(out / "config.yaml") as f:
        f.write(text)


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
