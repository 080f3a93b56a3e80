"""Detectors that find many objects without a long training."""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import nn


def spread_outputs(model: nn.Module, inputs: Sequence[dict[str, Any]]) -> None:
    """Scale the last layers of an R-CNN or RetinaNet, so that outputs vary as after a training.

    A new model has nearly equal scores and masks close to 0.5 everywhere, so that rounding decides
    what it finds.

    Args:
        model: Detectron2's model; it is changed.
        inputs: Inputs whose outputs are measured.
    """
    model.eval()
    for layer, deviation in _last_layers(model):
        seen: list[torch.Tensor] = []
        hook = layer.register_forward_hook(lambda _, __, output, seen=seen: seen.append(output))
        with torch.no_grad():
            model(list(inputs))
            hook.remove()
            values = torch.cat([output.flatten() for output in seen])
            layer.weight *= deviation / values.std()
            layer.bias -= layer.bias


def _last_layers(model: nn.Module) -> Iterator[tuple[nn.Module, float]]:
    """Yield the layers in the order of the forward pass, with the deviation of their outputs."""
    if hasattr(model, "head"):
        yield model.head.cls_score, 2.0
        yield model.head.bbox_pred, 0.3
        return
    rpn, heads = model.proposal_generator.rpn_head, model.roi_heads
    yield rpn.objectness_logits, 2.0
    yield rpn.anchor_deltas, 0.3
    for predictor in _listed(heads.box_predictor):
        yield predictor.cls_score, 2.0
        yield predictor.bbox_pred, 1.0
    if heads.mask_on:
        for head in _listed(heads.mask_head):
            yield head.predictor, 2.0


def _listed(part: nn.Module) -> Sequence[nn.Module]:
    return part if isinstance(part, nn.ModuleList) else [part]
