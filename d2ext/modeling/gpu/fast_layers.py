"""Put all layers that wait less often for a GPU into a model."""

from typing import Any

from detectron2.modeling import GeneralizedRCNN
from detectron2.modeling.anchor_generator import DefaultAnchorGenerator
from detectron2.modeling.proposal_generator import RPN
from detectron2.modeling.roi_heads import (
    FastRCNNOutputLayers,
    MaskRCNNConvUpsampleHead,
    StandardROIHeads,
)
from torch import nn

from d2ext._compat import set_class
from d2ext.modeling.gpu.roi_heads import AsyncBoxPredictor, AsyncMaskHead, AsyncROIHeads
from d2ext.modeling.gpu.rpn import (
    AsyncAnchorGenerator,
    AsyncRPN,
    AsyncValidAnchorRPN,
    EarlyLabelRPN,
    forget_early_labels,
    label_anchors_early,
)
from d2ext.modeling.rpn import ValidAnchorRPN

_REPLACEMENTS = {
    DefaultAnchorGenerator: AsyncAnchorGenerator,
    FastRCNNOutputLayers: AsyncBoxPredictor,
    MaskRCNNConvUpsampleHead: AsyncMaskHead,
    RPN: AsyncRPN,
    StandardROIHeads: AsyncROIHeads,
    ValidAnchorRPN: AsyncValidAnchorRPN,
}


def use_async_layers(model: nn.Module) -> None:
    """Replace a model's layers in place with equivalents that wait less; keep all state dict keys.

    Losses are the same bit for bit, unless the backbone draws random numbers (as DropPath does):
    anchors are then sampled before it, and not after.
    """
    for module in model.modules():
        if type(module) in _REPLACEMENTS:
            set_class(module, _REPLACEMENTS[type(module)])
    rpn: Any = getattr(model, "proposal_generator", None)
    if type(model) is not GeneralizedRCNN or not isinstance(rpn, EarlyLabelRPN):
        return
    if isinstance(rpn.anchor_generator, AsyncAnchorGenerator):
        model.register_forward_pre_hook(label_anchors_early, with_kwargs=True)
        model.register_forward_hook(forget_early_labels, always_call=True)
