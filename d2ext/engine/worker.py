"""Run one rank of a training run or an evaluation."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from detectron2.engine import HookBase
from detectron2.utils import comm

from d2ext.config.check import shared_fields
from d2ext.config.load import load_config
from d2ext.config.options import TrainOptions
from d2ext.engine.dry_step import measure_speed
from d2ext.engine.run import Run
from d2ext.engine.techniques import deterministic
from d2ext.errors import UserError
from d2ext.launch.collectives import broadcast_from_rank0
from d2ext.launch.command import RunCommand
from d2ext.launch.signals import StopSignals
from d2ext.preflight.plan import Plan, plan_run
from d2ext.run_dir.logging import setup_logging


@dataclass(frozen=True)
class RankTask:
    """Plain values that every rank receives; each rank loads the config again.

    Attributes:
        config_file, overrides: Arguments of `load_config`.
        command: Command that started the run, returned by `describe_run`.
        options: Keyword arguments of `plan_run`; those of the first machine apply to all.
        plan: Plan returned by `plan_run`; if None, as on other machines, rank 0 creates it.
        deadline: Time to stop, returned by `signals.deadline`, on this machine's clock.
        cfg: Config returned by `load_config`, if the rank runs in the process that loaded it.
    """

    config_file: str
    overrides: list[str]
    command: RunCommand
    options: dict[str, Any]
    plan: Plan | None
    deadline: float | None = None
    cfg: Any = None


def run_rank(task: RankTask) -> int:
    """Do a rank's part of a run; return the exit status, 75 if a signal stopped it."""
    if comm.get_world_size() > 1:  # in a single process, the command has set it up
        setup_logging(quiet=not comm.is_main_process())
    cfg = load_config(task.config_file, task.overrides) if task.cfg is None else task.cfg
    signals = StopSignals(task.deadline)
    return execute(cfg, task.command, task.options, signals, task.plan)[1]


def execute(
    cfg: Any,
    command: RunCommand,
    options: Mapping[str, Any],
    signals: StopSignals,
    plan: Plan | None = None,
    hooks: Sequence[HookBase] = (),
) -> tuple[Run, int]:
    """Plan and execute a run in this rank, which has joined the others.

    Args:
        cfg: Config returned by `load_config`.
        command: Command that started the run.
        options: Keyword arguments of `plan_run`; those of rank 0 apply to all.
        signals: Requests to stop training.
        plan: Plan returned by `plan_run`; if None, rank 0 creates it.
        hooks: Hooks of the caller.

    Returns:
        The run, and its exit status: 75 if a signal stopped it.
    """
    if comm.get_world_size() > 1:
        _check_same_config(cfg)
    plan = broadcast_from_rank0(
        lambda: plan or plan_run(cfg, command.name, measure=measure_speed, **options)
    )
    run = Run(cfg, plan, command, signals, hooks)
    with deterministic(TrainOptions.from_config(cfg.train).deterministic):
        if plan.eval_only:
            run.setup()
            run.evaluate()
            return run, run.finish()
        # Signals that arrive from here on take effect after the first step at the earliest.
        with signals:
            run.setup()
            return run, run.train()


def _check_same_config(cfg: Any) -> None:
    mine = shared_fields(cfg)
    first = broadcast_from_rank0(lambda: mine)
    for key in sorted(mine.keys() | first.keys()):
        if mine.get(key) != first.get(key):
            raise UserError(
                f"{key} is {mine.get(key, 'not set')} on rank {comm.get_rank()} and"
                f" {first.get(key, 'not set')} on rank 0; give every machine the same config and"
                " overrides"
            )
