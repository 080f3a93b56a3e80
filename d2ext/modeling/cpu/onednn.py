"""Have oneDNN compute layers that torch gives to MKL, and avoid one of its faults.

Results differ by rounding. In a process of one thread, torch computes a 1 x 1 convolution of a few
images with a matrix product of MKL, which takes 2 to 6 times as long as oneDNN in the channels_last
layout. It computes linear layers with MKL in any case, which took 1.4 to 1.9 times as long for the
first layer of a box head on an AMD EPYC.
"""

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from d2ext._compat import set_class

# A dilation does not change a kernel of one pixel, but torch gives dilated convolutions to oneDNN.
_DILATION = (2, 2)
_MIN_INPUT = 20480  # numbers; torch does not give oneDNN smaller ones
_MIN_FEATURES = 1024  # of both sides; MKL is faster for narrow layers
_BLOCK = 16  # channels that oneDNN's kernels for AVX-512 process at once


def use_onednn(model: nn.Module) -> None:
    """Change a model's 1 x 1 convolutions and linear layers in place; keep all state dict keys."""
    if not torch.backends.mkldnn.is_available():
        return
    for module in model.modules():
        if isinstance(module, nn.Conv2d) and module.kernel_size == (1, 1):
            if torch.get_num_threads() == 1:
                module.dilation = _DILATION
        elif type(module) is nn.Linear:
            if min(module.in_features, module.out_features) >= _MIN_FEATURES:
                set_class(module, _Linear)


def subsample_narrow_inputs(model: nn.Module) -> None:
    """Give strided 1 x 1 convolutions of few channels a subsampled input instead, in place.

    In the channels_last layout, oneDNN's gradient of their weights writes past its memory, so that
    a training hangs, crashes or goes wrong (https://github.com/uxlfoundation/oneDNN/issues/6035;
    seen with torch 2.14.1). Without padding, the result is the same.
    """
    for module in model.modules():
        if (
            isinstance(module, nn.Conv2d)
            and module.in_channels // module.groups < _BLOCK
            and module.kernel_size == (1, 1)
            and module.stride != (1, 1)
            and module.padding in ((0, 0), "valid")
        ):
            module.register_forward_pre_hook(partial(_subsampled, module.stride))
            module.stride = (1, 1)


def _subsampled(stride: tuple[int, int], module: nn.Module, inputs: Any) -> tuple:
    x, *others = inputs
    return x[..., :: stride[0], :: stride[1]], *others


class _Linear(nn.Linear):
    """A linear layer that is a 1 x 1 convolution of an image with a pixel for each input."""

    def forward(self, input: Tensor) -> Tensor:
        if torch.compiler.is_compiling() or input.dim() != 2 or input.numel() <= _MIN_INPUT:
            return super().forward(input)
        # torch copies this view to contiguous planes, from which the backward pass of a large layer
        # takes 0.8 of the time that it takes in the channels_last layout.
        image = input.t()[None, :, :, None]
        weight = self.weight[:, :, None, None]
        out = F.conv2d(image, weight, self.bias, dilation=_DILATION)
        return out[0, :, :, 0].t().contiguous()
