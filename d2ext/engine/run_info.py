"""run.json's content as the plan and the command of a run determine it."""

from d2ext.launch.command import RunCommand
from d2ext.preflight.plan import Plan
from d2ext.run_dir.schema import UNSET, RunInfo


def make_run_info(plan: Plan, command: RunCommand) -> RunInfo:
    """Return the RunInfo of a start of a run, for `write_run_info`."""
    return RunInfo(
        name=command.name,
        config_file=command.config_file,
        command=command.command,
        device=plan.device,
        classes=plan.classes,
        datasets=plan.datasets,
        weights=plan.weights,
        max_iter=plan.schedule and plan.schedule.max_iter,
        batch_size=plan.schedule and plan.schedule.batch_size,
        resumed_from=str(plan.resume) if plan.resume else UNSET,
        resumed_by=command.command if plan.resume else UNSET,
    )
