"""Lock the run directory and check that it is writable."""

import itertools
import logging
import os
import shutil
import time
from pathlib import Path

from filelock import FileLock, Timeout

from d2ext.errors import UserError
from d2ext.invocation import option
from d2ext.run_dir.names import LAST
from d2ext.waiting import waiting_for

logger = logging.getLogger(__name__)

_TRACES = ("run.json", "metrics.json", LAST)  # files of a run
# MMDetection's default folder of a config has the same name as ours. Ours have a .sha256 file, too.
_OTHERS = ("epoch_*.pth", "iter_*.pth", "latest.pth")
_TIMEOUT_S = 15.0  # seconds for killed processes to end


def refuse_mixing(output_dir: Path) -> None:
    """Raise UserError if the directory holds a run, or checkpoints of another program."""
    refuse_others(output_dir)
    if _holds_run(output_dir):
        raise UserError(
            f"the output directory {output_dir} holds another run; continue it with"
            f" {option('--resume')}, move it aside with {option('--overwrite')}, or choose another"
            f" {option('--work-dir')}"
        )


def refuse_others(output_dir: Path) -> None:
    """Raise UserError if the directory holds checkpoints of another program, and none of a run."""
    if others := _of_others(output_dir):
        raise UserError(
            f"the output directory {output_dir} holds checkpoints of another program, such as"
            f" {others[-1].name}; choose another {option('--work-dir')}, or move it aside with"
            f" {option('--overwrite')}"
        )


def refuse_moving(output_dir: Path, file: str | Path, field: str) -> None:
    """Raise UserError if --overwrite would move another program's checkpoint that the run reads.

    A file of an earlier run of d2ext may move, because it is read before that.

    Args:
        output_dir: Output directory of the run.
        file: The file; anything else, such as an address, is fine.
        field: Name of the option with the file.
    """
    path = Path(file)
    inside = path.is_file() and path.resolve().is_relative_to(output_dir.resolve())
    if inside and _of_others(output_dir):
        raise UserError(
            f"{option('--overwrite')} would move {field}={file} aside with {output_dir}; choose"
            f" another {option('--work-dir')}"
        )


def check_writable(output_dir: Path) -> None:
    """Raise UserError if the directory cannot be created or written to; create nothing."""
    try:
        existing = _existing(output_dir)
        if not existing.is_dir():
            raise UserError(f"the output directory {output_dir}: {existing} is not a directory")
        if not os.access(existing, os.W_OK | os.X_OK):
            raise UserError(
                f"the output directory {output_dir} is not writable; choose another"
                f" {option('--work-dir')}"
            )
    except OSError as e:
        raise UserError(f"the output directory {output_dir}: {e.strerror}") from e


def check_free_space(output_dir: Path, checkpoint_bytes: int) -> None:
    """Raise UserError unless two checkpoints fit; the old one is deleted after the new one."""
    free = shutil.disk_usage(_existing(output_dir)).free
    if free < 2 * checkpoint_bytes:
        raise UserError(
            f"{output_dir} has {free / 1e6:.0f} MB free, but needs twice the"
            f" {checkpoint_bytes / 1e6:.0f} MB of a checkpoint; free space or choose another"
            f" {option('--work-dir')}"
        )


def make_output_dir(output_dir: Path, overwrite: bool, resume: bool = False) -> Path | None:
    """Create the output directory and lock it for this process.

    Args:
        output_dir: Output directory of the run.
        overwrite: Move an earlier run, or that of another program, aside.
        resume: Continue the run in the directory; wait for its processes to end.

    Returns:
        The new path of the earlier run, or None.

    Raises:
        UserError: Another process writes to the directory, it holds another run, or it is not
            writable.
    """
    backup_dir = None
    try:
        if output_dir.is_dir():
            _claim(output_dir, resume)
        if overwrite and (_holds_run(output_dir) or _of_others(output_dir)):
            whole = output_dir.resolve()  # "." has no name to add to
            stem = f"{whole.name}.{time.strftime('%Y%m%d-%H%M%S')}"
            names = (f"{stem}-{i}" if i else stem for i in itertools.count())
            backup_dir = next(p for p in map(whole.with_name, names) if not p.exists())
            os.rename(whole, backup_dir)
        output_dir.mkdir(parents=True, exist_ok=True)
        _claim(output_dir, resume)
    except OSError as e:
        raise UserError(
            f"cannot write to {output_dir}: {e.strerror}; choose another {option('--work-dir')}"
        ) from e
    if not resume:
        refuse_mixing(output_dir)
    return backup_dir


def wait_until_free(output_dir: Path) -> None:
    """Wait until the run's previous process has ended; create nothing.

    The process may still be saving a checkpoint, so the newest one is known only afterwards.

    Raises:
        UserError: The process does not end in time.
    """
    release_output_dir()
    if (output_dir / ".lock").is_file():
        _lock(output_dir, wait=True).release()


_held: list[FileLock] = []  # the lock of this process's current run


def _claim(output_dir: Path, wait: bool) -> None:
    release_output_dir()
    (output_dir / ".lock").touch()  # raises OSError if the directory is not writable
    _held.append(_lock(output_dir, wait))


def release_output_dir() -> None:
    """Unlock the output directory of this process's current run, if it has one."""
    while _held:
        _held.pop().release()


def _lock(output_dir: Path, wait: bool) -> FileLock:
    # On file systems without locks, filelock's fallback is a file that outlives a killed process.
    lock = FileLock(output_dir / ".lock", fallback_to_soft=False)
    try:
        with waiting_for(f"another process to release {output_dir}", f"at most {_TIMEOUT_S:g} s"):
            lock.acquire(_TIMEOUT_S if wait else 0)
    except Timeout:
        raise UserError(
            f"another process is writing to the output directory {output_dir}; choose"
            f" another {option('--work-dir')}, or wait for it"
        ) from None
    except OSError as e:
        logger.warning(
            "%s cannot be locked (%s); make sure that no other process writes to it",
            output_dir,
            e.strerror,
        )
    return lock


def _existing(path: Path) -> Path:
    return next(p for p in (path, *path.absolute().parents) if p.exists())


def _holds_run(output_dir: Path) -> bool:
    return any((output_dir / name).exists() for name in _TRACES)


def _of_others(output_dir: Path) -> list[Path]:
    """Return the checkpoints of another program by number; none beside checkpoints of a run."""
    if any(output_dir.glob("*.pth.sha256")):
        return []
    found = [path for pattern in _OTHERS for path in output_dir.glob(pattern)]
    return sorted(found, key=lambda path: (len(path.name), path.name))
