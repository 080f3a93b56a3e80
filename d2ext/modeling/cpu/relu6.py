"""ReLU6 whose backward pass looks at its output, which the next layer keeps anyway.

torch's in-place hardtanh looks at its input and so keeps a copy of it: a pass over the features,
and half of the memory that a backbone like MobileNet's or EfficientNet-Lite's takes. Inside (0, 6),
where the gradient is 1, output and input are the same number.
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
        if torch.compiler.is_compiling():  # which finds out by itself what to keep
            return super().forward(input)
        return _KeptOutput.apply(input)


def save_relu6_output(model: nn.Module) -> None:
    """Replace a model's in-place ReLU6; they have no weights, so no key changes."""
    for module in model.modules():
        if type(module) is nn.ReLU6 and module.inplace:
            set_class(module, _ReLU6)
