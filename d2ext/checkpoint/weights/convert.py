"""Convert checkpoints between MMDetection's and Detectron2's tensor names."""

import shlex
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from d2ext.checkpoint.files import first_line
from d2ext.checkpoint.weights.mmdetection import (
    Tensors,
    fitting_recipes,
    from_mmdetection,
    to_mmdetection,
)
from d2ext.checkpoint.weights.weight_files import OPENMMLAB, WeightsFile, read_weights
from d2ext.errors import UserError
from d2ext.files import atomic_write
from d2ext.text import plural


def convert_from_mmdetection(source: Path, destination: Path) -> str:
    """Write an MMDetection checkpoint with Detectron2's names: the tensors are in `model`.

    Args:
        source: Checkpoint of MMDetection 2.x or 3.x.
        destination: New file.

    Returns:
        A description of what was written.

    Raises:
        UserError: The source is not such a checkpoint, or the file exists or cannot be written.
    """
    content = _read(source)
    if content.author != OPENMMLAB:
        raise UserError(f"{source} is not a checkpoint of MMDetection; use it as it is")
    tensors = from_mmdetection(content.tensors)
    # Detectron2's frozen norms have no batch counts, and its other norms do not need them.
    counts = [name for name in tensors if name.endswith(".num_batches_tracked")]
    unknown = [name for name in tensors if name in content.tensors and name not in counts]
    kept = {n: t for n, t in tensors.items() if n not in unknown and n not in counts}
    if not kept:
        raise UserError(
            f"{source} holds no tensors of a model that d2ext knows, but {_listed(unknown)}; it"
            " converts Faster, Mask and Cascade R-CNN and RetinaNet with ResNet or ResNeXt"
        )
    _write(destination, {"model": kept, "classes": list(content.classes)})
    model = fitting_recipes(content.tensors, content.expects.get("stride_in_1x1"))
    known = ", ".join(f"{key}={value}" for key, value in content.expects.items())
    known = f"it expects {known}" if known else "it does not say which input it expects"
    return f"{_summary(destination, kept, content, unknown)}; {model}; {known}"


def convert_to_mmdetection(source: Path, destination: Path) -> str:
    """Write a checkpoint of Detectron2 or d2ext with MMDetection's names, for its 2.x and 3.x.

    Of a run with averaged weights, these are written.

    Args:
        source: Checkpoint of a run, or any file that `read_weights` reads, with Detectron2's names.
        destination: New file.

    Returns:
        A description of what was written.

    Raises:
        UserError: The source has other names, or the file exists or cannot be written.
    """
    content = _read(source)
    if content.author == OPENMMLAB:
        raise UserError(f"{source} has MMDetection's names already")
    tensors, unknown = to_mmdetection(content.tensors)
    if not tensors:
        raise UserError(
            f"{source} holds no tensors under Detectron2's names, but {_listed(unknown)}; give the"
            " checkpoint of a run"
        )
    # The names in 3.x and in 2.x.
    meta = {"dataset_meta": {"classes": content.classes}, "CLASSES": content.classes}
    _write(destination, {"meta": meta if content.classes else {}, "state_dict": tensors})
    return _summary(destination, tensors, content, unknown)


def _read(source: Path) -> WeightsFile:
    if not source.is_file():
        raise UserError(f"{source}: no such file")
    try:
        return read_weights(source)
    # The libraries that read files raise many types of errors.
    except Exception as e:
        raise UserError(f"the weights {source} cannot be read: {first_line(e)}") from e


def _write(destination: Path, content: dict[str, Any]) -> None:
    if destination.exists():
        raise UserError(f"{destination} already exists; give another file name")
    with atomic_write(destination, "wb") as file:
        try:
            torch.save(content, file)
        except RuntimeError as e:  # torch's zip writer hides the error of a full disk in this one
            raise e.__context__ if isinstance(e.__context__, OSError) else e from None


def _summary(
    destination: Path, tensors: Tensors, content: WeightsFile, unknown: Iterable[str]
) -> str:
    count = len(content.classes)
    names = f"the names of {plural(count, 'class')}" if count else "no class names"
    text = f"wrote {shlex.quote(str(destination))}: {plural(len(tensors), 'tensor')}, {names}"
    if left := list(unknown):
        text += f"; left out, without a counterpart: {_listed(left)}"
    return text


def _listed(names: Iterable[str]) -> str:
    """List the modules of tensors, at most two levels deep, with the numbers of their tensors."""
    counts = Counter(".".join(name.split(".")[:2]) for name in names)
    listed = [f"{name} ({plural(count, 'tensor')})" for name, count in counts.items()]
    return ", ".join(listed[:6]) + (" ..." if len(listed) > 6 else "")
