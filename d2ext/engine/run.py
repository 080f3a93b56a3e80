"""One training, from a checked plan to a directory of results."""

import functools
import logging
import time
from collections.abc import Sequence
from typing import Any

from detectron2.engine import hooks as d2_hooks
from detectron2.utils import comm

from d2ext.checkpoint import files as ckpt
from d2ext.checkpoint.fingerprint import fingerprint, warn_of_changes
from d2ext.checkpoint.hook import CheckpointHook
from d2ext.config.lr_scaling import scale_config
from d2ext.data.datasets.class_mapping import register_run_datasets
from d2ext.engine.builders import build_multiplier, build_suite, build_train_loader
from d2ext.engine.dry_step import misfits_explained
from d2ext.engine.evaluate import evaluate_into, exit_status
from d2ext.engine.hooks import (
    AverageWeightsHook,
    EvaluationHook,
    LearningRateHook,
    MemoryHook,
    OnTrainStart,
    ReportHook,
)
from d2ext.engine.metric_writer import MetricWriter
from d2ext.engine.nonfinite import FiniteLossGuard, NonFinitePolicy
from d2ext.engine.overview import write_overview
from d2ext.engine.progress import LivePanel, print_summary
from d2ext.engine.run_info import make_run_info
from d2ext.engine.techniques import autocast, compile_backbone
from d2ext.engine.train_state import start_state
from d2ext.engine.trainer import Trainer
from d2ext.errors import best_effort
from d2ext.evaluation.suite import test_sets
from d2ext.launch.collectives import (
    broadcast_buffers,
    broadcast_from_rank0,
    distributed,
    log_ranks,
)
from d2ext.launch.command import RunCommand
from d2ext.launch.signals import EXIT_STOPPED, StopSignals
from d2ext.preflight.plan import Plan
from d2ext.run_dir.lock import check_free_space, make_output_dir
from d2ext.run_dir.logging import log_to_file
from d2ext.run_dir.metadata import finish_run_info, save_config, write_repro_command, write_run_info
from d2ext.run_dir.results import Results
from d2ext.run_dir.schema import write_record

logger = logging.getLogger(__name__)


def train(
    cfg: Any,
    plan: Plan,
    run_info: RunCommand,
    signals: StopSignals,
    overwrite: bool = False,
    resume: bool = False,
    validate: bool = True,
    expect: Sequence[str] = (),
) -> int:
    """Trains, evaluates, and leaves the run directory that docs/architecture.md describes.

    Everything is built and loaded before the output directory is touched.

    Args:
        cfg: of `load_config`.
        plan: of `plan_run`.
        run_info: of `launch.command.describe_run`.
        signals: what asks the run to stop, which it does behind its first step at the earliest.
        overwrite: move an earlier run in the output directory aside.
        resume: go on with it, also where it was killed before its first checkpoint.
        validate: evaluate at the config's periods and at the end.
        expect: of `parse_expectation`, for the last evaluation.

    Returns:
        The exit status: 0, 1 if an expectation does not hold, or 75 when a signal stopped the run
        after it was saved.
    """
    out, schedule, main = plan.output_dir, plan.schedule, comm.is_main_process()
    unscaled = cfg
    if plan.scaling:
        cfg, _ = scale_config(cfg, comm.get_world_size())
    options = cfg.train
    log_ranks(plan.device)
    register_run_datasets(cfg)
    state = start_state(cfg, plan)
    start_iter = state.start_iter
    if options.get("compile", {}).get("enabled", False):
        compile_backbone(state.model, options.compile)
    multiplier = build_multiplier(cfg, schedule)
    loader = build_train_loader(cfg, start_iter)
    suite = build_suite("dataloader.val", cfg.dataloader.val, cfg) if validate else None
    mode = options.get("best", {}).get("mode", "max")

    def open_folder() -> Results:
        check_free_space(out, state.nbytes())
        backup_dir = make_output_dir(out, overwrite, resume=resume or bool(plan.resume))
        ckpt.remove_leftovers(out)
        log_to_file(out / "log.txt")
        for path in plan.damaged:
            logger.warning("%s is damaged and was renamed to %s", path, ckpt.set_aside(path).name)
        if backup_dir:
            logger.info("The earlier run was moved to %s", backup_dir)
        if plan.scaling:
            write_record(out / "scaling.json", plan.scaling)
        write_run_info(out, make_run_info(plan, run_info))
        file = out / "results.json"
        saved = state.resumed.get("results")
        return Results(file, plan.best_metric, mode, state.checkpoint_iter, start_iter, saved)

    results = broadcast_from_rank0(open_folder)
    made_of = functools.cache(lambda: fingerprint(unscaled, loader))
    if main and state.resumed:
        warn_of_changes(state.resumed, made_of())

    def content(done: int) -> dict[str, Any]:
        return {
            **state.content(done, schedule.batch_size, options.get("accumulate", 1)),
            "seed": options.get("seed", 0),
            "classes": plan.classes,
            "fingerprint": made_of(),
            "results": results.content(),
        }

    saving = options.checkpointer
    keep, asynchronous = saving.get("max_to_keep", 0), saving.get("asynchronous", False)
    checkpoint = CheckpointHook(out, schedule, keep, content, asynchronous)
    patience = options.get("early_stopping_patience")

    def evaluate(done: int) -> tuple[dict[str, float], str | None]:
        def save_when_stopped() -> None:
            # The evaluation may be killed before it is over; a resume makes up for it.
            if main and signals.received and done > start_iter:
                checkpoint.save_now(done)

        broadcast_buffers(state.evaluated)
        numbers = evaluate_into(state.evaluated, suite, plan, out, save_when_stopped)

        def judge() -> str | None:
            if results.is_better(numbers):
                checkpoint.save_best(done)
            results.record(done, numbers)
            return results.exhausted(patience)

        return numbers, broadcast_from_rank0(judge)

    end = schedule.max_iter
    if start_iter >= end or start_iter and suite and results.exhausted(patience):
        logger.info("Nothing left to train: the run ends at iteration %d", start_iter)
        end = start_iter
        if main and plan.resume.name != "model_final.pth":
            ckpt.save_final(plan.resume, out)

    def evaluation_due(done: int) -> bool:
        return bool(suite) and (done == end or schedule.eval_period.due(done, schedule))

    def numbers_due(done: int) -> bool:
        period = options.get("log_period", 20)
        return done % period == 0 or done == end or evaluation_due(done)

    def describe_run() -> None:
        made_of()  # of the data as they are now
        if save_config(unscaled, out):
            write_repro_command(out, run_info.start)

    @functools.cache
    def look_at_data() -> None:
        # Behind the first evaluation, so that no training waits for it to begin.
        # Sets of Detectron2's own registration are left out: its readers take long, or fork.
        names = [name for name in plan.datasets if name in cfg.datasets]
        write_overview(names, test_sets(cfg.dataloader.train), out)

    def report() -> None:
        from d2ext.report import write_report  # here, because a training need not wait for Jinja

        if not trainer.stopped_by:  # whoever sent the signal may not wait for more
            look_at_data()
        with best_effort("report"):
            write_report(out)

    hooks = [
        OnTrainStart(lambda: broadcast_from_rank0(describe_run)),
        LearningRateHook(state.optimizer, multiplier),
        d2_hooks.IterationTimer(),
    ]
    if state.average:
        hooks.append(AverageWeightsHook(state.average, state.model))
    if main:
        hooks += [
            MemoryHook(),
            LivePanel(run_info.name, schedule, results, evaluation_due),
            checkpoint,
        ]
    if suite:
        hooks.append(EvaluationHook(evaluation_due, evaluate, results.known(start_iter)))
    if main:
        hooks.append(MetricWriter(out, numbers_due, schedule.max_iter))
        hooks.append(ReportHook(evaluation_due, report))
    trainer = Trainer(
        distributed(FiniteLossGuard(state.model), cfg, plan.device),
        state.optimizer,
        loader,
        hooks,
        options.get("seed", 0),
        options.get("accumulate", 1),
        autocast(options.get("amp", {}), plan.device),
        state.scaler,
        options.get("clip_grad_norm"),
        NonFinitePolicy(**options.get("bad_loss", {})),
        functools.partial(misfits_explained, cfg, state.model),
    )
    memory = dict(state.resumed)
    if state.checkpoint_iter != start_iter:  # its iterations had another batch size
        for name in ("recent", "present"):
            memory.pop(name, None)
    started = time.monotonic()
    trainer.train(start_iter, end, signals, memory)
    if trainer.ended_early:
        logger.info("Ended early at iteration %d: %s", trainer.iter, trainer.ended_early)
    if main:
        finish_run_info(out, started, trainer.stopped_by)
        report()
        print_summary(out, results, run_info.command, bool(trainer.stopped_by))
    if trainer.stopped_by:
        what = "and saved" if trainer.iter else "before the first step"
        logger.warning("Stopped by %s %s; --resume goes on", trainer.stopped_by, what)
        return EXIT_STOPPED
    return exit_status(results, expect)
