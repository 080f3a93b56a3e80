"""Lock the run directory and check that it is writable."""

import itertools
import logging
import os
import shutil
import time
from pathlib import Path

from filelock import FileLock, Timeout

from d2ext.errors import UserError
from d2ext.run_dir.names import LAST
from d2ext.waiting import waiting_for

logger = logging.getLogger(__name__)

_TIMEOUT_S = 15.0  # seconds for killed processes to end


def refuse_mixing(output_dir: Path) -> None:
    """Raise UserError if the directory holds a run."""
    if _traces(output_dir):
        raise UserError(
            f"the output directory {output_dir} holds another run; --resume goes on with it,"
            " --overwrite moves it aside, --work-dir chooses another place"
        )


def check_writable(output_dir: Path) -> None:
    """Raise UserError if the directory cannot be created or written to; create nothing."""
    try:
        existing = _existing(output_dir)
        if not existing.is_dir():
            raise UserError(f"the output directory {output_dir}: {existing} is no directory")
        if not os.access(existing, os.W_OK | os.X_OK):
            raise UserError(f"the output directory {output_dir} is not writable; choose --work-dir")
    except OSError as e:
        raise UserError(f"the output directory {output_dir}: {e.strerror}") from e


def check_free_space(output_dir: Path, checkpoint_bytes: int) -> None:
    """Raise UserError unless two checkpoints fit: a new one is written before the old one goes."""
    free = shutil.disk_usage(_existing(output_dir)).free
    if free < 2 * checkpoint_bytes:
        raise UserError(
            f"{output_dir} has {free / 1e6:.0f} MB free, and a checkpoint takes"
            f" {checkpoint_bytes / 1e6:.0f} MB; free space or choose another --work-dir"
        )


def make_output_dir(output_dir: Path, overwrite: bool, resume: bool = False) -> Path | None:
    """Create the output directory and lock it for this process.

    Args:
        output_dir: Output directory of the run.
        overwrite: Move an earlier run there aside.
        resume: Continue the run there; wait for its ending processes.

    Returns:
        Where the earlier run was moved, or None.

    Raises:
        UserError: Another process writes there, it holds another run, or it is not writable.
    """
    backup_dir = None
    try:
        if output_dir.is_dir():
            _claim(output_dir, resume)
        if overwrite and _traces(output_dir):
            whole = output_dir.resolve()  # "." has no name to add to
            stem = f"{whole.name}.{time.strftime('%Y%m%d-%H%M%S')}"
            names = (f"{stem}-{i}" if i else stem for i in itertools.count())
            backup_dir = next(p for p in map(whole.with_name, names) if not p.exists())
            os.rename(whole, backup_dir)
        output_dir.mkdir(parents=True, exist_ok=True)
        _claim(output_dir, resume)
    except OSError as e:
        raise UserError(
            f"cannot write to {output_dir}: {e.strerror}; choose another --work-dir"
        ) from e
    if not resume:
        refuse_mixing(output_dir)
    return backup_dir


def wait_until_free(output_dir: Path) -> None:
    """Wait for a process that is about to end there; create nothing.

    The process may be saving; only after that is the newest checkpoint known.

    Raises:
        UserError: The process does not end.
    """
    release_output_dir()
    if (output_dir / ".lock").is_file():
        _lock(output_dir, wait=True).release()


_held: list[FileLock] = []  # the lock of this process's current run


def _claim(output_dir: Path, wait: bool) -> None:
    release_output_dir()
    (output_dir / ".lock").touch()  # raises OSError where nothing can be written
    _held.append(_lock(output_dir, wait))


def release_output_dir() -> None:
    """Unlock the output directory of this process's current run, if it has one."""
    while _held:
        _held.pop().release()


def _lock(output_dir: Path, wait: bool) -> FileLock:
    # Where the file system has no locks, filelock would make a file that outlives a killed process.
    lock = FileLock(output_dir / ".lock", fallback_to_soft=False)
    try:
        with waiting_for(f"another process to leave {output_dir}", f"at most {_TIMEOUT_S:g} s"):
            lock.acquire(_TIMEOUT_S if wait else 0)
    except Timeout:
        raise UserError(
            f"another process is writing to the output directory {output_dir}; choose"
            " another --work-dir, or wait for it"
        ) from None
    except OSError as e:
        logger.warning(
            "%s cannot be locked (%s): no other process must write there meanwhile",
            output_dir,
            e.strerror,
        )
    return lock


def _existing(path: Path) -> Path:
    return next(p for p in (path, *path.absolute().parents) if p.exists())


def _traces(output_dir: Path) -> list[str]:
    return [f for f in ("run.json", "metrics.json", LAST) if (output_dir / f).exists()]
