"""Write a detector as an ONNX file, without traces of the machine that wrote it."""

import contextlib
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.export import Dim

from d2ext.errors import UserError, format_exception, user_message
from d2ext.export.detector import EXPORTED
from d2ext.files import atomic_write
from d2ext.predict.onnx_info import ModelInfo, to_metadata

_OPSET = 18
_OUTPUTS = ("boxes", "scores", "classes", "masks")
_EXAMPLE = (640, 832, 3)  # any size that is not a special case
_LEAST_HALF = 1024  # values; smaller tensors stay float32


def check_packages() -> None:
    """Raise a UserError if the packages of the extra `export` are missing."""
    try:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as e:
        raise UserError(f"{e.name or e} cannot be imported: pip install 'd2ext[export]'") from e


def write_onnx(detector: nn.Module, info: ModelInfo, file: Path) -> None:
    """Write a detector and its metadata; onnx's checker accepts the file.

    Args:
        detector: Result of `build_detector` for a prepared model.
        info: Its metadata. With `precision="float16"`, the weights are stored at half precision,
            and the graph converts them to float32.
        file: Path of the file.

    Raises:
        UserError: The model has an operator that cannot be exported, or the file cannot be written.
    """
    import onnx

    names = _OUTPUTS if info.mask_size else _OUTPUTS[:3]
    model = _translated(detector, names)
    _strip(model.graph)
    _name_dimensions(model.graph)
    if info.precision == "float16":
        _halve(model.graph)
    onnx.helper.set_model_props(model, to_metadata(info))
    model.producer_name, model.producer_version = "d2ext", info.provenance.versions["d2ext"]
    onnx.checker.check_model(model, full_check=True)
    with atomic_write(file, "wb") as f:
        f.write(model.SerializeToString())


def _translated(detector: nn.Module, outputs: tuple[str, ...]) -> Any:
    """Return the onnx.ModelProto of a detector."""
    image = torch.zeros(_EXAMPLE, dtype=torch.uint8)
    try:
        with _quiet():
            program = torch.onnx.export(
                detector,
                (image,),
                dynamo=True,
                opset_version=_OPSET,
                dynamic_shapes=({0: Dim.DYNAMIC, 1: Dim.DYNAMIC},),
                input_names=["image"],
                output_names=list(outputs),
                custom_translation_table={torch.ops.d2ext.nms.default: _onnx_nms},
                verbose=False,
            )
            return program.model_proto
    except Exception as e:  # each stage of the exporter has its own
        cause = _innermost(e)
        reason = f"the model cannot be exported: {format_exception(cause)}; {EXPORTED} can"
        raise UserError(user_message(cause) or reason) from e


def _innermost(e: BaseException) -> BaseException:
    """Return the error that others were raised from, which names the operator."""
    while e.__cause__ is not None:
        e = e.__cause__
    return e


def _onnx_nms(boxes: Any, scores: Any, iou: float, most: int, least: float) -> Any:
    """Translate `d2ext::nms`; ONNX's boxes may have x and y exchanged in both corners."""
    from onnx import TensorProto
    from onnx.helper import make_tensor
    from onnxscript import opset18 as op

    values = ((most, TensorProto.INT64), (iou, TensorProto.FLOAT), (least, TensorProto.FLOAT))
    settings = (op.Constant(value=make_tensor("value", kind, [1], [v])) for v, kind in values)
    return op.NonMaxSuppression(boxes, scores, *settings)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence the exporter's notes and the warnings of the libraries that it runs."""
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(logging.NOTSET)


def _strip(graph: Any) -> None:
    """Remove stack traces, with the exporting machine's paths, and shapes of inner values."""
    for part in (graph, *graph.node, *graph.initializer, *graph.input, *graph.output):
        part.ClearField("doc_string")
        part.ClearField("metadata_props")
    del graph.value_info[:]
    graph.name = "d2ext"


def _name_dimensions(graph: Any) -> None:
    height, width, _ = graph.input[0].type.tensor_type.shape.dim
    height.dim_param, width.dim_param = "height", "width"
    for output in graph.output:
        output.type.tensor_type.shape.dim[0].dim_param = "objects"


def _halve(graph: Any) -> None:
    """Store large float32 weights as float16; a Cast restores float32, once, at load time."""
    from onnx import TensorProto, helper, numpy_helper

    casts = []
    for weights in graph.initializer:
        if weights.data_type != TensorProto.FLOAT:
            continue
        values = numpy_helper.to_array(weights)
        with np.errstate(over="ignore"):
            half = values.astype(np.float16)
        if values.size < _LEAST_HALF or not np.isfinite(half).all():
            continue
        name = weights.name
        weights.CopyFrom(numpy_helper.from_array(half, f"{name}_float16"))
        casts.append(helper.make_node("Cast", [weights.name], [name], to=TensorProto.FLOAT))
    nodes = list(graph.node)
    del graph.node[:]
    graph.node.extend([*casts, *nodes])
