"""Read initial weights (torch, Detectron2's .pkl, safetensors) without running code from files."""

import argparse
import importlib
import logging
import pickle
import re
import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import safetensors.torch
import torch
from torch import Tensor

from d2ext.checkpoint.files import damage
from d2ext.checkpoint.weights.mmdetection import (
    expected_input,
    is_background_first,
    is_detector,
)
from d2ext.plain_pickle import foreign_pickle, read_pickle
from d2ext.text import shortened

logger = logging.getLogger(__name__)

# Keys under which programs store the tensors in a checkpoint; averaged weights take precedence.
_AVERAGED = ("ema", "model_ema", "ema_state_dict", "state_dict_ema")
_WRAPPERS = (*_AVERAGED, "model", "state_dict", "model_state_dict", "model_state", "module")
_OLD_TORCH = pickle.dumps(torch.serialization.MAGIC_NUMBER, protocol=2)
_AGAIN = "download or copy it again"
_REMEDY = "save the tensors alone: torch.save(model.state_dict(), FILE)"
OPENMMLAB = "OpenMMLab"  # MMDetection, MMPretrain and others
OWN = "d2ext"  # checkpoints of its runs
# What tensors consist of in a torch file, as in torch's own list for `weights_only`.
_TORCH = {
    "torch": ("Size", "device"),
    "torch._utils": ("_rebuild_parameter", "_rebuild_tensor", "_rebuild_tensor_v2"),
    "torch.storage": ("TypedStorage", "UntypedStorage"),
}
_scalar: Any = np.float64(0).__reduce__()[0]
# Types that training scripts save along with the tensors, and that cannot run code.
_HARMLESS: list[Callable | tuple[Callable, str]] = [
    argparse.Namespace,
    np.dtype,
    *(type(np.dtype(name)) for name in ("float32", "float64", "int64")),
    _scalar,
    (_scalar, "numpy.core.multiarray.scalar"),
]


class WeightsFile(NamedTuple):
    """Content of a weights file.

    Attributes:
        tensors: Tensors by name.
        author: `__author__` in files of the model zoo, `OPENMMLAB`, `OWN`, or "" if unknown.
        classes: Class names, in checkpoints of d2ext and MMDetection; empty if unknown.
        expects: Input that the weights were trained with, in checkpoints of MMDetection: see
            `expected_input`; empty if unknown.
    """

    tensors: dict[str, Tensor]
    author: str = ""
    classes: tuple[str, ...] = ()
    expects: Mapping[str, Any] = MappingProxyType({})


def read_weights(path: Path) -> WeightsFile:
    """Read a weights file; its first bytes, not its name, determine the format.

    Args:
        path: Path of a file from torch, Detectron2's model zoo, Detectron1 or safetensors.

    Raises:
        ValueError: The file is damaged, is not a weights file, or holds more than tensors; the
            message says which. The libraries that read the file raise other errors as well.
    """
    with open(path, "rb") as f:
        head = f.read(200)
    if not head:
        raise ValueError(f"it is empty; {_AGAIN}")
    _refuse_text(head)
    header_bytes = int.from_bytes(head[:8], "little")
    zipped = head.startswith(b"PK\x03\x04")
    if zipped:
        _check_archive(path)
    if reason := damage(path, zipped=False):
        raise ValueError(f"it is damaged ({reason}); {_AGAIN}")
    if zipped or head.startswith(_OLD_TORCH):
        content = _load_torch(path)
    elif head[8:9] == b"{" and header_bytes < 2**30:
        try:
            content = safetensors.torch.load_file(path)
        except safetensors.SafetensorError as e:
            raise ValueError(f"it is damaged or incomplete ({e}); {_AGAIN}") from e
    elif head.startswith(b"\x80"):  # a pickle
        with open(path, "rb") as f:
            content = read_pickle(f, _REMEDY)
    else:
        raise ValueError("it is not a torch, pickle or safetensors file")
    if isinstance(content, dict) and "meta" in content:
        return _openmmlab(content)
    tensors = _tensors(content)
    if is_detector(tensors):
        return _openmmlab({"meta": {}, "state_dict": tensors})
    own = {"iterations_done", "images_seen"} <= content.keys()
    author = OWN if own else str(content.get("__author__", ""))
    return WeightsFile(tensors, author, _names(content.get("classes")))


def classes_of(content: WeightsFile, order: Sequence[str] = ()) -> tuple[str, ...]:
    """Return the class names of a file in the order of the rows of its heads; empty if unknown.

    Args:
        content: The file.
        order: `train.init_checkpoint_classes`: in MMDetection, a COCO file orders the classes, but
            its checkpoints name them in the config's order. Without the same names, it is ignored.
    """
    if content.author == OPENMMLAB and sorted(content.classes) == sorted(order):
        return tuple(order)
    return content.classes


def read_classes(path: Path, order: Sequence[str] = ()) -> tuple[str, ...]:
    """Return the class names in a checkpoint of d2ext or MMDetection; empty if it has none.

    Tensors are not read. Files that cannot be read count as files without class names.

    Args:
        path: The checkpoint.
        order: See `classes_of`.
    """
    try:
        content = _load_torch(path, mmap=zipfile.is_zipfile(path))
        if "meta" in content:
            return classes_of(_openmmlab(content), order)
        return _names(content["classes"])
    # torch raises many types of errors; `read_weights` will report them.
    except Exception:
        return ()


def has_averages(path: Path) -> bool:
    """Return whether `read_weights` takes averaged weights (EMA) from a checkpoint of torch.

    Tensors are not read. Files that cannot be read count as files without averages.
    """
    try:
        content = _load_torch(path, mmap=zipfile.is_zipfile(path))
        return any(_direct(content.get(key)) for key in _AVERAGED)
    except Exception:  # as in `read_classes`
        return False


def _openmmlab(content: dict[str, Any]) -> WeightsFile:
    """Return the content of a checkpoint of MMDetection or its relatives.

    MMEngine exchanges the two when it saves: `state_dict` has the averaged weights, and
    `ema_state_dict` those of the training.
    """
    tensors = _direct(content.get("state_dict")) or _tensors(content)
    tensors = {name.removeprefix("module."): tensor for name, tensor in tensors.items()}
    meta = content["meta"] if isinstance(content["meta"], dict) else {}
    version = meta.get("mmdet_version")
    if is_background_first(tensors, version if isinstance(version, str) else ""):
        raise ValueError(
            f"it is from MMDetection {version or '1.x'}, whose background class is the first one;"
            " upgrade it with tools/model_converters/upgrade_model_version.py of MMDetection 2.x"
        )
    dataset = meta.get("dataset_meta")
    dataset = dataset if isinstance(dataset, dict) else {}
    # The names in 3.x, in its release candidates and in 2.x.
    given = dataset.get("classes") or dataset.get("CLASSES") or meta.get("CLASSES")
    config = meta.get("cfg") or meta.get("config")  # in 3.x and in 2.x
    expects = expected_input(config) if isinstance(config, str) else {}
    return WeightsFile(tensors, OPENMMLAB, _names(given), expects)


def _names(classes: Any) -> tuple[str, ...]:
    if isinstance(classes, str):  # MMDetection allows the name of a single class
        return (classes,)
    named = isinstance(classes, list | tuple) and all(isinstance(name, str) for name in classes)
    return tuple(classes) if named else ()


def _refuse_text(head: bytes) -> None:
    if head.startswith(b"version https://git-lfs"):
        raise ValueError("it is a Git LFS pointer, not the file itself; run git lfs pull")
    if head.lstrip().startswith(b"<"):
        raise ValueError(f"it is a web page or XML, so its download failed; {_AGAIN}")
    text = head.decode("utf-8", errors="replace")
    if all(c.isprintable() or c.isspace() for c in text.removesuffix("\N{REPLACEMENT CHARACTER}")):
        raise ValueError(f"it is a text file that begins with {text[:40]!r}; {_AGAIN}")


def _check_archive(path: Path) -> None:
    if not zipfile.is_zipfile(path):
        raise ValueError(f"it is incomplete: its end is missing; {_AGAIN}")
    with zipfile.ZipFile(path) as archive:
        files = {name.rpartition("/")[2] for name in archive.namelist()}
    if "data.pkl" not in files:
        raise ValueError("it is an archive, but not a torch file; unpack it")
    if "constants.pkl" in files:
        raise ValueError(f"it is a TorchScript program; {_REMEDY}")


def _load_torch(path: Path, mmap: bool = False) -> Any:
    """Read a torch file; objects other than tensors and plain containers are replaced."""
    with torch.serialization.safe_globals(_HARMLESS):
        try:
            return torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
        except pickle.UnpicklingError as e:
            unsafe = re.search(r"GLOBAL (\S+)", str(e))
            if not unsafe:
                raise
    # `weights_only` refuses the entire file. This reads the rest of it, and is as strict: no type
    # or function of the file is imported or called, except for those in `_harmless`.
    found: list[str] = []
    module = foreign_pickle(_harmless, found)
    content = torch.load(
        path, map_location="cpu", pickle_module=module, weights_only=False, mmap=mmap
    )
    if not isinstance(content, dict) or not any(map(_has_tensors, [content, *content.values()])):
        raise ValueError(f"it holds {unsafe[1]}, and d2ext does not run code from files; {_REMEDY}")
    logger.info("Ignored what is not a tensor in %s: %s", path, shortened(sorted(set(found)), 8))
    return content


def _has_tensors(part: Any) -> bool:
    return bool(_wrapped(part) or _direct(part))


def _harmless(module: str, name: str) -> Any:
    """Return a type or function that torch needs for tensors, or None."""
    if name in _TORCH.get(module, ()):
        return getattr(importlib.import_module(module), name)
    found = getattr(torch, name, None) if module == "torch" else None
    storage = name.endswith("Storage") and isinstance(found, type)
    return found if storage or isinstance(found, torch.dtype) else None


def _tensors(content: Any) -> dict[str, Tensor]:
    """Return the named tensors of a checkpoint, however deeply they are nested."""
    if not isinstance(content, dict):
        raise ValueError(f"it holds a {type(content).__name__}, not named tensors; {_REMEDY}")
    if tensors := _wrapped(content):
        return tensors
    tensors = _direct(content)
    # The key may be unknown, with a counter or a random state next to it.
    parts = {key: _wrapped(part) or _direct(part) for key, part in content.items()}
    larger = [key for key, part in parts.items() if len(part) > len(tensors)]
    if len(larger) > 1:
        raise ValueError(
            f"it holds several models, {', '.join(map(str, larger))}; save one of them alone:"
            f" torch.save(torch.load(FILE)[{larger[0]!r}], NEW_FILE)"
        )
    if larger:
        return parts[larger[0]]
    if not tensors:
        keys = ", ".join(map(str, list(content)[:5]))
        raise ValueError(f"it holds no tensors by name{f' but {keys}' if keys else ''}; {_REMEDY}")
    return tensors


def _wrapped(content: Any) -> dict[str, Tensor]:
    """Return the tensors under the first known key that has any, or an empty dict."""
    for key in _WRAPPERS if isinstance(content, dict) else ():
        if tensors := _wrapped(content.get(key)) or _direct(content.get(key)):
            if key in _AVERAGED:
                logger.info("Using the checkpoint's averaged weights (EMA)")
            return tensors
    return {}


def _direct(content: Any) -> dict[str, Tensor]:
    """Return the named tensors of a dict; an empty dict if it has only scalars (counters)."""
    if not isinstance(content, dict):
        return {}
    if isinstance(content.get("blobs"), dict):  # Detectron1
        content = content["blobs"]
    tensors = {
        name: torch.as_tensor(value)
        for name, value in content.items()
        if isinstance(name, str)
        and isinstance(value, Tensor | np.ndarray)
        and not name.endswith("_momentum")
    }
    return tensors if any(tensor.ndim for tensor in tensors.values()) else {}
