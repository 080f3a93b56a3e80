"""A detector that finds many objects without a long training."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn


def spread_outputs(model: nn.Module, inputs: Sequence[dict[str, Any]]) -> None:
    """Scale the last layers of a Mask R-CNN, so that its outputs vary like those of a trained one.

    A new model has nearly equal scores and masks close to 0.5 everywhere, so that rounding decides
    what it finds.

    Args:
        model: Detectron2's Mask R-CNN; it is changed.
        inputs: Inputs whose outputs are measured.
    """
    rpn, heads = model.proposal_generator.rpn_head, model.roi_heads
    box, mask = heads.box_predictor, heads.mask_head.predictor
    model.eval()
    for layer, deviation in (
        (rpn.objectness_logits, 2.0),
        (rpn.anchor_deltas, 0.3),
        (box.cls_score, 2.0),
        (box.bbox_pred, 1.0),
        (mask, 2.0),
    ):
        seen: list[torch.Tensor] = []
        hook = layer.register_forward_hook(lambda _, __, output, seen=seen: seen.append(output))
        with torch.no_grad():
            model(list(inputs))
            hook.remove()
            values = torch.cat([output.flatten() for output in seen])
            layer.weight *= deviation / values.std()
            layer.bias -= layer.bias
