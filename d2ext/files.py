"""Files that are whole or absent: written beside their place, flushed, then renamed."""

import contextlib
import json
import math
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any

from d2ext.errors import UserError


def cache_dir() -> Path:
    """Where what can be made again is kept: $D2EXT_CACHE, else ~/.cache/d2ext."""
    return Path(os.environ.get("D2EXT_CACHE") or "~/.cache/d2ext").expanduser()


@contextlib.contextmanager
def atomic_write(path: Path, mode: str = "w", durable: bool = True) -> Iterator[IO]:
    """Opens a new file that takes `path`'s place when the block ends without an exception.

    Args:
        path: the file.
        mode: as `open` has it.
        durable: wait until a power cut cannot take it; for what can be made again, do not.

    Raises:
        UserError: the folder cannot be written to or the disk is full.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, mode, encoding=None if "b" in mode else "utf-8") as f:
            yield f
            f.flush()
            if durable:
                os.fsync(f.fileno())
        os.replace(temporary, path)
        if durable:
            _sync_folder(path.parent)
    except OSError as e:
        raise UserError(
            f"cannot write {path}: {e.strerror or e}; free space, or write to another place"
        ) from e
    finally:
        with contextlib.suppress(OSError):  # not there, or the disk is what failed
            temporary.unlink()


def _sync_folder(folder: Path) -> None:
    """Make the new name survive a power cut, if the file system supports it."""
    number = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):
            os.fsync(number)
    finally:
        os.close(number)


def write_json(path: Path, content: Any) -> None:
    """Writes JSON; raises UserError as `atomic_write` does."""
    with atomic_write(path) as f:
        json.dump(content, f, indent=1)
        f.write("\n")


def finite_or_none(results: Mapping[str, float]) -> dict[str, float | None]:
    """NaN as None: JSON has no NaN."""
    return {k: v if math.isfinite(v) else None for k, v in results.items()}
