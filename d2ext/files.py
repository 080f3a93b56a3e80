"""Write files atomically, and read those that a run keeps.

An atomic write goes to a temporary file in the same folder, which is flushed and then renamed.
"""

import contextlib
import json
import math
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any, TypeVar

import msgspec

from d2ext.errors import UserError

_Kept = TypeVar("_Kept")


def read_kept(file: Path, kind: type[_Kept], remedy: str) -> _Kept | None:
    """Read a JSON file that a run has kept; return None if there is none.

    Args:
        file: Path of the file.
        kind: Struct that the file holds.
        remedy: What a damaged file means and what to do, for the message.

    Raises:
        UserError: The file is damaged.
    """
    try:
        return msgspec.json.decode(file.read_bytes(), type=kind)
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as e:
        raise UserError(f"{file} is damaged ({e}), so {remedy}") from e


def cache_dir() -> Path:
    """Return the cache directory: $D2EXT_CACHE, or ~/.cache/d2ext by default."""
    return Path(os.environ.get("D2EXT_CACHE") or "~/.cache/d2ext").expanduser()


@contextlib.contextmanager
def atomic_write(path: Path, mode: str = "w", durable: bool = True) -> Iterator[IO]:
    """Open a temporary file that replaces `path` if the block ends without an exception.

    Args:
        path: Path of the file.
        mode: Mode, as for `open`.
        durable: Sync to the disk, so that the file survives a power cut; files that can be made
            again do not need it.

    Raises:
        UserError: The folder cannot be written to, or the disk is full.
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
            f"cannot write {path}: {e.strerror or e}; free space, or write to another location"
        ) from e
    finally:
        with contextlib.suppress(OSError):  # already renamed, or the disk failed
            temporary.unlink()


def _sync_folder(folder: Path) -> None:
    """Make the new name survive a power cut, if the file system supports it."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_json(path: Path, content: Any) -> None:
    """Write a JSON file; raise UserError as `atomic_write` does."""
    with atomic_write(path) as f:
        json.dump(content, f, indent=1)
        f.write("\n")


def finite_or_none(results: Mapping[str, float]) -> dict[str, float | None]:
    """Replace NaN and infinity by None, because JSON has neither."""
    return {k: v if math.isfinite(v) else None for k, v in results.items()}
