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
from d2ext.limits import exhausted
from d2ext.run_dir.metadata import update_run_info
from d2ext.run_dir.schema import RankFailure, read_record, to_plain

# Whole words only, so that other errors of a model are not taken for a lost peer.
_LOST_PEER = re.compile(
    r"\b(gloo|nccl|tcpstore|connection (closed|reset|refused)|broken pipe)\b", re.I
)
# Of a peer that has met the others, not of one that cannot be reached.
_PEER_DIED = re.compile(r"connection (was likely )?(closed|reset)|broken pipe|remote process", re.I)
_CRASHES = ("SIGABRT", "SIGBUS", "SIGFPE", "SIGILL", "SIGSEGV", "SIGSYS", "SIGTRAP")


def describe_failure(rank: int, e: BaseException) -> RankFailure:
    """Return the record of a rank's error.

    The `kind` is user, other, interrupted or communication (a lost peer).
    """
    message = " ".join([f"{type(e).__name__}: {e}", *getattr(e, "__notes__", ())])
    if (text := user_message(e)) is not None:
        kind, message = "user", text
    elif _is_interruption(e):
        kind, message = "interrupted", "interrupted"
    elif _is_lost_peer(e):
        kind = "communication"
    else:
        kind = "other"
    return _failure(rank, kind, message, "".join(traceback.format_exception(e)))


def _is_interruption(e: BaseException | None) -> bool:
    """Return whether the error is, or was caused by, a second Ctrl-C."""
    while e is not None and not isinstance(e, KeyboardInterrupt):
        e = e.__cause__ or e.__context__
    return e is not None


def _is_lost_peer(e: BaseException) -> bool:
    if exhausted(str(e)) == "GPU memory":  # NCCL allocates some, too
        return False
    lost = isinstance(e, RuntimeError) and _LOST_PEER.search(str(e))
    return isinstance(e, dist.DistError) or bool(lost)


def peer_died(e: BaseException) -> bool:
    """Return whether an error of a rank that joins the others says that one of them died."""
    return bool(_PEER_DIED.search(str(e)))


def describe_killed(rank: int, by: str | None, nccl: bool = False) -> RankFailure:
    """Return the record of a rank that a signal ended.

    The `kind` is crashed for signals that a process causes itself, such as SIGSEGV, else killed.
    SIGABRT under NCCL is communication, although an error of the rank's own GPU can be the cause.

    Args:
        rank: Global rank.
        by: Name of the signal; None if unknown.
        nccl: Whether the ranks communicate by NCCL, whose watchdog aborts a rank that lost a peer
            or has a CUDA error.
    """
    if nccl and by == "SIGABRT":
        why = (
            "NCCL does this if a peer died or did not answer within --dist-timeout, or after a CUDA"
            " error on this rank, see the log above"
        )
        return _failure(rank, "communication", f"killed by SIGABRT: {why}")
    message = f"was killed by {by}" if by else "was killed"
    if by in (None, "SIGKILL"):
        message += " (out of memory?)"
    kind = "crashed" if by in _CRASHES else "killed"
    return _failure(rank, kind, message)


def _failure(rank: int, kind: str, message: str, text: str = "") -> RankFailure:
    return RankFailure(rank, socket.gethostname(), time.time(), kind, message, text)


def write_failure(path: Path, failure: RankFailure) -> None:
    """Write a failure atomically, because it may be read at any time."""
    # After a second Ctrl-C, two threads may write it at the same time.
    temporary = path.with_suffix(f".{threading.get_ident()}.tmp")
    temporary.write_text(json.dumps(to_plain(failure)))
    temporary.replace(path)


def print_failure(failure: RankFailure) -> int:
    """Print a failure, with its one-line message last; return the exit status."""
    kind = failure.kind
    if kind == "interrupted":
        print("interrupted", file=sys.stderr, flush=True)
        return 130
    if kind == "other":
        print(failure.traceback, file=sys.stderr)
    where = f"rank {failure.rank} on {failure.host}"
    message = failure.message
    if kind == "communication":
        message = f"lost another rank, which reported no error ({message.splitlines()[0]})"
    print(f"error: {where}: {message}", file=sys.stderr, flush=True)
    return 2 if kind == "user" else 1


def cause(failures: Sequence[RankFailure]) -> RankFailure | None:
    """Return the first failure that is not a consequence of another, or None without failures."""
    own = [f for f in failures if f.kind != "communication"]
    return min(own or failures, key=lambda f: f.time, default=None)


class FailureFolder:
    """Exchange failures in `errors/` of a run directory, so that every machine can find the cause.

    That needs a shared disk. Only files that change after this object was created count, regardless
    of differences between the machines' clocks.
    """

    def __init__(self, run: Path):
        self._run = run
        self._folder = run / "errors"
        self._before = self._times()
        self._begun = self._beginning()

    def add(self, failure: RankFailure) -> None:
        """Write a rank's failure if the run directory exists."""
        # The disk itself may have failed; this machine's launcher gets the failure in any case.
        with contextlib.suppress(OSError):
            if self._run.is_dir():
                self._folder.mkdir(exist_ok=True)
                write_failure(self._folder / f"rank-{failure.rank}.json", failure)

    def new(self) -> list[RankFailure]:
        """Return the failures written by ranks on any machine since this object was created."""
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

    def record(self, failure: RankFailure) -> None:
        """Record the cause in the run's files if this run has created its run.json."""
        if self._beginning() != self._begun:  # an unchanged run.json is an earlier run's
            details = failure.traceback if failure.kind == "other" else ""
            record_failure(self._run, failure.message, details)

    def _beginning(self) -> int | None:
        file = self._run / "run.json"
        return file.stat().st_mtime_ns if file.is_file() else None

    def _times(self) -> dict[Path, int]:
        return {path: path.stat().st_mtime_ns for path in self._folder.glob("rank-*.json")}


def record_failure(out: Path, message: str, details: str = "") -> None:
    """Record why a run failed in log.txt, run.json and the report.

    Args:
        out: Run directory.
        message: Error message for the user.
        details: Traceback for log.txt.
    """
    try:
        from d2ext.report import write_report  # imported here to keep Jinja out of the startup

        with open(out / "log.txt", "a", encoding="utf-8") as log:
            log.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} E d2ext: error: {message}\n{details}")
        update_run_info(out, ended_by=message)
        write_report(out)
    except (ImportError, OSError, UserError) as e:  # such as a full disk
        print(f"warning: cannot record the failure in {out}: {e}", file=sys.stderr)
