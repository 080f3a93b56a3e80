"""Report the state of runs, from their directories and from Slurm."""

import os
import statistics
import time
from collections.abc import Sequence
from pathlib import Path

from tabulate import tabulate

from d2ext.run_dir.metrics import read_metrics
from d2ext.run_dir.schema import JobOutcome, ResultsRecord, RunInfo, read_valid_part
from d2ext.slurm.pid import is_alive
from d2ext.slurm.queue import living_jobs, past_states
from d2ext.slurm.record import Record
from d2ext.text import with_interval

_RECENT = 20  # latest iterations, from which the remaining time is estimated


def is_over(record: Record) -> bool:
    """Return whether a job has ended, successfully or not."""
    job = record.submission
    if record.outcome or not job:
        return True
    if job.cluster == "local":
        alive = is_alive(job)
        return record.cancelled if alive is None else not alive
    living = living_jobs()
    return living is not None and job.job not in living


def describe_state(record: Record) -> str:
    """Return a job's number and state as text."""
    return f"job {record.submission.job} is {_states([record])[0][0]}"


def status_table(records: Sequence[Record]) -> str:
    """Return a table of state, nodes, progress, ETA, last AP and requeues, one run per line."""
    rows = []
    for record, (state, nodes) in zip(records, _states(records), strict=True):
        done, total, seconds = read_progress(record.run_dir)
        eta = "" if not seconds or state != "RUNNING" else _duration(seconds * (total - done))
        rows.append(
            (
                os.path.relpath(record.run_dir),
                record.submission.job,
                state,
                nodes,
                f"{done} of {total}" if total else "",
                eta,
                _last_ap(record.run_dir),
                record.requeues,
            )
        )
    headers = ("run", "job", "state", "nodes", "iteration", "ETA", "last AP", "requeues")
    return tabulate(rows, headers=headers, disable_numparse=True)


def read_progress(run_dir: Path) -> tuple[int, int, float | None]:
    """Return completed iterations, all iterations, and seconds per iteration (None if unknown)."""
    rows, _ = read_metrics(run_dir / "metrics.json", last=200)
    done = max((row["iteration"] + 1 for row in rows[-1:]), default=0)
    times = [row["time"] for row in rows[-_RECENT:] if "time" in row]
    total = read_valid_part(run_dir / "run.json", RunInfo).max_iter or 0
    return done, total, statistics.median(times) if times else None


def _states(records: Sequence[Record]) -> list[tuple[str, str]]:
    """Return state and nodes of each job."""
    open_ = [
        r.submission.job for r in records if r.outcome is None and r.submission.cluster == "slurm"
    ]
    living = living_jobs() if open_ else {}
    gone = [job for job in open_ if job not in (living or {})]
    past = past_states(gone) if gone else {}
    return [_state(record, living, past) for record in records]


def _state(record: Record, living: dict | None, past: dict[str, str]) -> tuple[str, str]:
    job, outcome = record.submission, record.outcome
    if outcome:
        return _ending(outcome), record.attempts[-1].nodes if record.attempts else ""
    if job.cluster == "local":
        return _local_state(record)
    if job.job in (living or {}):
        state, nodes, reason = living[job.job]
        if state != "PENDING":
            return state, nodes
        # Slurm holds a job whose start failed, for example on a node that was just restarted.
        advice = f": `scontrol release {job.job}` starts it" if "held" in reason.lower() else ""
        return f"{state} ({reason}){advice}", nodes
    if record.cancelled:
        return "canceled", ""
    silent = "unknown (Slurm does not answer)"
    return past.get(job.job, silent if living is None else "gone"), ""


def _local_state(record: Record) -> tuple[str, str]:
    job = record.submission
    alive = is_alive(job)
    if alive:
        return "RUNNING" if record.attempts else "PENDING (waiting for its turn)", job.host
    if record.cancelled:
        return "canceled", ""
    return ("killed", "") if alive is False else ("unknown (on another machine)", job.host)


def _ending(outcome: JobOutcome) -> str:
    if outcome.status == 0:
        return "finished"
    reason = outcome.reason
    canceled = reason.startswith(("canceled:", "cancelled:"))  # the latter from version 0.1
    return "canceled" if canceled else f"stopped: {reason:.60}"


def _last_ap(run_dir: Path) -> str:
    last = read_valid_part(run_dir / "results.json", ResultsRecord).last
    named = {k: value for k, value in (last.results if last else {}).items() if k.endswith("/AP")}
    key = next((k for k in named if "/segm/" in k), next(iter(named), None))
    if key is None or named[key] is None:
        return ""
    return with_interval(named[key], (last.intervals or {}).get(key))


def _duration(seconds: float) -> str:
    return (
        time.strftime("%H:%M:%S", time.gmtime(seconds))
        if seconds < 86400
        else (f"{seconds / 86400:.1f} days")
    )
