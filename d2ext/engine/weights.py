"""Initial weights: brought to this machine, and read without running their code."""

import importlib.util
import logging
import os
import pickle
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.utils.file_io import PathManager
from torch import nn

from d2ext.engine.checkpoint import damage, first_line
from d2ext.errors import UserError
from d2ext.files import cache_dir
from d2ext.modeling.timm_backbone import rename_efficientnet_lite0
from d2ext.waiting import waiting_for

logger = logging.getLogger(__name__)


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
        os.environ.setdefault("FVCORE_CACHE", str(cache_dir()))
        try:
            with waiting_for(f"the weights {plain}"):
                local = PathManager.get_local_path(plain)
        # urllib, requests and iopath each raise their own.
        except Exception as e:
            raise UserError(f"{field}={path} cannot be reached ({first_line(e)}); {hint}") from e
    if not os.path.isfile(local):
        raise UserError(f"{field}={path}: no such file; {hint}")
    return local + mark + query


def load_weights(model: nn.Module, path: str, whole: bool = False) -> None:
    """Loads weights in any format that Detectron2 reads, and timm's Lite0 package.

    Tensors whose shape differs (heads for other classes) stay as initialised; the log names them.

    Args:
        model: to load them into.
        path: of the file.
        whole: no parameter may stay as initialised, since nothing will train it.

    Raises:
        UserError: the file cannot be read, or too little in it fits the model.
    """
    checkpointer = _WeightsReader(model)
    if reason := damage(Path(path.partition("?")[0]), zipped=False):
        raise UserError(f"the weights {path} are damaged ({reason}); use others")
    try:
        checkpointer.load(path, checkpointables=[])
    # Whatever is in the file, readers of several libraries raise what comes to them.
    except Exception as e:
        raise UserError(f"the weights {path} cannot be read: {first_line(e)}") from e
    if not checkpointer.loaded:
        raise UserError(f"none of the {checkpointer.offered} tensors in {path} fits the model")
    left = [name for name, _ in model.named_parameters() if name in checkpointer.missing]
    if whole and left:
        some = ", ".join(left[:2]) + " ..." * (len(left) > 2)
        raise UserError(
            f"{len(left)} of the model's parameters ({some}) are not in {path}, or have another"
            " shape there; take weights of this very model, with as many classes"
        )
    number = len(model.state_dict())
    rest = "; the others start at random" * (checkpointer.loaded < number)
    logger.info(
        "Loaded %d of the model's %d tensors from %s%s", checkpointer.loaded, number, path, rest
    )


class _WeightsReader(DetectionCheckpointer):
    """Detectron2's reader of weights, made safe: no pickle runs code."""

    loaded = offered = 0
    missing: Sequence[str] = ()

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
        content = torch.load(filename, map_location="cpu", weights_only=True)
        if isinstance(content, dict) and {"meta", "state_dict"} <= content.keys():
            raise ValueError(
                "it is MMDetection's, whose models call their weights otherwise; take those of the"
                " same model from Detectron2's model zoo"
            )
        return content

    def _load_model(self, checkpoint: dict[str, Any]) -> Any:
        if "ema" in checkpoint:
            logger.info("The checkpoint's averaged weights (EMA) are taken")
            checkpoint["model"] = checkpoint.pop("ema")
        state = checkpoint["model"]
        if "_conv_stem.weight" in state:
            checkpoint["model"] = state = rename_efficientnet_lite0(state, self.model)
        self.offered = len(state)
        incompatible = super()._load_model(checkpoint)
        self.missing = incompatible.missing_keys
        self.loaded = len(self.model.state_dict()) - len(self.missing)
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
