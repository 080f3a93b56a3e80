"""Count the operations of convolutions and matrix products, and sort a profile by kind."""

from collections.abc import Sequence
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode, conv_flop_count

FLOOR = "convolutions, linear layers"
# The first kind with a part of the operation's name counts.
KINDS = {
    FLOOR: ("convolution", "addmm", "::mm", "::bmm"),
    "RoIAlign": ("roi_align", "embedding_bag"),
    "NMS, sorting": ("nms", "sort", "topk"),
    "copies, indexing": ("copy", "clone", "::cat", "index", "fill_", "zero_", "pad", "nonzero"),
    "activations, optimizer, other": ("",),
}


def kind_of(operation: str) -> str:
    """Return the kind of an operation, one of `KINDS`, by its name in a profile."""
    return next(kind for kind, parts in KINDS.items() if any(part in operation for part in parts))


def counter() -> FlopCounterMode:
    """Return a context that counts the operations of convolutions and matrix products."""
    backward = {torch.ops.aten.convolution_backward: _backward_operations}
    return FlopCounterMode(display=False, custom_mapping=backward)


def _backward_operations(
    gradient: Sequence[int], image: Sequence[int], weight: Sequence[int], *others: Any, **_: Any
) -> int:
    """Return the operations of a convolution's backward pass, from shapes.

    torch's own formula ignores groups, and counts those of a depthwise convolution far too high.
    """
    (*_, transposed, _, _, (of_image, of_weight, _)) = others
    forward = conv_flop_count(image, weight, gradient, transposed)
    return (of_image + of_weight) * forward
