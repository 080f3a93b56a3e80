"""What Slurm says of jobs: squeue for living ones, sacct for those that are gone."""

import shutil
import subprocess
from collections.abc import Sequence

from d2ext.errors import UserError


def has_slurm() -> bool:
    """Whether this machine can submit to a Slurm."""
    return shutil.which("sbatch") is not None and shutil.which("srun") is not None


def living_jobs() -> dict[str, tuple[str, str, str]] | None:
    """This user's jobs in the queue: id -> (state, node list, reason); None: Slurm is silent."""
    text = _ask("squeue", "--me", "-h", "-r", "-o", "%i|%T|%N|%r")
    if text is None:
        return None
    rows = (line.split("|") for line in text.splitlines())
    return {job: (state, nodes, reason) for job, state, nodes, reason in rows}


def job_state(job: str) -> tuple[str, int] | None:
    """State of a job, such as RUNNING, and how often it was requeued; None: Slurm is silent."""
    words = (_ask("squeue", "-h", "-j", job, "-O", "State:30,RestartCnt:10") or "").split()
    return (words[0], int(words[1])) if len(words) == 2 else None


def past_states(jobs: Sequence[str]) -> dict[str, str]:
    """The last states of jobs that are gone, by sacct; {} without accounting."""
    text = _ask("sacct", "-n", "-P", "-X", "-j", ",".join(jobs), "-o", "JobID,State") or ""
    return dict(line.split("|", 1) for line in text.splitlines() if "|" in line)


def cancel_jobs(jobs: Sequence[str]) -> None:
    """Has Slurm end jobs.

    Raises:
        UserError: Slurm refuses.
    """
    done = subprocess.run(["scancel", *jobs], capture_output=True, text=True)
    if done.returncode:
        raise UserError(f"scancel {' '.join(jobs)}: {done.stderr.strip()}")


def default_time(partition: str | None) -> int | None:
    """Minutes that a job in a partition (None: the default one) gets without --time, or None."""
    which = ("-p", partition) if partition else ()
    for line in (_ask("sinfo", "-h", *which, "-o", "%P|%L|%l") or "").splitlines():
        name, default, longest = line.split("|")
        if partition or name.endswith("*"):
            given = longest if default in ("n/a", "N/A", "") else default
            return None if given == "infinite" else parse_time(given)
    return None


def parse_time(text: str) -> int:
    """A time in Slurm's words, in minutes, of which it knows whole ones.

    M, M:S, H:M:S, D-H, D-H:M and D-H:M:S, as `man sbatch` has it.

    Raises:
        UserError: it is none of these.
    """
    days, dash, rest = text.rpartition("-")
    parts = rest.split(":")
    if not all(p.isdecimal() for p in parts) or len(parts) > 3 or dash and not days.isdecimal():
        raise UserError(f"--time {text}: give minutes, H:M:S or D-H:M:S, such as 4:00:00")
    numbers = [int(p) for p in parts]
    if dash:
        hours, minutes, seconds = (*numbers, 0, 0)[:3]
    elif len(numbers) == 3:
        hours, minutes, seconds = numbers
    else:
        hours, (minutes, seconds) = 0, (*numbers, 0)[:2]
    total = (int(days or 0) * 24 + hours) * 60 + minutes + (seconds > 0) + seconds // 60
    if total < 1:
        raise UserError(f"--time {text}: give at least one minute")
    return total


def _ask(*command: str) -> str | None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=30)
    except (FileNotFoundError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode == 0 else None
