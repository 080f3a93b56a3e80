"""IoU losses of decoded boxes that Detectron2 lacks or defines otherwise than MMDetection."""

import math
from typing import Any

import torch
from detectron2.modeling.roi_heads import FastRCNNOutputLayers
from torch import Tensor
from torch.nn import functional as F


class IoULossOutputLayers(FastRCNNOutputLayers):
    """Detectron2's box predictor with `box_reg_loss_type` "iou", "bounded_iou" or "ciou"."""

    def box_reg_loss(
        self, proposal_boxes: Tensor, gt_boxes: Tensor, pred_deltas: Tensor, gt_classes: Tensor
    ) -> Any:
        """Return the loss of the positive boxes, divided by the number of all boxes.

        Args:
            proposal_boxes: Boxes (R, 4).
            gt_boxes: Their objects (R, 4).
            pred_deltas: Predicted deltas (R, 4), or (R, 4 x classes).
            gt_classes: Classes (R,); the number of classes is background.
        """
        positive = ((gt_classes >= 0) & (gt_classes < self.num_classes)).nonzero()[:, 0]
        deltas = pred_deltas[positive]
        if deltas.shape[1] > 4:
            own = gt_classes[positive]
            deltas = deltas.view(len(own), self.num_classes, 4)[torch.arange(len(own)), own]
        boxes = self.box2box_transform.apply_deltas(deltas, proposal_boxes[positive])
        loss = _LOSSES[self.box_reg_loss_type](boxes, gt_boxes[positive])
        return loss.sum() / max(len(gt_classes), 1)


def iou_loss(boxes: Tensor, targets: Tensor) -> Tensor:
    """Return -log(IoU) of P boxes and targets (P, 4), as (P,); Yu et al., UnitBox, 2016."""
    iou, _ = _iou_and_sizes(boxes, targets, 0)
    return -torch.log(iou.clamp(min=1e-6))


def bounded_iou_loss(boxes: Tensor, targets: Tensor) -> Tensor:
    """Return a loss for each coordinate (P, 4): Tychsen-Smith and Petersson, 2018.

    The loss of a coordinate is smooth L1, with beta 0.2, of 1 minus the largest IoU possible if
    only this coordinate differs.
    """
    distance = 2 * (_centers(boxes) - _centers(targets)).abs()
    size, target_size = _sizes(boxes), _sizes(targets)
    centers = ((target_size - distance) / (target_size + distance + 1e-3)).clamp(min=0)
    sizes = torch.minimum(target_size / (size + 1e-3), size / (target_size + 1e-3))
    missing = 1 - torch.cat([centers, sizes], 1)
    return F.smooth_l1_loss(missing, torch.zeros_like(missing), reduction="none", beta=0.2)


def ciou_loss(boxes: Tensor, targets: Tensor) -> Tensor:
    """Return the complete IoU loss of P boxes (P,); Zheng et al., 2021.

    The term of the aspect ratio counts only for an IoU over 0.5, and the loss is at most 2.
    """
    eps = 1e-7
    iou, (size, target_size) = _iou_and_sizes(boxes, targets, eps)
    enclosing = torch.maximum(boxes[:, 2:], targets[:, 2:])
    enclosing = enclosing - torch.minimum(boxes[:, :2], targets[:, :2])
    distance = (_centers(boxes) - _centers(targets)).square().sum(1)
    distance = distance / (enclosing.square().sum(1) + eps)
    angle, target_angle = (torch.atan(s[:, 0] / (s[:, 1] + eps)) for s in (size, target_size))
    ratio = 4 / math.pi**2 * (target_angle - angle).square()
    with torch.no_grad():
        weight = (iou > 0.5) * ratio / (1 - iou + ratio)
    return 1 - (iou - distance - weight * ratio).clamp(-1, 1)


_LOSSES = {"iou": iou_loss, "bounded_iou": bounded_iou_loss, "ciou": ciou_loss}


def _sizes(boxes: Tensor) -> Tensor:
    return boxes[:, 2:] - boxes[:, :2]


def _centers(boxes: Tensor) -> Tensor:
    return (boxes[:, :2] + boxes[:, 2:]) / 2


def _iou_and_sizes(boxes: Tensor, targets: Tensor, eps: float) -> tuple[Tensor, list[Tensor]]:
    """Return the IoU of each pair (P,), and widths and heights (P, 2) of boxes and targets."""
    inside = torch.minimum(boxes[:, 2:], targets[:, 2:])
    inside = (inside - torch.maximum(boxes[:, :2], targets[:, :2])).clamp(min=0).prod(1)
    sizes = [_sizes(boxes), _sizes(targets)]
    union = sizes[0].prod(1) + sizes[1].prod(1) - inside
    return inside / (union + eps), sizes
