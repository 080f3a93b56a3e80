"""Fold frozen BatchNorm into the preceding convolution, which saves a pass over the features.

A frozen norm computes x * scale + shift for each channel. Multiplying the convolution's
weights by scale and using shift as its bias gives the same result. The stored weights do not change
and remain trainable; they are multiplied at every step, which takes negligible time compared to a
pass over the features. State dict keys do not change either.
"""

import detectron2.layers
from detectron2.layers import FrozenBatchNorm2d
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
    if any(type(module).__module__.startswith("timm.") for module in model.modules()):
        # Importing timm takes half a second, which other models save.
        from d2ext.modeling.cpu.folded_timm_norm import fold_timm_norms

        fold_timm_norms(model)


class _FoldedConv2d(detectron2.layers.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        x = convolved(self, x, self.norm)
        return x if self.activation is None else self.activation(x)


def convolved(conv: nn.Conv2d, x: Tensor, norm: nn.Module) -> Tensor:
    """Apply a convolution and the norm that follows it."""
    weight, bias = folded(conv, norm)
    return F.conv2d(x, weight, bias, conv.stride, conv.padding, conv.dilation, conv.groups)


def folded(conv: nn.Conv2d, norm: nn.Module) -> tuple[Tensor, Tensor]:
    """Return weight and bias of a convolution that is equivalent to `conv` and `norm`."""
    scale = norm.weight * (norm.running_var + norm.eps).rsqrt()
    shift = norm.bias - norm.running_mean * scale
    if conv.bias is not None:
        shift = shift + conv.bias * scale
    return conv.weight * scale[:, None, None, None], shift
