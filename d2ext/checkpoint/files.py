"""Write checkpoint files atomically with hashes, find them, and read them without running code."""

import hashlib
import logging
import math
import os
import pickle
import re
import shutil
import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from d2ext.errors import UserError
from d2ext.files import atomic_write
from d2ext.invocation import option
from d2ext.run_dir.names import FINAL, LAST

logger = logging.getLogger(__name__)

_DAMAGED = ".damaged"  # suffix of damaged checkpoints that are set aside
_IMAGES = "# images seen: "  # in the sidecar; a comment to sha256sum --check
_MARGIN = 2**20  # bytes; roughly the most that a checkpoint takes in addition to its tensors


def save_checkpoint(path: Path, content: dict[str, Any]) -> None:
    """Write a checkpoint and `<path>.sha256` atomically.

    Raises:
        UserError: The disk is full or too small for the file, or the folder is not writable.
    """
    _check_room(path, _nbytes(content))
    with atomic_write(path, "wb") as f:
        try:
            torch.save(content, f)
        except RuntimeError as e:  # torch's zip writer hides the error of a full disk in this one
            raise e.__context__ if isinstance(e.__context__, OSError) else e from None
        f.flush()
        digest = _sha256(Path(f.name))
        # Until the rename, the old file has no hash: that is allowed, a wrong hash is not.
        _sidecar(path).unlink(missing_ok=True)
    _write_sidecar(path, digest, content.get("images_seen", 0))


def link_checkpoint(path: Path, name: str) -> Path:
    """Give a checkpoint a second name; copy it only if the file system has no hard links."""
    target = path.with_name(name)
    _sidecar(target).unlink(missing_ok=True)
    link = path.with_name(f".{name}.{os.getpid()}.tmp")
    try:
        os.link(path, link)
        os.replace(link, target)
        link.unlink(missing_ok=True)  # rename does nothing if both names are the same file already
    except OSError:
        _check_room(target, path.stat().st_size)
        with atomic_write(target, "wb") as f, open(path, "rb") as source:
            shutil.copyfileobj(source, f)
    # `path` has no sidecar if the process was killed right after renaming it.
    _write_sidecar(target, _stored_hash(path) or _sha256(path), _images_seen(path))
    return target


def save_final(path: Path, folder: Path) -> None:
    """Link `path`, the last checkpoint of a run, as `model_final.pth`."""
    if path.parent.resolve() == folder.resolve():
        mark_last(link_checkpoint(path, FINAL))


def mark_last(path: Path) -> None:
    """Record `path` as the checkpoint to resume from."""
    with atomic_write(path.with_name(LAST)) as f:
        f.write(path.name)


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Return the content of a training checkpoint (tensors and plain containers only).

    Raises:
        UserError: The file is absent, damaged, or not a training checkpoint.
    """
    if not path.is_file():
        raise UserError(f"the checkpoint {path} does not exist")
    if reason := damage(path):
        raise UserError(f"the checkpoint {path} is damaged ({reason}); use another one")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    # torch raises many types of errors for unreadable files.
    except Exception as e:
        raise UserError(f"the checkpoint {path} cannot be read: {first_line(e)}") from e
    for key in ("model", "optimizer", "iterations_done", "images_seen"):
        if not isinstance(content, dict) or key not in content:
            raise UserError(
                f"{path} is not a training checkpoint of d2ext (it has no {key!r});"
                " use train.init_checkpoint to start from other weights"
            )
    return content


def damage(path: Path, zipped: bool = True) -> str | None:
    """Check a file against its stored hash, or without one, against its zip checksums.

    Args:
        path: Path of the file.
        zipped: Require a zip file, as torch writes them; otherwise other files (old torch files,
            pickles) count as intact, because they have no checksums.

    Returns:
        The reason, or None if the file is intact.
    """
    try:
        if stored := _stored_hash(path):
            return None if stored == _sha256(path) else "its sha256 differs"
        if path.stat().st_size == 0:
            return "it is empty"
        if not zipped and not zipfile.is_zipfile(path):
            return None
        with zipfile.ZipFile(path) as archive:
            if bad := archive.testzip():
                return f"its part {bad} does not match its checksum"
        torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except pickle.UnpicklingError:
        pass  # intact but not loadable, which is reported when the file is read
    # Both readers raise a dozen types of exceptions for a zip file with a bad byte.
    except Exception as e:
        return first_line(e)
    return None


def find_newest(folder: Path) -> tuple[Path | None, list[Path]]:
    """Return the newest good checkpoint of a run, and the damaged ones that are newer.

    The newest is the one named in `last_checkpoint`, otherwise the one that has seen the most
    images. Those with more images than the named one were written before the run was resumed from
    an older checkpoint, and are tried last. Damaged ones are logged and left in place. Files of
    other programs do not count.
    """
    candidates = _found(folder, r"(model|epoch)_(\d+|final)\.pth")[::-1]
    pointer = folder / LAST
    if pointer.is_file():
        # Use the name alone, so that a damaged pointer cannot lead out of this folder.
        named = folder / Path(pointer.read_text(errors="replace").strip() or "nothing").name
        if named.is_file() and not _is_of_others(named):
            before = candidates.index(named) if named in candidates else 0
            later = [c for c in candidates[:before] if c != named]
            candidates = [named, *(c for c in candidates if c not in (named, *later)), *later]
        elif not named.is_file():
            logger.warning("%s names %s, which does not exist", pointer, named.name)
    damaged: list[Path] = []
    for path in candidates:
        reason = damage(path)
        if reason is None:
            if damaged:
                logger.warning("%s is the newest good checkpoint", path)
            return path, damaged
        logger.warning("The checkpoint %s is damaged (%s); trying the previous one", path, reason)
        damaged.append(path)
    return None, damaged


def set_aside(path: Path) -> Path:
    """Rename a damaged checkpoint so that it is not used again; return its new path."""
    target = path.with_name(path.name + _DAMAGED)
    os.replace(path, target)
    _sidecar(path).unlink(missing_ok=True)
    return target


def periodic_checkpoints(folder: Path) -> list[Path]:
    """Return all `model_<iteration>.pth` and `epoch_<n>.pth` of a folder, fewest images first."""
    return _found(folder, r"(model|epoch)_\d+\.pth")


def prune(folder: Path, keep: int, newest: Path) -> None:
    """Delete all but the last `keep` periodic checkpoints up to `newest`; 0 or less keeps all.

    Later ones were written before the run was resumed from an older checkpoint, and are kept.
    """
    found = periodic_checkpoints(folder)
    found = found[: found.index(newest) + 1] if newest in found else found
    for path in found[:-keep] if keep > 0 else []:
        path.unlink()
        _sidecar(path).unlink(missing_ok=True)


def remove_leftovers(folder: Path) -> None:
    """Delete the temporary files of processes that were killed while writing."""
    for path in folder.rglob(".*.tmp"):
        if path.relative_to(folder).parts[0] != "eval":  # an evaluation may be writing there
            path.unlink(missing_ok=True)


def first_line(e: BaseException) -> str:
    """Return an exception's message in one line."""
    lines = str(e).strip().splitlines() or [type(e).__name__]
    # torch's message begins with advice to allow the code in the file to run.
    lines = [line for line in lines if line and "weights_only" not in line]
    return lines[0] if lines else "it is damaged or has an old format"


def _found(folder: Path, pattern: str) -> list[Path]:
    matching = [p for p in folder.glob("*.pth") if re.fullmatch(pattern, p.name) and p.is_file()]
    found = [path for path in matching if not _is_of_others(path)]
    # Sorted by images, because clocks can jump; names of the same file are sorted by name.
    return sorted(found, key=lambda p: (_images_seen(p), p.stat().st_mtime_ns, p.name))


def _is_of_others(path: Path) -> bool:
    """Return whether a checkpoint is from another program: MMDetection's have the same names."""
    # Ours lack a sidecar only if the process was killed right after renaming them.
    ours = not path.name.startswith("epoch_") or _IMAGES in _sidecar_text(path)
    return not ours and _images_seen(path) == math.inf


def _images_seen(path: Path) -> float:
    """Return the images seen from the sidecar, else from the file; infinity if unreadable."""
    for line in _sidecar_text(path).splitlines():
        if line.startswith(_IMAGES) and line.removeprefix(_IMAGES).strip().isdecimal():
            return int(line.removeprefix(_IMAGES))
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        return int(content["images_seen"])
    # torch raises many types of errors. Infinity makes the file the first one to be checked.
    except Exception:
        return math.inf


def _nbytes(content: Any) -> int:
    if isinstance(content, Tensor):
        return content.numel() * content.element_size()
    if isinstance(content, dict):
        return sum(map(_nbytes, content.values()))
    return sum(map(_nbytes, content)) if isinstance(content, list | tuple) else 0


def _check_room(path: Path, nbytes: int) -> None:
    free = shutil.disk_usage(path.parent).free if path.parent.is_dir() else math.inf
    if free < nbytes + _MARGIN:
        raise UserError(
            f"cannot write {path}: it takes {nbytes / 1e6:.0f} MB, but the disk has only"
            f" {free / 1e6:.0f} MB free; free space, then continue with {option('--resume')}"
            " (earlier checkpoints are intact)"
        )


def _sidecar(path: Path) -> Path:
    return path.with_name(path.name + ".sha256")


def _sidecar_text(path: Path) -> str:
    sidecar = _sidecar(path)
    return sidecar.read_text(errors="replace") if sidecar.is_file() else ""


def _write_sidecar(path: Path, digest: str, images_seen: float) -> None:
    with atomic_write(_sidecar(path)) as f:  # in the format of sha256sum --check
        f.write(f"{digest}  {path.name}\n{_IMAGES}{images_seen}\n")


def _stored_hash(path: Path) -> str | None:
    """Return the hash from the sidecar; None if there is none or the sidecar is damaged."""
    match = re.match(r"[0-9a-f]{64}\b", _sidecar_text(path))
    return match and match[0]


def _sha256(path: Path) -> str:
    with open(path, "rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()
