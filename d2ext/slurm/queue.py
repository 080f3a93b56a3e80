"""Query and control Slurm: squeue for current jobs, sacct for past ones."""

import shutil
import subprocess
import time
from collections.abc import Sequence

from d2ext.errors import UserError
from d2ext.waiting import waiting_for

FOREVER = 365 * 24 * 60  # minutes that represent no limit, because submitit needs a number
_PAUSES = (1, 2, 4, 8)  # seconds between attempts to requeue a job


def has_slurm() -> bool:
    """Return whether this machine can submit to Slurm."""
    return shutil.which("sbatch") is not None and shutil.which("srun") is not None


def living_jobs() -> dict[str, tuple[str, str, str]] | None:
    """Return this user's jobs: id -> (state, nodes, reason); None if Slurm does not answer."""
    text = _ask("squeue", "--me", "-h", "-r", "-o", "%i|%T|%N|%r")
    if text is None:
        return None
    rows = (line.split("|") for line in text.splitlines())
    return {job: (state, nodes, reason) for job, state, nodes, reason in rows}


def job_state(job: str) -> tuple[str, int] | None:
    """Return a job's state, such as RUNNING, and restart count; None if Slurm does not answer."""
    words = (_ask("squeue", "-h", "-j", job, "-O", "State:30,RestartCnt:10") or "").split()
    return (words[0], int(words[1])) if len(words) == 2 else None


def past_states(jobs: Sequence[str]) -> dict[str, str]:
    """Return the last states of past jobs from sacct; {} without accounting."""
    text = _ask("sacct", "-n", "-P", "-X", "-j", ",".join(jobs), "-o", "JobID,State") or ""
    return dict(line.split("|", 1) for line in text.splitlines() if "|" in line)


def cancel_jobs(jobs: Sequence[str]) -> None:
    """Cancel jobs in Slurm.

    Raises:
        UserError: Slurm refuses.
    """
    with waiting_for("scancel to answer"):
        done = subprocess.run(["scancel", *jobs], capture_output=True, text=True)
    if done.returncode:
        raise UserError(f"scancel {' '.join(jobs)}: {done.stderr.strip()}")


def requeue(job: str, raw: str, restarts: int) -> str | None:
    """Have Slurm requeue a job, with retries; return None on success, or the error.

    Args:
        job: Job id; ARRAY_INDEX for a task of an array.
        raw: Numeric id of the job, also for a task of an array.
        restarts: Number of earlier starts; if Slurm counts more, it has requeued the job already.
    """
    with waiting_for(f"Slurm to requeue job {job}", "retrying several times"):
        for pause in (*_PAUSES, 0):
            if (now := job_state(raw)) and now[1] > restarts:
                return None
            try:
                done = subprocess.run(
                    ["scontrol", "requeue", job], capture_output=True, text=True, timeout=60
                )
            except (FileNotFoundError, subprocess.TimeoutExpired) as e:
                words = str(e)
            else:
                if done.returncode == 0:
                    return None
                words = (
                    done.stderr.strip() or f"scontrol requeue exits with status {done.returncode}"
                )
            time.sleep(pause)
    return words.splitlines()[-1]


def default_time(partition: str | None) -> int:
    """Return a partition's time limit in minutes for jobs without --time.

    Args:
        partition: Name of the partition; None for the default one.

    Raises:
        UserError: Slurm does not report the limit.
    """
    which = ("-p", partition) if partition else ()
    text = _ask("sinfo", "-h", *which, "-o", "%P|%L|%l")
    for line in (text or "").splitlines():
        name, default, longest = line.split("|")
        if partition or name.endswith("*"):
            return parse_time(longest if default in ("n/a", "N/A", "") else default)
    if text is None:
        raise UserError(
            "Slurm does not answer (sinfo); give --time, or train on this machine with"
            " --cluster local"
        )
    shown = f"no partition {partition}" if partition else "no default partition"
    raise UserError(f"sinfo shows {shown}; give another --partition, or --time")


def parse_time(text: str) -> int:
    """Convert a time in Slurm's notation to whole minutes; no limit is FOREVER.

    The notations are M, M:S, H:M:S, D-H, D-H:M, D-H:M:S, and 0, infinite or UNLIMITED, as in
    `man sbatch`.

    Raises:
        UserError: The text is not a valid time.
    """
    if text.lower() in ("infinite", "unlimited"):
        return FOREVER
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
    return total or FOREVER


def _ask(*command: str) -> str | None:
    try:
        with waiting_for(f"{command[0]} to answer", "at most 30 s"):
            done = subprocess.run(command, capture_output=True, text=True, timeout=30)
    except (FileNotFoundError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode == 0 else None
