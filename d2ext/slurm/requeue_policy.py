"""Decide whether a job is requeued, from how its trainers ended."""

import os
import signal
from dataclasses import dataclass
from pathlib import Path

from submitit import JobEnvironment

from d2ext.launch.signals import EXIT_STOPPED
from d2ext.run_dir.schema import RankFailure, read_record
from d2ext.slurm.queue import job_state
from d2ext.slurm.record import Record

_KILLS = 3  # consecutive starts that may be killed without a new checkpoint
_LOST = ("killed", "communication")  # kinds of rank failures that are not user errors
# Signals sent from outside; all others are caused by the process itself.
OUTSIDE = tuple(getattr(signal, f"SIG{name}") for name in "HUP INT KILL TERM USR1 USR2".split())


@dataclass(frozen=True)
class End:
    """How the trainers of a start ended.

    Attributes:
        status: Exit status; a signal as a negative number.
        signaled: Whether Slurm had announced the end.
        words: Last error in the log, the reason for an end without an external interruption.
        errors: Error files of ranks that failed in this start.
    """

    status: int
    signaled: bool
    words: str
    errors: tuple[Path, ...] = ()


@dataclass(frozen=True)
class RequeueDecision:
    """Decision whether a job is requeued.

    Attributes:
        why: Reason of the decision.
        requeue: Whether the job is requeued.
        by_slurm: Whether Slurm has requeued it already.
    """

    why: str
    requeue: bool = False
    by_slurm: bool = False


def start_number() -> int:
    """Return the number of earlier starts: Slurm's restart count, or that of `local.py`."""
    return int(os.environ.get("SLURM_RESTART_COUNT", 0))


def should_requeue(
    record: Record, here: JobEnvironment, end: End, max_requeues: int
) -> RequeueDecision:
    """Decide whether to requeue a job, which is done only after an external interruption."""
    if end.status == 0:
        return RequeueDecision("finished")
    why = _interruption(here, end)
    if record.cancelled and why:
        return RequeueDecision(f"canceled: {why}")
    now = job_state(here.raw_job_id) if here.cluster == "slurm" else None
    if now and now[1] > start_number():
        return RequeueDecision(
            f"Slurm has requeued it: {why or end.words}", requeue=True, by_slurm=True
        )
    if why is None:
        crashed = f"{signal.Signals(-end.status).name}: " if end.status < 0 else ""
        return RequeueDecision(crashed + end.words)
    if here.cluster == "local" and not end.signaled:
        return RequeueDecision(f"stopped by hand: {why}")
    if now and now[0] != "RUNNING":  # Slurm reports COMPLETING in both cases
        return RequeueDecision(f"canceled, or its time limit expired before it had saved: {why}")
    if record.requeues >= max_requeues:
        words = f"after {record.requeues} requeues, the maximum (--max-requeues)"
        return RequeueDecision(f"{why}, {words}")
    last = [attempt.checkpoint for attempt in record.attempts[-_KILLS:]]
    killed = end.status != EXIT_STOPPED and not end.signaled
    if killed and last == [newest(record.run_dir)] * _KILLS:
        return RequeueDecision(f"{why}, for the {_KILLS}rd time without a new checkpoint")
    return RequeueDecision(why, requeue=True)


def newest(run_dir: Path) -> int | None:
    """Return a number that changes with each checkpoint of a run; None before the first one."""
    pointer = run_dir / "last_checkpoint"
    return pointer.stat().st_mtime_ns if pointer.exists() else None


def rank_errors(run_dir: Path) -> dict[Path, int]:
    """Return the error files of ranks, with their modification times by the disk's clock."""
    files = (run_dir / "errors").glob("rank-*.json")
    return {path: path.stat().st_mtime_ns for path in files}


def last_error(log: Path) -> str:
    """Return the last error in a log, or where the log is."""
    lines = log.read_text(errors="replace").splitlines()[-50:] if log.exists() else []
    words = [line for line in lines if line.startswith("error: ")] or [f"see {log}"]
    return words[-1].removeprefix("error: ")


def _interruption(here: JobEnvironment, end: End) -> str | None:
    """Return the external interruption that ended the trainers, or None."""
    status = end.status
    if status == EXIT_STOPPED:
        return "preempted or out of time, and saved" if here.cluster == "slurm" else "saved"
    outside = -status in OUTSIDE
    if end.signaled and (status == 130 or outside):
        return "preempted or out of time, before the first or after the last step"
    if outside:
        return f"killed by {signal.Signals(-status).name}"
    if status == 1 and (failure := _lost_rank(end)):
        return f"rank {failure.rank} on {failure.host}: {failure.message}"
    return None


def _lost_rank(end: End) -> RankFailure | None:
    """Return the failure that ended the ranks, if one was killed or lost a machine."""
    from d2ext.launch.failures import cause  # it imports torch

    first = cause([read_record(path, RankFailure) for path in end.errors])
    return first if first and first.kind in _LOST else None
