"""ReLU6 whose backward pass uses its output, which the next layer keeps anyway.

torch's in-place hardtanh uses its input and therefore saves a copy of it. This takes a pass over
the features, and half of the memory of a backbone like MobileNet or EfficientNet-Lite. The output
is sufficient: inside (0, 6), where the gradient is 1, it equals the input.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from d2ext._compat import set_class


class _KeptOutput(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.mark_dirty(x)
        F.relu6(x, inplace=True)
        ctx.save_for_backward(x)
        return x

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (output,) = ctx.saved_tensors
        return torch.ops.aten.hardtanh_backward(gradient, output, 0, 6)


class _ReLU6(nn.ReLU6):
    def forward(self, input: Tensor) -> Tensor:
        if torch.compiler.is_compiling():  # the compiler chooses what to save
            return super().forward(input)
        return _KeptOutput.apply(input)


def save_relu6_output(model: nn.Module) -> None:
    """Replace a model's in-place ReLU6; they have no weights, so keys do not change."""
    for module in model.modules():
        if type(module) is nn.ReLU6 and module.inplace:
            set_class(module, _ReLU6)
