"""Checkpoint files: written whole, hashed, found again, and read without running their code."""

import hashlib
import importlib.util
import logging
import os
import pickle
import re
import shutil
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.utils.file_io import PathManager
from torch import nn

from d2ext.errors import UserError
from d2ext.files import replaced
from d2ext.modeling.timm_backbone import rename_efficientnet_lite0

logger = logging.getLogger(__name__)

LAST = "last_checkpoint"  # Detectron2's pointer file: the name of the newest checkpoint
BEST = "model_best.pth"


def save_checkpoint(path: Path, content: dict[str, Any]) -> None:
    """Writes a checkpoint and `<path>.sha256`; a reader sees the old file or the whole new one.

    Raises:
        UserError: the disk is full or the folder cannot be written to.
    """
    with replaced(path, "wb") as f:
        try:
            torch.save(content, f)
        except RuntimeError as e:  # how torch's zip writer hides that the disk is full
            raise e.__context__ if isinstance(e.__context__, OSError) else e from None
        f.flush()
        digest = _sha256(Path(f.name))
        # From here to the renaming the old file has no hash, which is allowed; a wrong one is not.
        _sidecar(path).unlink(missing_ok=True)
    _write_sidecar(path, digest)


def link_checkpoint(path: Path, name: str) -> Path:
    """Gives a checkpoint a second name, without a second copy where the file system can."""
    target = path.with_name(name)
    _sidecar(target).unlink(missing_ok=True)
    link = path.with_name(f".{name}.{os.getpid()}.tmp")
    try:
        os.link(path, link)
        os.replace(link, target)
        link.unlink(missing_ok=True)  # both names of one file already: nothing was replaced
    except OSError:
        with replaced(target, "wb") as f, open(path, "rb") as source:
            shutil.copyfileobj(source, f)
    _write_sidecar(target, _sidecar(path).read_text().split()[0])
    return target


def save_final(path: Path, folder: Path) -> None:
    """Makes `path`, the last checkpoint of a run, its `model_final.pth` as well."""
    if path.parent.resolve() == folder.resolve():
        mark_last(link_checkpoint(path, "model_final.pth"))


def mark_last(path: Path) -> None:
    """Makes `path` the checkpoint that a resume takes."""
    with replaced(path.with_name(LAST)) as f:
        f.write(path.name)


def read_checkpoint(path: Path) -> dict[str, Any]:
    """The content of a training checkpoint (tensors and plain containers only).

    Raises:
        UserError: the file is absent, damaged, or no training checkpoint.
    """
    if not path.is_file():
        raise UserError(f"the checkpoint {path} does not exist")
    if not intact(path):
        raise UserError(f"the checkpoint {path} is damaged (its sha256 differs); use another one")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError) as e:
        raise UserError(f"the checkpoint {path} cannot be read: {_first_line(e)}") from e
    for key in ("model", "optimizer", "iterations_done", "images_seen"):
        if not isinstance(content, dict) or key not in content:
            raise UserError(
                f"{path} is no training checkpoint of d2ext (it has no {key!r});"
                " train.init_checkpoint takes the weights of others"
            )
    return content


def intact(path: Path) -> bool:
    """Whether a checkpoint agrees with its hash; one without a hash is taken as it is."""
    sidecar = _sidecar(path)
    return not sidecar.is_file() or sidecar.read_text().split()[:1] == [_sha256(path)]


def newest_good(folder: Path) -> Path | None:
    """The newest undamaged checkpoint of a run: `last_checkpoint`'s, else the latest before it."""
    pointer = folder / LAST
    candidates = periodic_checkpoints(folder)[::-1]
    if pointer.is_file():
        named = folder / pointer.read_text().strip()
        candidates = [named, *(c for c in candidates if c != named)]
    for path in candidates:
        if path.is_file() and intact(path):
            return path
        logger.warning("The checkpoint %s is absent or damaged; trying the one before it", path)
    return None


def periodic_checkpoints(folder: Path) -> list[Path]:
    """`model_<iteration>.pth` and `epoch_<n>.pth` of a folder, oldest first."""
    found = [p for p in folder.glob("*.pth") if re.fullmatch(r"(model|epoch)_\d+\.pth", p.name)]
    return sorted(found, key=lambda p: (p.stat().st_mtime_ns, p.name))


def prune(folder: Path, keep: int) -> None:
    """Deletes all but the newest `keep` periodic checkpoints of a folder; 0 or less keeps all."""
    for path in periodic_checkpoints(folder)[:-keep] if keep > 0 else []:
        path.unlink()
        _sidecar(path).unlink(missing_ok=True)


def local_weights(path: str, field: str = "train.init_checkpoint") -> str:
    """Brings initial weights to this machine.

    Args:
        path: a file, a URL, Detectron2's `detectron2://...`, or `package://<package>/<file>` for a
            file that an installed Python package carries. A `?query` stays.
        field: the option that gave it, for messages.

    Returns:
        A local path (with the query); "" for "".

    Raises:
        UserError: it cannot be reached.
    """
    if not path:
        return ""
    plain, mark, query = path.partition("?")
    hint = f"pass a local file with {field}=/path/to/file"
    if plain.startswith("package://"):
        package, _, inside = plain.removeprefix("package://").partition("/")
        spec = importlib.util.find_spec(package) if package.isidentifier() else None
        if spec is None or not spec.submodule_search_locations:
            raise UserError(
                f"{field}={path}: the package {package.replace('_', '-')} is not"
                f" installed; install it or {hint}"
            )
        local = str(Path(spec.submodule_search_locations[0]) / inside)
    else:
        # iopath's own default would be ~/.torch.
        cache = os.environ.get("D2EXT_CACHE") or "~/.cache/d2ext"
        os.environ.setdefault("FVCORE_CACHE", os.path.expanduser(cache))
        try:
            local = PathManager.get_local_path(plain)
        # urllib, requests and iopath each raise their own.
        except Exception as e:
            raise UserError(f"{field}={path} cannot be reached ({_first_line(e)}); {hint}") from e
    if not os.path.isfile(local):
        raise UserError(f"{field}={path}: no such file; {hint}")
    return local + mark + query


def load_weights(model: nn.Module, path: str) -> None:
    """Loads initial weights in any format that Detectron2 reads, and timm's Lite0 package.

    Tensors whose shape differs (heads for other classes) stay as initialised; the log names them.

    Raises:
        UserError: the file cannot be read, or nothing in it fits the model.
    """
    checkpointer = _WeightsReader(model)
    if not intact(Path(path.partition("?")[0])):
        raise UserError(f"the weights {path} are damaged (their sha256 differs); use others")
    try:
        checkpointer.load(path, checkpointables=[])
    # Whatever is in the file, readers of several libraries raise what comes to them.
    except Exception as e:
        raise UserError(f"the weights {path} cannot be read: {_first_line(e)}") from e
    if not checkpointer.loaded:
        raise UserError(f"none of the {checkpointer.offered} tensors in {path} fits the model")
    logger.info(
        "Loaded %d of the model's %d tensors from %s; the others start at random",
        checkpointer.loaded,
        len(model.state_dict()),
        path,
    )


class _WeightsReader(DetectionCheckpointer):
    """Detectron2's reader of weights, made safe: no pickle runs code."""

    loaded = offered = 0

    def _load_file(self, filename: str) -> dict[str, Any]:
        if not filename.endswith(".pkl"):
            return super()._load_file(filename)
        # The same cases as Detectron2's reader distinguishes.
        with open(filename, "rb") as f:
            data = _PlainUnpickler(f, encoding="latin1").load()
        if "model" in data and "__author__" in data:
            return data
        data = data.get("blobs", data)
        data = {k: v for k, v in data.items() if not k.endswith("_momentum")}
        return {"model": data, "__author__": "Caffe2", "matching_heuristics": True}

    def _torch_load(self, filename: str) -> dict[str, Any]:
        return torch.load(filename, map_location="cpu", weights_only=True)

    def _load_model(self, checkpoint: dict[str, Any]) -> Any:
        if "ema" in checkpoint:
            logger.info("The checkpoint's averaged weights (EMA) are taken")
            checkpoint["model"] = checkpoint.pop("ema")
        state = checkpoint["model"]
        if "_conv_stem.weight" in state:
            checkpoint["model"] = state = rename_efficientnet_lite0(state, self.model)
        self.offered = len(state)
        incompatible = super()._load_model(checkpoint)
        expected = len(self.model.state_dict())
        self.loaded = expected - len(incompatible.missing_keys)
        return incompatible


class _PlainUnpickler(pickle.Unpickler):
    """Reads numpy arrays and plain containers, and refuses everything else.

    https://docs.python.org/3/library/pickle.html#restricting-globals
    """

    _ALLOWED = {
        ("collections", "OrderedDict"): OrderedDict,
        ("numpy", "ndarray"): np.ndarray,
        ("numpy", "dtype"): np.dtype,
        ("numpy.core.multiarray", "_reconstruct"): np.ndarray.__reduce__(np.empty(0))[0],
        ("numpy.core.multiarray", "scalar"): np.float64(0).__reduce__()[0],
    }

    def find_class(self, module: str, name: str) -> Any:
        module = module.replace("numpy._core", "numpy.core")
        if (module, name) == ("_codecs", "encode"):  # how Python 3 writes Python 2's byte strings
            return super().find_class(module, name)
        try:
            return self._ALLOWED[module, name]
        except KeyError:
            raise pickle.UnpicklingError(
                f"it holds {module}.{name}; only arrays and plain containers are read"
            ) from None


def _sidecar(path: Path) -> Path:
    return path.with_name(path.name + ".sha256")


def _write_sidecar(path: Path, digest: str) -> None:
    with replaced(_sidecar(path)) as f:
        f.write(f"{digest}  {path.name}\n")  # what sha256sum --check reads


def _sha256(path: Path) -> str:
    with open(path, "rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


def _first_line(e: BaseException) -> str:
    return (str(e).strip() or type(e).__name__).splitlines()[0]
