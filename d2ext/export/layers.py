"""Prepare a model's layers for export: fold norms, and make paddings constant."""

import copy
from itertools import pairwise

import detectron2.layers
from detectron2.layers import FrozenBatchNorm2d
from timm.layers import Conv2dSame, FrozenBatchNormAct2d
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from d2ext.errors import UserError

_NORMS = (nn.BatchNorm2d, nn.SyncBatchNorm, FrozenBatchNorm2d)


def prepared(model: nn.Module) -> nn.Module:
    """Return a copy of a model on the CPU, for export.

    Norms are folded into the convolutions before them, so that results differ by rounding. timm's
    `Conv2dSame`, whose padding depends on the size of its input, gets the padding for an input that
    is a multiple of its stride, as it is after the image was padded for an FPN.

    Args:
        model: Model in evaluation mode; it is not changed.

    Raises:
        UserError: Another layer has padding that depends on the size of its input.
    """
    model = copy.deepcopy(model).cpu().float().eval().requires_grad_(False)
    for parent in list(model.modules()):
        if isinstance(parent, detectron2.layers.Conv2d) and isinstance(parent.norm, _NORMS):
            _fold(parent, parent.norm)
            parent.norm = None
        children = list(parent.named_children())
        for (_, conv), (name, norm) in pairwise(children):
            if type(conv) in (nn.Conv2d, Conv2dSame) and type(norm) is FrozenBatchNormAct2d:
                _fold(conv, norm)
                setattr(parent, name, nn.Sequential(norm.drop, norm.act))
        for name, conv in children:
            if type(conv) is Conv2dSame:
                setattr(parent, name, _with_constant_padding(conv))
    for name, module in model.named_modules():
        # The exporter would compute sizes for hours. timm's layers with standardized weights have
        # an attribute, since their padding may be constant.
        if getattr(module, "same_pad", type(module).__name__.endswith("Same")):
            raise UserError(
                f"the model cannot be exported: {name} is a {type(module).__name__}, whose padding"
                " depends on the size of the image; use a backbone with constant padding"
            )
    return model


def _fold(conv: nn.Conv2d, norm: nn.Module) -> None:
    """Put the scale and shift of a norm into the weights of a convolution."""
    conv.weight, conv.bias = fuse_conv_bn_weights(
        conv.weight,
        conv.bias,
        norm.running_mean,
        norm.running_var,
        norm.eps,
        norm.weight,
        norm.bias,
    )


def _with_constant_padding(conv: Conv2dSame) -> nn.Module:
    """Return a convolution with TensorFlow's padding for inputs of a multiple of the stride."""
    new = nn.Conv2d(
        conv.in_channels,
        conv.out_channels,
        conv.kernel_size,
        conv.stride,
        0,
        conv.dilation,
        conv.groups,
        conv.bias is not None,
    )
    new.weight, new.bias = conv.weight, conv.bias
    sides = zip(conv.kernel_size, conv.stride, conv.dilation, strict=True)
    down, right = (max(d * (k - 1) + 1 - s, 0) for k, s, d in sides)
    return nn.Sequential(
        nn.ZeroPad2d((right // 2, right - right // 2, down // 2, down - down // 2)), new
    )
