"""Identify processes of this machine, even if process ids are reused."""

import socket
from pathlib import Path
from typing import Any

from d2ext.run_dir.schema import Submission


def identify(pid: int | str) -> dict[str, Any]:
    """Return the fields `host` and `begun` of a `Submission` for a process."""
    return {"host": socket.gethostname(), "begun": _begun(pid)}


def is_alive(job: Submission) -> bool | None:
    """Return whether a local job's process is running; None if it is on another machine."""
    if job.host != socket.gethostname():
        return None
    return job.begun is not None and _begun(job.job) == job.begun


def _begun(pid: int | str) -> int | None:
    try:
        words = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if words[0] == "Z" else int(words[19])  # man 5 proc: fields 3 and 22
