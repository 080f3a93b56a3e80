"""Frozen BatchNorm inside the convolution before it: one pass over the features less each way.

What a frozen norm does to each channel, x * scale + shift, is a convolution's with the weights
times scale and the bias shift. The weights stay as they are, and trainable: they are multiplied at
every step, which costs nothing beside the features. No key of the weights changes.
"""

from itertools import pairwise

import detectron2.layers
from detectron2.layers import FrozenBatchNorm2d
from timm.layers import Conv2dSame, FrozenBatchNormAct2d, pad_same
from torch import Tensor, nn


def fold_norms(model: nn.Module) -> None:
    """Has the convolutions of a model work so where a frozen norm follows, in place.

    Known are Detectron2's convolutions, which hold their norm, and timm's, which stand before it.
    """
    for module in model.modules():
        if type(module) is detectron2.layers.Conv2d and type(module.norm) is FrozenBatchNorm2d:
            module.__class__ = _FoldedConv2d
        for conv, norm in pairwise(list(module.children())):
            if type(conv) in _FOLDED and type(norm) is FrozenBatchNormAct2d:
                conv.__class__ = _FOLDED[type(conv)]
                conv.__dict__["_norm"] = norm  # beside the registered ones, so no key is new
                norm.__class__ = _ActivationOnly


class _FoldedConv2d(detectron2.layers.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        x = _folded(self, self.norm, x)
        return x if self.activation is None else self.activation(x)


class _FoldedTimmConv2d(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        return _folded(self, self._norm, x)


class _FoldedConv2dSame(Conv2dSame):
    def forward(self, x: Tensor) -> Tensor:
        x = pad_same(x, self.kernel_size, self.stride, self.dilation)
        return _folded(self, self._norm, x)


_FOLDED = {nn.Conv2d: _FoldedTimmConv2d, Conv2dSame: _FoldedConv2dSame}


class _ActivationOnly(FrozenBatchNormAct2d):
    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.drop(x))


def _folded(conv: nn.Conv2d, norm: nn.Module, x: Tensor) -> Tensor:
    scale = norm.weight * (norm.running_var + norm.eps).rsqrt()
    shift = norm.bias - norm.running_mean * scale
    if conv.bias is not None:
        shift = shift + conv.bias * scale
    return conv._conv_forward(x, conv.weight * scale[:, None, None, None], shift)
