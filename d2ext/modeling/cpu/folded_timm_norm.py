"""Fold frozen BatchNorm of timm's models into the preceding convolution; see `folded_norm`."""

from itertools import pairwise

from timm.layers import Conv2dSame, FrozenBatchNormAct2d
from torch import Tensor, nn
from torch.nn import functional as F

from d2ext._compat import set_class
from d2ext.modeling.cpu.folded_norm import convolved, folded


def fold_timm_norms(model: nn.Module) -> None:
    """Fold frozen norms that follow a convolution into it, in place."""
    for module in model.modules():
        for conv, norm in pairwise(list(module.children())):
            folds = type(conv) in _FOLDED and conv.padding_mode == "zeros"
            if folds and type(norm) is FrozenBatchNormAct2d:
                set_class(conv, _FOLDED[type(conv)])
                conv.__dict__["_norm"] = norm  # not registered as a module, so keys do not change
                set_class(norm, _ActivationOnly)


class _FoldedTimmConv2d(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        return convolved(self, x, self._norm)


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
        weight, bias = folded(self, self._norm)
        out = F.conv2d(x, weight, bias, self.stride, padding, self.dilation, self.groups)
        # Copied, because the next layers work in place and are faster on contiguous rows.
        return out[:, :, extra[0] :, extra[1] :].clone() if any(extra) else out


_FOLDED = {nn.Conv2d: _FoldedTimmConv2d, Conv2dSame: _FoldedConv2dSame}


class _ActivationOnly(FrozenBatchNormAct2d):
    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.drop(x))
