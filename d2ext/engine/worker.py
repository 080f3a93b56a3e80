"""What travels to every rank of a run, and what a rank makes of it."""

from dataclasses import dataclass
from typing import Any

from detectron2.utils import comm

from d2ext.config.check import shared_fields
from d2ext.config.load import load_config
from d2ext.engine.evaluate import evaluate_only
from d2ext.engine.run import train
from d2ext.engine.techniques import make_deterministic
from d2ext.errors import UserError
from d2ext.launch.collectives import broadcast_from_rank0
from d2ext.launch.command import RunCommand
from d2ext.launch.signals import StopSignals
from d2ext.preflight.plan import Plan, plan_run
from d2ext.run_dir.logging import setup_logging


@dataclass(frozen=True)
class RankTask:
    """What travels to every rank: plain values; each loads the config again.

    Attributes:
        config_file, overrides: for `load_config`.
        run_info: of `launch.command.describe_run`.
        options: of `plan_run`.
        plan: of `plan_run`; None lets rank 0 make it, and is so on other machines.
        deadline: of `signals.deadline`, on this machine's clock.
        cfg: of `load_config`, where the rank runs in the process that has loaded it.
    """

    config_file: str
    overrides: list[str]
    run_info: RunCommand
    options: dict[str, Any]
    plan: Plan | None
    deadline: float | None = None
    cfg: Any = None


def run_rank(task: RankTask) -> int:
    """What each rank of a run does; returns the exit status, 75 when a signal stopped it."""
    if comm.get_world_size() > 1:  # else the tool has done so
        setup_logging(quiet=not comm.is_main_process())
    cfg = load_config(task.config_file, task.overrides) if task.cfg is None else task.cfg
    if comm.get_world_size() > 1:
        _check_same_config(cfg)
    # The flags of the first machine are those of the run.
    options = broadcast_from_rank0(lambda: task.options)
    plan = broadcast_from_rank0(lambda: task.plan or plan_run(cfg, task.run_info.name, **options))
    if cfg.train.get("deterministic", False):
        make_deterministic()
    if options["eval_only"]:
        return evaluate_only(cfg, plan, task.run_info, options["tta"], options["expect"])
    named = {name: options[name] for name in ("overwrite", "resume", "validate", "expect")}
    # From here to the end of the report: a signal that comes before the first step waits for it.
    with StopSignals(task.deadline) as signals:
        return train(cfg, plan, task.run_info, signals, **named)


def _check_same_config(cfg: Any) -> None:
    mine = shared_fields(cfg)
    first = broadcast_from_rank0(lambda: mine)
    for key in sorted(mine.keys() | first.keys()):
        if mine.get(key) != first.get(key):
            raise UserError(
                f"{key} is {mine.get(key, 'absent')} here and {first.get(key, 'absent')} for rank"
                " 0; give every machine the same config and overrides"
            )
