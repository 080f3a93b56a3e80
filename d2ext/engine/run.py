"""Execute a run, from a checked plan to a run directory with results."""

import contextlib
import functools
import logging
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from detectron2.engine import HookBase
from detectron2.engine.hooks import IterationTimer
from detectron2.utils import comm
from torch import Tensor

from d2ext.checkpoint import files as ckpt
from d2ext.checkpoint.fingerprint import fingerprint, warn_of_changes
from d2ext.checkpoint.hook import CheckpointHook
from d2ext.checkpoint.weights.initial import load_weights
from d2ext.config.augmentation import with_augmentation
from d2ext.config.choices import with_choices
from d2ext.config.lr_scaling import scale_config
from d2ext.config.options import TrainOptions
from d2ext.config.schedule import Schedule
from d2ext.data.datasets.class_mapping import register_run_datasets
from d2ext.data.fitting.fit import AUTO
from d2ext.data.splitting.own_data import SPLIT
from d2ext.engine.builders import (
    build_hooks,
    build_model,
    build_multiplier,
    build_suite,
    build_train_loader,
    build_writers,
)
from d2ext.engine.dry_step import misfits_explained
from d2ext.engine.evaluation_outputs import Written, write_evaluations
from d2ext.engine.hooks import (
    AverageWeightsHook,
    EvaluationHook,
    LearningRateHook,
    MemoryHook,
    OnTrainStart,
    ReportHook,
    hook_states,
    load_hook_states,
)
from d2ext.engine.losses import losses_of
from d2ext.engine.metric_writer import MetricWriter
from d2ext.engine.nonfinite import FiniteLossGuard, NonFinitePolicy
from d2ext.engine.overview import write_overview
from d2ext.engine.progress import LivePanel, print_summary, resuming
from d2ext.engine.resource_errors import resource_errors_explained
from d2ext.engine.techniques import autocast, compile_backbone
from d2ext.engine.train_state import TrainState
from d2ext.engine.trainer import Trainer
from d2ext.errors import best_effort, config_errors
from d2ext.evaluation.expect import parse_expectation
from d2ext.evaluation.suite import Suite, test_sets
from d2ext.evaluation.tta import untransformed, with_tta
from d2ext.evaluation.validation_loss import ValidationLoss, loss_loader
from d2ext.invocation import option
from d2ext.launch.collectives import (
    broadcast_buffers,
    broadcast_from_rank0,
    broadcast_weights,
    distributed,
    log_ranks,
)
from d2ext.launch.command import RunCommand
from d2ext.launch.device import gpu_facts
from d2ext.launch.signals import EXIT_STOPPED, StopSignals
from d2ext.preflight.plan import Plan
from d2ext.run_dir.lock import check_free_space, make_output_dir
from d2ext.run_dir.logging import log_to_file
from d2ext.run_dir.metadata import finish_run_info, save_config, write_repro_command, write_run_info
from d2ext.run_dir.results import Results
from d2ext.run_dir.schema import UNSET, RunInfo, write_record

logger = logging.getLogger(__name__)


class Run:
    """One run: `setup`, then `train`; or, for an evaluation, `setup`, `evaluate` and `finish`.

    Every rank creates one. To write your own training loop, copy this class and change its methods.

    Args:
        cfg: Config returned by `load_config`.
        plan: Plan returned by `plan_run`; `plan.eval_only` decides which kind of run this is.
        command: Command that started the run, returned by `describe_run`.
        signals: Requests to stop; training stops after its first step at the earliest.
        hooks: Hooks of the caller, which are called after those of `train.hooks`.

    Attributes:
        output_dir: Run directory, or `eval` in it for an evaluation.
        original_cfg: Config as passed by the caller, with the values that the plan chose for it;
            it is saved.
        cfg: Config with the values of this run's world size, set by `setup`.
        options: Section `train` of the config, set by `setup`.
        schedule: Schedule of training; None for an evaluation.
        user_hooks: Hooks of `train.hooks`, then those of the caller; complete after `setup`.
        state: Model, optimizer, loss scaler and averaged weights; `setup` sets it for training.
        multiplier: Learning rate schedule; `setup` sets it for training.
        loader: Loader of the training set; `setup` sets it for training.
        suite: Test sets and metrics, or None for training without evaluations; set by `setup`.
        validation_loss: Losses on the validation sets; `setup` sets it for training.
        evaluated: Model to evaluate, with the averaged weights if there are any; set by `setup`.
        evaluations: Results of the evaluations so far, complete on rank 0; set by `setup`.
        checkpointer: Hook that writes checkpoints, on rank 0; set by `train`.
        metric_writer: Hook that writes metrics, on rank 0; set by `train`.
        trainer: Training loop; set by `train`.
        started: Start of the loop in seconds on the monotonic clock; set by `train`.
        fingerprint: Fingerprint of config and data for checkpoints, on rank 0; set by `train`.

    Examples:
        >>> import d2ext
        >>> cfg = d2ext.load_config("runs/trained/config.yaml", ["train.max_iter=1"])
        >>> run = d2ext.train(cfg, "runs/b")
        >>> run.results == run.evaluations.last.results
        True
        >>> weights = run.output_dir / "model_final.pth"
        >>> prediction = d2ext.Predictor(run.evaluated, run.cfg)("photo.jpg")
    """

    def __init__(
        self,
        cfg: Any,
        plan: Plan,
        command: RunCommand,
        signals: StopSignals,
        hooks: Sequence[HookBase] = (),
    ):
        self.original_cfg = with_choices(cfg, plan.fitted.applied) if plan.fitted else cfg
        self.plan = plan
        self.command = command
        self.signals = signals
        self.user_hooks = list(hooks)
        self.schedule = plan.schedule
        self.output_dir = plan.output_dir / "eval" if plan.eval_only else plan.output_dir
        self.suite: Suite | None = None
        self.overview_written = False

    @property
    def results(self) -> dict[str, float | None]:
        """Return the flat results of the last evaluation; they are empty before the first one.

        Keys are `<dataset>/<metric>/<task>/<name>`; undefined numbers are None.
        """
        last = self.evaluations.last
        return dict(last.results) if last else {}

    @property
    def stopped_by(self) -> str | None:
        """Return the name of the signal that stopped training, or None."""
        return None if self.plan.eval_only else self.trainer.stopped_by

    @property
    def _training(self) -> Schedule:
        assert self.schedule  # None in an evaluation only
        return self.schedule

    def setup(self) -> None:
        """Build everything, load weights or a checkpoint, then open the run directory.

        Nothing is written to the run directory before everything is built.

        Raises:
            UserError: A part cannot be built or loaded, or the directory cannot be used.
        """
        log_ranks(self.plan.device)
        self._register_datasets()
        with _resource_errors_of_setup():
            if self.plan.eval_only:
                self._build_evaluation()
            else:
                self._build_training()
        self.evaluations = broadcast_from_rank0(self._open_run_dir)

    def train(self) -> int:
        """Train until the end of the schedule or a signal, and return the status of `finish`."""
        start, options = self.state.start_iter, self.options
        self._end_if_nothing_is_left()
        self.checkpointer = CheckpointHook(
            self.output_dir,
            self._training,
            options.checkpointer.max_to_keep,
            self._checkpoint,
            options.checkpointer.asynchronous,
        )
        with _resource_errors_of_setup():
            guarded = FiniteLossGuard(self.state.model)
            model = distributed(guarded, options.ddp, self.plan.device)
        self.trainer = Trainer(
            model,
            self.state.optimizer,
            self.loader,
            self._hooks(),
            options.seed,
            options.accumulate,
            autocast(options.amp, self.plan.device),
            self.state.scaler,
            options.clip_grad_norm,
            NonFinitePolicy(options.bad_loss.policy, options.bad_loss.max_skipped),
            functools.partial(misfits_explained, self.cfg, self.state.model),
            self.checkpointer.save_stopped if comm.is_main_process() else lambda: None,
        )
        memory = dict(self.state.resumed)
        load_hook_states(self.user_hooks, memory.get("hooks", []))
        if self.state.checkpoint_iter != start:  # the checkpoint's run had another batch size
            for name in ("recent", "present"):
                memory.pop(name, None)
        self.started = time.monotonic()
        try:
            self.trainer.train(start, self._training.max_iter, self.signals, memory)
            if self.trainer.ended_early:
                logger.info(
                    "Ended early at iteration %d: %s", self.trainer.iter, self.trainer.ended_early
                )
            return self.finish()
        finally:  # a hook's `after_train` or the report may have failed
            if comm.is_main_process():
                self.metric_writer.close()

    def evaluate(self, iteration: int | None = None) -> dict[str, float]:
        """Evaluate the model, and write predictions, analyses, overlays and results.

        During training, also save the best model, and end training if the patience of early
        stopping is exhausted.

        Args:
            iteration: Number of completed iterations; None if this run does not train.

        Returns:
            Flat results of all test sets and, during training, validation losses on rank 0; an
            empty dict on other ranks.
        """
        broadcast_buffers(self.evaluated)
        with resource_errors_explained(
            lambda: "in the evaluation",
            "use smaller images (dataloader.val.mapper.augmentations)",
            "dataloader.val.num_workers",
        ):
            before_batch = functools.partial(self._save_if_stopped, iteration)
            assert self.suite  # None in a training without evaluations only
            evaluations = self.suite.evaluate(self.evaluated, before_batch)
            losses = {} if iteration is None else self._validation_loss(iteration)
        written = Written({})
        if comm.is_main_process():
            written = write_evaluations(evaluations, self.output_dir)
        exhausted = broadcast_from_rank0(lambda: self._record_results(iteration, written, losses))
        if exhausted and iteration is not None and iteration < self._training.max_iter:
            self.trainer.ended_early = exhausted
        return written.results | losses if comm.is_main_process() else {}

    def finish(self) -> int:
        """Write the report, print where everything is, and return the exit status.

        Returns:
            0; 1 if an expectation does not hold; or 75 if a signal stopped the run, which is saved.
        """
        stopped_by = self.stopped_by
        if comm.is_main_process():
            if self.plan.eval_only:
                self._report_evaluation()
            else:
                finish_run_info(self.output_dir, self.started, stopped_by)
                self._report_training()
                self.metric_writer.close()  # after the report, because trackers upload it
                again = self.command.resume or resuming(self.command.line)
                print_summary(self.output_dir, self.evaluations, again, bool(stopped_by))
        if stopped_by:
            what = "and saved" if self.trainer.iter else "before the first step"
            again = option("--resume")
            logger.warning("Stopped by %s %s; continue with %s", stopped_by, what, again)
            return EXIT_STOPPED
        return self._exit_status()

    def _register_datasets(self) -> None:
        built = self.plan.built
        if built:
            self.cfg = built.cfg
        else:
            # The plan came from another process, so this rank builds everything itself.
            self.cfg = self.original_cfg
            if not self.plan.eval_only:
                self.cfg = with_augmentation(self.cfg)
            if self.plan.scaling:
                self.cfg, _ = scale_config(self.cfg, comm.get_world_size())
            register_run_datasets(self.cfg, self.plan.split)
        self.options = TrainOptions.from_config(self.cfg.train)

    def _build_evaluation(self) -> None:
        model = self.evaluated = build_model(self.cfg, self.plan)
        loader = self.cfg.dataloader.get("test") or self.cfg.dataloader.val
        if self.plan.tta:
            with config_errors(option("--tta")):
                self.evaluated = with_tta(model, self.cfg.dataloader.tta)
            loader = untransformed(loader)
        self.suite = build_suite("dataloader.test", loader, self.cfg)
        broadcast_from_rank0(
            lambda: load_weights(
                model,
                self.plan.weights,
                whole=True,
                classes=self.plan.classes,
                order=self.options.init_checkpoint_classes,
            )
        )
        broadcast_weights(model)

    def _build_training(self) -> None:
        cfg = self.cfg
        self.state = TrainState.create(cfg, self.plan)
        self.evaluated = self.state.evaluated
        if self.options.compile.enabled:
            compile_backbone(self.state.model, self.options.compile)
        self.multiplier = build_multiplier(cfg, self._training)
        self.loader = build_train_loader(cfg, self.state.start_iter, self._take_train_dataset())
        if self.plan.validate:
            self.suite = build_suite("dataloader.val", cfg.dataloader.val, cfg)
        names = self.plan.validation_loss
        self.validation_loss = ValidationLoss({n: loss_loader(cfg.dataloader, n) for n in names})
        self.user_hooks = [*build_hooks(self.options.hooks), *self.user_hooks]

    def _take_train_dataset(self) -> Any:
        """Take the dataset that preflight built from the plan; return None if there is none.

        The plan drops it because the loader makes a compact copy and frees the original.
        """
        built = self.plan.built
        if built is None:
            return None
        dataset, built.train_dataset = built.train_dataset, None
        return dataset

    def _open_run_dir(self) -> Results:
        """Lock the run directory and write its first files, on rank 0."""
        plan, out = self.plan, self.output_dir
        if not plan.eval_only:
            check_free_space(out, self.state.nbytes())
        backup_dir = make_output_dir(out, plan.overwrite, plan.shares_directory)
        ckpt.remove_leftovers(out)
        log_to_file(out / "log.txt")
        for path in plan.damaged:
            logger.warning("%s is damaged and was renamed to %s", path, ckpt.set_aside(path).name)
        if backup_dir:
            logger.info("The earlier run was moved to %s", backup_dir)
        if plan.scaling:
            write_record(out / "scaling.json", plan.scaling)
        if plan.split and not plan.eval_only:
            write_record(out / SPLIT, plan.split)
        if plan.fitted and not plan.eval_only:
            write_record(out / AUTO, plan.fitted)
        write_run_info(out, self._run_info())
        file = out / "results.json"
        if plan.eval_only:
            save_config(self.original_cfg, out)
            return Results(file, None, "max", iteration=0)
        state, mode = self.state, self.options.best.mode
        saved = state.resumed.get("results")
        return Results(file, plan.best_metric, mode, state.checkpoint_iter, state.start_iter, saved)

    def _run_info(self) -> RunInfo:
        """Return the content of run.json that the plan and the command determine."""
        plan, command, schedule = self.plan, self.command, self.schedule
        gpu, versions = gpu_facts(plan.device)
        return RunInfo(
            versions=versions,
            machine=f"{comm.get_world_size()} x {gpu}" if gpu else "",
            name=command.name,
            config_file=command.config_file,
            command=command.line,
            device=plan.device,
            classes=plan.classes,
            datasets=plan.datasets,
            weights=plan.weights,
            max_iter=schedule.max_iter if schedule else None,
            batch_size=schedule.batch_size if schedule else None,
            caveats=list(plan.caveats) or UNSET,
            resumed_from=str(plan.resume) if plan.resume else UNSET,
            resumed_by=command.line if plan.resume else UNSET,
        )

    def _end_if_nothing_is_left(self) -> None:
        """End the schedule at the start of a resumed run if nothing is left to train."""
        start, patience = self.state.start_iter, self.options.early_stopping_patience
        exhausted = start and self.suite and self.evaluations.exhausted(patience)
        if start < self._training.max_iter and not exhausted:
            return
        logger.info("Nothing left to train: the run ends at iteration %d", start)
        self.schedule = replace(self._training, max_iter=start)
        file = self.plan.resume
        if comm.is_main_process() and file and file.name != "model_final.pth":
            ckpt.save_final(file, self.output_dir)

    def _hooks(self) -> list[HookBase]:
        """Return all hooks in the order in which they are called.

        User hooks come first, so that checkpoints and metrics include their effects in the same
        step. The checkpoint is written before the evaluation, so that a kill during the evaluation
        loses no step.
        """
        state, schedule, main = self.state, self._training, comm.is_main_process()
        hooks = [
            OnTrainStart(lambda: broadcast_from_rank0(self._describe_training)),
            LearningRateHook(state.optimizer, self.multiplier),
            IterationTimer(),
            *self.user_hooks,
            OnTrainStart(lambda: broadcast_from_rank0(self._check_hook_states)),
        ]
        if state.normalizer:
            hooks.append(state.normalizer)
        if state.average:
            hooks.append(AverageWeightsHook(state.average, state.model))
        if main:
            panel = LivePanel(self.command.name, schedule, self.evaluations)
            hooks += [MemoryHook(schedule), panel, self.checkpointer]
        if self.suite:
            known = self.evaluations.known(state.start_iter)
            hooks.append(EvaluationHook(schedule, self.evaluate, known))
        if main:
            writers = build_writers(self.options.writers, self.output_dir)
            self.metric_writer = MetricWriter(self.output_dir, schedule, writers)
            hooks.append(self.metric_writer)
            hooks.append(ReportHook(schedule, self._report_training))
        return hooks

    def _describe_training(self) -> None:
        """Record the config and the data, and warn if they changed since the checkpoint.

        This runs on rank 0 while the loader's workers prepare the first batches.
        """
        self.fingerprint = fingerprint(self.original_cfg, self.loader)
        warn_of_changes(self.state.resumed, self.fingerprint)
        if save_config(self.original_cfg, self.output_dir) and self.command.start:
            write_repro_command(self.output_dir, self.command.start)

    def _check_hook_states(self) -> None:
        """Raise a UserError now, instead of in the first checkpoint, if a state cannot be saved.

        This runs after `before_train` of the user hooks, which may create their state there.
        """
        hook_states(self.user_hooks)

    def _checkpoint(self, iteration: int) -> dict[str, Any]:
        """Return the content of a checkpoint after `iteration` iterations."""
        batch_size, accumulate = self._training.batch_size, self.options.accumulate
        return {
            **self.state.content(iteration, batch_size, accumulate),
            "seed": self.options.seed,
            "classes": self.plan.classes,
            "fingerprint": self.fingerprint,
            "results": self.evaluations.content(),
            "hooks": hook_states(self.user_hooks),
        }

    def _save_if_stopped(self, iteration: int | None) -> None:
        """Save a checkpoint if the run is asked to stop, because its evaluation may be killed.

        A resumed run repeats an evaluation that was not completed.
        """
        if iteration is None or not comm.is_main_process():
            return
        if self.signals.received and iteration > self.state.start_iter:
            self.checkpointer.save_now(iteration)

    def _validation_loss(self, iteration: int) -> dict[str, float]:
        """Compute the training losses on the validation sets; return them on every rank."""
        normalizer, context = self.state.normalizer, autocast(self.options.amp, self.plan.device)
        batch_size = self._training.batch_size // (comm.get_world_size() * self.options.accumulate)

        def losses(batch: list[dict]) -> dict[str, Tensor]:
            with contextlib.ExitStack() as stack:
                stack.enter_context(context())
                if normalizer:
                    stack.enter_context(normalizer.for_images(self.evaluated, batch_size))
                if self.options.compile.enabled:  # compiling the images' shapes may take minutes
                    stack.enter_context(torch.compiler.set_stance("force_eager"))
                return losses_of(self.evaluated(batch))

        before_image = functools.partial(self._save_if_stopped, iteration)
        return self.validation_loss.compute(self.evaluated, losses, iteration - 1, before_image)

    def _record_results(
        self, iteration: int | None, written: Written, losses: dict[str, float]
    ) -> str | None:
        """Record an evaluation on rank 0; return why early stopping ends training, or None."""
        if iteration is not None and self.evaluations.is_better(written.results):
            self.checkpointer.save_best(iteration)
        self.evaluations.record(
            iteration,
            written.results,
            losses,
            written.intervals,
            written.samples,
            written.caveats,
        )
        return self.evaluations.exhausted(self.options.early_stopping_patience)

    def _report_training(self) -> None:
        from d2ext.report import write_report  # imported here to keep Jinja out of the startup

        if not self.trainer.stopped_by:  # after a signal, the process may soon be killed
            self._write_overview()
        with best_effort("report"):
            write_report(self.output_dir)

    def _report_evaluation(self) -> None:
        from d2ext.report import write_report  # imported here to keep Jinja out of the startup

        logger.info("The report is %s", write_report(self.output_dir))

    def _write_overview(self) -> None:
        """Describe the data once, after the first evaluation so that training does not wait for it.

        Datasets that Detectron2 itself registered are skipped: its readers are slow or fork.
        """
        if self.overview_written:
            return
        names = [name for name in self.plan.datasets if name in self.cfg.datasets]
        write_overview(names, test_sets(self.cfg.dataloader.train), self.output_dir)
        self.overview_written = True

    def _exit_status(self) -> int:
        """Print the expectations that the last evaluation misses; return 1 if there are any.

        Only rank 0 has the results; other ranks return 0.
        """
        if not comm.is_main_process():
            return 0
        numbers = self.evaluations.last.results if self.evaluations.last else {}
        failures = [parse_expectation(text).failure(numbers) for text in self.plan.expect]
        for line in filter(None, failures):
            print(f"error: {line}", file=sys.stderr)
        return int(any(failures))


def _resource_errors_of_setup() -> contextlib.AbstractContextManager:
    return resource_errors_explained(
        lambda: "while the model is set up",
        "use a smaller model, or free the memory that other processes use",
    )
