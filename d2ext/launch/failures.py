"""Record the failures of a run's ranks, and find the cause among them."""

import contextlib
import json
import re
import socket
import sys
import threading
import time
import traceback
from collections.abc import Sequence
from pathlib import Path

import torch.distributed as dist

from d2ext.errors import UserError, user_message
from d2ext.run_dir.metadata import update_run_info
from d2ext.run_dir.schema import RankFailure, read_record, to_plain

# Whole words: a "storage" or a "socket" in a model's own error is not a lost peer.
_LOST_PEER = re.compile(
    r"\b(gloo|nccl|tcpstore|connection (closed|reset|refused)|broken pipe)\b", re.I
)
_CRASHES = ("SIGABRT", "SIGBUS", "SIGFPE", "SIGILL", "SIGSEGV", "SIGSYS", "SIGTRAP")


def describe_failure(rank: int, e: BaseException) -> RankFailure:
    """Return the record of a rank's error.

    Its `kind` is user, other, interrupted or communication (a lost peer).
    """
    message = f"{type(e).__name__}: {e}"
    if (mistake := user_message(e)) is not None:
        kind, message = "user", mistake
    elif _is_interruption(e):
        kind, message = "interrupted", "interrupted"
    elif isinstance(e, dist.DistError) or isinstance(e, RuntimeError) and _LOST_PEER.search(str(e)):
        kind = "communication"
    else:
        kind = "other"
    return _failure(rank, kind, message, "".join(traceback.format_exception(e)))


def _is_interruption(e: BaseException | None) -> bool:
    """Return whether the error is, or was caused by, a second Ctrl-C."""
    while e is not None and not isinstance(e, KeyboardInterrupt):
        e = e.__cause__ or e.__context__
    return e is not None


def describe_killed(rank: int, by: str | None) -> RankFailure:
    """Return the record of a rank that a signal ended; `by` is its name, if that is known.

    Its `kind` is crashed where the signal is of the process's own making, else killed.
    """
    message = f"was killed by {by}" if by else "was killed"
    if by in (None, "SIGKILL"):
        message += " (out of memory?)"
    kind = "crashed" if by in _CRASHES else "killed"
    return _failure(rank, kind, message)


def _failure(rank: int, kind: str, message: str, text: str = "") -> RankFailure:
    return RankFailure(rank, socket.gethostname(), time.time(), kind, message, text)


def write_failure(path: Path, failure: RankFailure) -> None:
    """Write a failure atomically, for readers that may be looking already."""
    # A second Ctrl-C has another thread write it as well.
    temporary = path.with_suffix(f".{threading.get_ident()}.tmp")
    temporary.write_text(json.dumps(to_plain(failure)))
    temporary.replace(path)


def print_failure(failure: RankFailure) -> int:
    """Print a failure, its one-line message last; return the exit status that goes with it."""
    kind = failure.kind
    if kind == "interrupted":
        print("interrupted", file=sys.stderr, flush=True)
        return 130
    if kind == "other":
        print(failure.traceback, file=sys.stderr)
    where = f"rank {failure.rank} on {failure.host}"
    message = failure.message
    if kind == "communication":
        message = f"it lost another rank, which has not said why ({message.splitlines()[0]})"
    print(f"error: {where}: {message}", file=sys.stderr, flush=True)
    return 2 if kind == "user" else 1


def cause(failures: Sequence[RankFailure]) -> RankFailure | None:
    """Return the first failure that is not a consequence of another, or None without failures."""
    own = [f for f in failures if f.kind != "communication"]
    return min(own or failures, key=lambda f: f.time, default=None)


class FailureFolder:
    """The folder `errors/` of a run directory; on a shared disk every machine can read the cause.

    Only what comes after this object counts, however the clocks of the machines differ.
    """

    def __init__(self, run: Path):
        self._run = run
        self._folder = run / "errors"
        self._before = self._times()
        self._begun = self._beginning()

    def add(self, failure: RankFailure) -> None:
        """Write a rank's failure if the run directory exists."""
        # The disk may be what failed; the launcher of this machine learns of it in any case.
        with contextlib.suppress(OSError):
            if self._run.is_dir():
                self._folder.mkdir(exist_ok=True)
                write_failure(self._folder / f"rank-{failure.rank}.json", failure)

    def new(self) -> list[RankFailure]:
        """Return what ranks on any machine have written since."""
        return [
            read_record(path, RankFailure)
            for path, changed in self._times().items()
            if self._before.get(path) != changed
        ]

    def wait_for_cause(self, mine: RankFailure, seconds: float = 5.0) -> RankFailure:
        """Return `mine`; for a lost-peer error, wait a few seconds for that peer's own error."""
        deadline = time.monotonic() + seconds
        while True:
            first = cause([mine, *self.new()])
            if first.kind != "communication" or time.monotonic() > deadline:
                return first
            time.sleep(0.1)

    def tell(self, failure: RankFailure) -> None:
        """Write the cause to the run's files if the run directory exists."""
        if self._beginning() != self._begun:  # else what is there is another run's
            details = failure.traceback if failure.kind == "other" else ""
            record_failure(self._run, failure.message, details)

    def _beginning(self) -> int | None:
        file = self._run / "run.json"
        return file.stat().st_mtime_ns if file.is_file() else None

    def _times(self) -> dict[Path, int]:
        return {path: path.stat().st_mtime_ns for path in self._folder.glob("rank-*.json")}


def record_failure(out: Path, message: str, details: str = "") -> None:
    """Write to log.txt, run.json and the report why a run has failed.

    Args:
        out: Run directory.
        message: Error message for the user.
        details: Traceback for log.txt.
    """
    from d2ext.report import write_report  # here, because a training need not wait for Jinja

    try:
        with open(out / "log.txt", "a", encoding="utf-8") as log:
            log.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} E d2ext: error: {message}\n{details}")
        update_run_info(out, ended_by=message)
        write_report(out)
    except (OSError, UserError) as e:  # the disk may be what failed
        print(f"warning: {out} does not tell of the failure: {e}", file=sys.stderr)
