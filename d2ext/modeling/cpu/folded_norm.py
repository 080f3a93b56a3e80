"""Fold frozen BatchNorm into the preceding convolution, which saves a pass over the features.

A frozen norm computes x * scale + shift for each channel. Multiplying the convolution's
weights by scale and using shift as its bias gives the same result. The stored weights do not change
and remain trainable; they are multiplied at every step, which takes negligible time compared to a
pass over the features. State dict keys do not change either.
"""

from itertools import pairwise

import detectron2.layers
from detectron2.layers import FrozenBatchNorm2d
from timm.layers import Conv2dSame, FrozenBatchNormAct2d
from torch import Tensor, nn
from torch.nn import functional as F

from d2ext._compat import set_class


def fold_norms(model: nn.Module) -> None:
    """Fold a model's frozen norms into the preceding convolutions, in place.

    Detectron2's convolutions, which contain their norm, and timm's, which are followed by it, are
    supported.
    """
    for module in model.modules():
        if type(module) is detectron2.layers.Conv2d and type(module.norm) is FrozenBatchNorm2d:
            set_class(module, _FoldedConv2d)
        for conv, norm in pairwise(list(module.children())):
            folds = type(conv) in _FOLDED and conv.padding_mode == "zeros"
            if folds and type(norm) is FrozenBatchNormAct2d:
                set_class(conv, _FOLDED[type(conv)])
                conv.__dict__["_norm"] = norm  # not registered as a module, so keys do not change
                set_class(norm, _ActivationOnly)


class _FoldedConv2d(detectron2.layers.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        x = _convolved(self, x, self.norm)
        return x if self.activation is None else self.activation(x)


class _FoldedTimmConv2d(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        return _convolved(self, x, self._norm)


class _FoldedConv2dSame(Conv2dSame):
    """A convolution with TensorFlow's padding, without a padded copy of the features.

    The output size is `ceil(size / stride)`, and an odd padding has one pixel more at the end than
    at the start. torch supports only symmetric padding, so timm copies the features into padded
    ones. This class instead adds a stride to both sides of an odd padding, and drops the additional
    output at the start.
    """

    def forward(self, x: Tensor) -> Tensor:
        padding, extra = [], []
        axes = (x.shape[2:], self.kernel_size, self.stride, self.dilation)
        for size, kernel, stride, dilation in zip(*axes, strict=True):
            covered = (-(-size // stride) - 1) * stride + dilation * (kernel - 1) + 1
            total = max(covered - size, 0)
            extra.append(total % 2)
            padding.append(total // 2 + total % 2 * stride)
        weight, bias = _folded(self, self._norm)
        out = F.conv2d(x, weight, bias, self.stride, padding, self.dilation, self.groups)
        # Copied, because the next layers work in place and are faster on contiguous rows.
        return out[:, :, extra[0] :, extra[1] :].clone() if any(extra) else out


_FOLDED = {nn.Conv2d: _FoldedTimmConv2d, Conv2dSame: _FoldedConv2dSame}


class _ActivationOnly(FrozenBatchNormAct2d):
    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.drop(x))


def _convolved(conv: nn.Conv2d, x: Tensor, norm: nn.Module) -> Tensor:
    weight, bias = _folded(conv, norm)
    return F.conv2d(x, weight, bias, conv.stride, conv.padding, conv.dilation, conv.groups)


def _folded(conv: nn.Conv2d, norm: nn.Module) -> tuple[Tensor, Tensor]:
    """Return weight and bias of a convolution that is equivalent to `conv` and `norm`."""
    scale = norm.weight * (norm.running_var + norm.eps).rsqrt()
    shift = norm.bias - norm.running_mean * scale
    if conv.bias is not None:
        shift = shift + conv.bias * scale
    return conv.weight * scale[:, None, None, None], shift
