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
from d2ext.run_dir.names import FINAL, LAST

logger = logging.getLogger(__name__)

_DAMAGED = ".damaged"  # added to the name of what is set aside
_IMAGES = "# images seen: "  # in the sidecar; sha256sum --check takes it for a comment
_MARGIN = 2**20  # bytes that a checkpoint takes beside its tensors, at most about


def save_checkpoint(path: Path, content: dict[str, Any]) -> None:
    """Write a checkpoint and `<path>.sha256` atomically.

    Raises:
        UserError: the disk is full, or would be, or the folder cannot be written to.
    """
    _check_room(path, _nbytes(content))
    with atomic_write(path, "wb") as f:
        try:
            torch.save(content, f)
        except RuntimeError as e:  # how torch's zip writer hides that the disk is full
            raise e.__context__ if isinstance(e.__context__, OSError) else e from None
        f.flush()
        digest = _sha256(Path(f.name))
        # From here to the renaming the old file has no hash, which is allowed; a wrong one is not.
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
        link.unlink(missing_ok=True)  # both names of one file already: nothing was replaced
    except OSError:
        _check_room(target, path.stat().st_size)
        with atomic_write(target, "wb") as f, open(path, "rb") as source:
            shutil.copyfileobj(source, f)
    # A kill behind the renaming of a file leaves it without a sidecar.
    _write_sidecar(target, _stored_hash(path) or _sha256(path), _images_seen(path))
    return target


def save_final(path: Path, folder: Path) -> None:
    """Link `path`, the last checkpoint of a run, as its `model_final.pth`."""
    if path.parent.resolve() == folder.resolve():
        mark_last(link_checkpoint(path, FINAL))


def mark_last(path: Path) -> None:
    """Make `path` the checkpoint that a resume takes."""
    with atomic_write(path.with_name(LAST)) as f:
        f.write(path.name)


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Return the content of a training checkpoint (tensors and plain containers only).

    Raises:
        UserError: the file is absent, damaged, or no training checkpoint.
    """
    if not path.is_file():
        raise UserError(f"the checkpoint {path} does not exist")
    if reason := damage(path):
        raise UserError(f"the checkpoint {path} is damaged ({reason}); use another one")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    # Whatever is in the file, torch's reader raises what comes to it.
    except Exception as e:
        raise UserError(f"the checkpoint {path} cannot be read: {first_line(e)}") from e
    for key in ("model", "optimizer", "iterations_done", "images_seen"):
        if not isinstance(content, dict) or key not in content:
            raise UserError(
                f"{path} is no training checkpoint of d2ext (it has no {key!r});"
                " train.init_checkpoint takes the weights of others"
            )
    return content


def damage(path: Path, zipped: bool = True) -> str | None:
    """Return what is wrong with a file by its hash, or else by its zip checksums.

    Args:
        path: the file.
        zipped: it is a zip file, as torch writes them; else what is none, as old torch files and
            pickles are, has no sums to look at.

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
                return f"its part {bad} differs from its checksum"
        torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except pickle.UnpicklingError:
        pass  # whole, but not for us to load; whoever reads it says so
    # Both readers raise a dozen kinds of exceptions for a zip file with a bad byte.
    except Exception as e:
        return first_line(e)
    return None


def find_newest(folder: Path) -> tuple[Path | None, list[Path]]:
    """Return the newest good checkpoint of a run, and the damaged ones that are newer.

    That is `last_checkpoint`'s, else the one of most images. Those of more images than it names are
    of a run that went further before it was resumed from an older one, and come last. The damaged
    ones are named in the log, and stay where they are.
    """
    candidates = _found(folder, r"(model|epoch)_(\d+|final)\.pth")[::-1]
    pointer = folder / LAST
    if pointer.is_file():
        # Only a name: wherever a damaged pointer leads, it is not out of this folder.
        named = folder / Path(pointer.read_text(errors="replace").strip() or "nothing").name
        if named.is_file():
            before = candidates.index(named) if named in candidates else 0
            later = [c for c in candidates[:before] if c != named]
            candidates = [named, *(c for c in candidates if c not in (named, *later)), *later]
        else:
            logger.warning("%s names %s, which does not exist", pointer, named.name)
    damaged = []
    for path in candidates:
        reason = damage(path)
        if reason is None:
            if damaged:
                logger.warning("%s is the newest good checkpoint", path)
            return path, damaged
        logger.warning("The checkpoint %s is damaged (%s); trying the one before it", path, reason)
        damaged.append(path)
    return None, damaged


def set_aside(path: Path) -> Path:
    """Rename a damaged checkpoint so that nothing takes it for a good one; return its new path."""
    target = path.with_name(path.name + _DAMAGED)
    os.replace(path, target)
    _sidecar(path).unlink(missing_ok=True)
    return target


def periodic_checkpoints(folder: Path) -> list[Path]:
    """Return `model_<iteration>.pth` and `epoch_<n>.pth` of a folder, fewest images first."""
    return _found(folder, r"(model|epoch)_\d+\.pth")


def prune(folder: Path, keep: int, newest: Path) -> None:
    """Delete all but the last `keep` periodic checkpoints up to `newest`; 0 or less keeps all.

    Those beyond are of a run that went further before it was resumed from an older checkpoint.
    """
    found = periodic_checkpoints(folder)
    found = found[: found.index(newest) + 1] if newest in found else found
    for path in found[:-keep] if keep > 0 else []:
        path.unlink()
        _sidecar(path).unlink(missing_ok=True)


def remove_leftovers(folder: Path) -> None:
    """Delete the unfinished files of processes that were killed while they wrote."""
    for path in folder.rglob(".*.tmp"):
        if path.relative_to(folder).parts[0] != "eval":  # an evaluation may be writing there
            path.unlink(missing_ok=True)


def first_line(e: BaseException) -> str:
    """Return an exception's message in one line."""
    lines = str(e).strip().splitlines() or [type(e).__name__]
    # torch begins with the advice to run what is in the file.
    lines = [line for line in lines if line and "weights_only" not in line]
    return lines[0] if lines else "it is damaged, or of an old kind"


def _found(folder: Path, pattern: str) -> list[Path]:
    found = [p for p in folder.glob("*.pth") if re.fullmatch(pattern, p.name) and p.is_file()]
    # By images, since clocks jump; several names of one file stand in the order of their names.
    return sorted(found, key=lambda p: (_images_seen(p), p.stat().st_mtime_ns, p.name))


def _images_seen(path: Path) -> float:
    """Return the images seen from the sidecar, else from the file; infinity if unreadable."""
    for line in _sidecar_text(path).splitlines():
        if line.startswith(_IMAGES) and line.removeprefix(_IMAGES).strip().isdecimal():
            return int(line.removeprefix(_IMAGES))
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        return int(content["images_seen"])
    # Whatever is in the file, torch's reader raises what comes to it; it is looked at first.
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
            f"cannot write {path}: it takes {nbytes / 1e6:.0f} MB, and {free / 1e6:.0f} MB of the"
            " disk are free; the checkpoints before it are whole: free space and --resume"
        )


def _sidecar(path: Path) -> Path:
    return path.with_name(path.name + ".sha256")


def _sidecar_text(path: Path) -> str:
    sidecar = _sidecar(path)
    return sidecar.read_text(errors="replace") if sidecar.is_file() else ""


def _write_sidecar(path: Path, digest: str, images_seen: float) -> None:
    with atomic_write(_sidecar(path)) as f:  # what sha256sum --check reads
        f.write(f"{digest}  {path.name}\n{_IMAGES}{images_seen}\n")


def _stored_hash(path: Path) -> str | None:
    """Return the hash from the sidecar; None if it has none or is damaged itself."""
    match = re.match(r"[0-9a-f]{64}\b", _sidecar_text(path))
    return match and match[0]


def _sha256(path: Path) -> str:
    with open(path, "rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()
