"""Why a start of a job ended, and whether the job is to come back."""

import os
import signal
from dataclasses import dataclass
from pathlib import Path

from submitit import JobEnvironment

from d2ext.launch.signals import EXIT_STOPPED
from d2ext.run_dir.schema import RankFailure, read_record
from d2ext.slurm.queue import job_state
from d2ext.slurm.record import Record

_KILLS = 3  # starts that end so without a new checkpoint before nobody tries again
_LOST = ("killed", "communication")  # kinds of errors of ranks behind which no mistake stands
# Signals that come from outside; any other one is the process's own fault.
OUTSIDE = tuple(getattr(signal, f"SIG{name}") for name in "HUP INT KILL TERM USR1 USR2".split())


@dataclass(frozen=True)
class End:
    """How the trainers of a start ended.

    Attributes:
        status: exit status; a signal as a negative number.
        signalled: whether Slurm had announced the end.
        words: what the log says last, for an end that is the training's own fault.
        errors: files of ranks that failed in this start.
    """

    status: int
    signalled: bool
    words: str
    errors: tuple[Path, ...] = ()


@dataclass(frozen=True)
class Verdict:
    """What becomes of the job.

    Attributes:
        why: in words.
        requeue: whether it comes back.
        by_slurm: Slurm has seen to that already.
    """

    why: str
    requeue: bool = False
    by_slurm: bool = False


def start_number() -> int:
    """How often the job was started before; Slurm tells, and `local.py` in its place."""
    return int(os.environ.get("SLURM_RESTART_COUNT", 0))


def should_requeue(record: Record, here: JobEnvironment, end: End, max_requeues: int) -> Verdict:
    """Only what came from outside brings a job back."""
    if end.status == 0:
        return Verdict("finished")
    why = _interruption(here, end)
    if record.cancelled and why:
        return Verdict(f"cancelled: {why}")
    now = job_state(here.raw_job_id) if here.cluster == "slurm" else None
    if now and now[1] > start_number():
        return Verdict(f"Slurm has requeued it: {why or end.words}", requeue=True, by_slurm=True)
    if why is None:
        crashed = f"{signal.Signals(-end.status).name}: " if end.status < 0 else ""
        return Verdict(crashed + end.words)
    if here.cluster == "local" and not end.signalled:
        return Verdict(f"stopped by hand: {why}")
    if now and now[0] != "RUNNING":  # Slurm says COMPLETING for both
        return Verdict(f"cancelled, or its time was up before it had saved: {why}")
    if record.requeues >= max_requeues:
        words = f"after {record.requeues} requeues, all that --max-requeues allows"
        return Verdict(f"{why}, {words}")
    last = [attempt.checkpoint for attempt in record.attempts[-_KILLS:]]
    killed = end.status != EXIT_STOPPED and not end.signalled
    if killed and last == [newest(record.run_dir)] * _KILLS:
        return Verdict(f"{why}, for the {_KILLS}rd time without a new checkpoint")
    return Verdict(why, requeue=True)


def newest(run_dir: Path) -> int | None:
    """What changes with each checkpoint of a run; None before the first one."""
    pointer = run_dir / "last_checkpoint"
    return pointer.stat().st_mtime_ns if pointer.exists() else None


def rank_errors(run_dir: Path) -> dict[Path, int]:
    """The files of ranks that have failed, and when they were written, by the disk's clock."""
    files = (run_dir / "errors").glob("rank-*.json")
    return {path: path.stat().st_mtime_ns for path in files}


def last_words(log: Path) -> str:
    """The line of a log that says what went wrong."""
    lines = log.read_text(errors="replace").splitlines()[-50:] if log.exists() else []
    words = [line for line in lines if line.startswith("error: ")] or [f"see {log}"]
    return words[-1].removeprefix("error: ")


def _interruption(here: JobEnvironment, end: End) -> str | None:
    """What ended the trainers that is no fault of theirs, or None."""
    status = end.status
    if status == EXIT_STOPPED:
        return "preempted or out of time, and saved" if here.cluster == "slurm" else "saved"
    outside = -status in OUTSIDE
    if end.signalled and (status == 130 or outside):
        return "preempted or out of time, before or behind the steps"
    if outside:
        return f"killed by {signal.Signals(-status).name}"
    if status == 1 and (failure := _lost_rank(end)):
        return f"rank {failure.rank} on {failure.host}: {failure.message}"
    return None


def _lost_rank(end: End) -> RankFailure | None:
    """The error that ended the ranks, if one was killed or lost a machine."""
    from d2ext.launch.failures import cause  # it imports torch

    first = cause([read_record(path, RankFailure) for path in end.errors])
    return first if first and first.kind in _LOST else None
