"""Print rank 0's log as it grows, until the job ends."""

import sys
import time
from collections.abc import Sequence
from pathlib import Path

from d2ext.slurm.record import Record
from d2ext.slurm.status import describe_state, is_over

_ASK = 5.0  # seconds between queries to Slurm
_LATE = 10.0  # seconds to wait for a shared disk to show how a job ended


class _Log:
    """Print the new lines of a log."""

    def __init__(self, record: Record, prefix: str):
        self._path = Path(record.submission.log)
        self._prefix = prefix
        self._at = 0

    def show(self, whole: bool = False) -> None:
        """Print the new lines; with `whole`, also an unfinished last line."""
        if not self._path.exists():
            return
        with open(self._path, "rb") as f:
            f.seek(self._at)
            text = f.read()
        end = len(text) if whole else text.rfind(b"\n") + 1
        self._at += end
        for line in text[:end].decode(errors="replace").splitlines():
            print(f"{self._prefix}{line}")
        sys.stdout.flush()


def follow(records: Sequence[Record]) -> int:
    """Print rank 0's logs and the states of the jobs until all have ended.

    Returns:
        The highest exit status of the jobs; 1 for a job that ended without a status.
    """
    logs = [_Log(r, f"{r.run_dir.name} | " if len(records) > 1 else "") for r in records]
    printed: dict[int, str] = {}
    asked, open_, statuses = 0.0, set(range(len(records))), [0]
    while open_:
        due = time.monotonic() - asked > _ASK
        asked = time.monotonic() if due else asked
        for i in sorted(open_):
            record = records[i]
            over = record.outcome is not None or due and _really_over(record)
            logs[i].show(whole=over)
            state = describe_state(record) if due or over else printed.get(i)
            if state != printed.get(i):
                printed[i] = state
                print(f"[{state}]", flush=True)
            if over:
                statuses.append(record.outcome.status if record.outcome else 1)
                open_.discard(i)
        time.sleep(0.5)
    return max(statuses)


def show(record: Record) -> None:
    """Print rank 0's log."""
    _Log(record, "").show(whole=True)


def _really_over(record: Record) -> bool:
    """Return whether the job is over, after giving the disk time to show how it ended."""
    if not is_over(record):
        return False
    end = time.monotonic() + _LATE
    while record.outcome is None and time.monotonic() < end and record.submission:
        if record.cancelled:
            break
        time.sleep(0.5)
    return is_over(record)
