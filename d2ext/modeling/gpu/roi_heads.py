"""Heads of Mask R-CNN that wait less often for a GPU in training.

Numbers for the log stay on the GPU: they are given to the event storage as tensors, which the
trainer's storage (`gpu.deferred_storage`) reads together with the losses.
"""

import operator

import torch
from detectron2.layers import cat, cross_entropy
from detectron2.modeling.proposal_generator.proposal_utils import add_ground_truth_to_proposals
from detectron2.modeling.roi_heads import (
    FastRCNNOutputLayers,
    MaskRCNNConvUpsampleHead,
    StandardROIHeads,
)
from detectron2.structures import Instances, pairwise_iou
from detectron2.utils.events import get_event_storage
from torch import Tensor
from torch.nn import functional as F

from d2ext.modeling.gpu.deferred_storage import DeferredStorage
from d2ext.modeling.gpu.polygons import IndexedPolygons, copied_to_host, indexed, rasterized


class AsyncROIHeads(StandardROIHeads):
    """Detectron2's heads, whose samples refer to the polygons of their objects."""

    @torch.no_grad()
    def label_and_sample_proposals(
        self, proposals: list[Instances], targets: list[Instances]
    ) -> list[Instances]:
        """Return the sampled proposals of each image with their ground truth; see Detectron2's."""
        if self.proposal_append_gt:
            proposals = add_ground_truth_to_proposals(targets, proposals)
        # Other mask heads may need the masks of each proposal.
        has_async_head = type(getattr(self, "mask_head", None)) is AsyncMaskHead
        take = indexed if has_async_head else operator.getitem
        made = []
        for found, objects in zip(proposals, targets, strict=True):
            iou = pairwise_iou(objects.gt_boxes, found.proposal_boxes)
            matches, labels = self.proposal_matcher(iou)
            sampled, classes = self._sample_proposals(matches, labels, objects.gt_classes)
            found = found[sampled]
            found.gt_classes = classes
            if len(objects):
                matched = matches[sampled]
                for name, value in objects.get_fields().items():
                    if name.startswith("gt_") and not found.has(name):
                        found.set(name, take(value, matched))
            made.append(found)
        classes = torch.cat([found.gt_classes for found in made])
        background = (classes == self.num_classes).sum()
        storage = get_event_storage()
        storage.put_scalar("roi_head/num_fg_samples", (len(classes) - background) / len(made))
        storage.put_scalar("roi_head/num_bg_samples", background / len(made))
        return made


class AsyncBoxPredictor(FastRCNNOutputLayers):
    """Detectron2's classes and boxes, with deferred numbers."""

    def losses(
        self, predictions: tuple[Tensor, Tensor], proposals: list[Instances]
    ) -> dict[str, Tensor]:
        """Return the losses of Detectron2's `FastRCNNOutputLayers`."""
        if self.use_sigmoid_ce or not proposals:
            return super().losses(predictions, proposals)
        scores, deltas = predictions
        classes = cat([p.gt_classes for p in proposals], 0)
        boxes = cat([p.proposal_boxes.tensor for p in proposals], 0)
        # Without objects in an image, its proposals are background and need no target.
        targets = [p.gt_boxes if p.has("gt_boxes") else p.proposal_boxes for p in proposals]
        _log_accuracy(scores, classes)
        losses = {
            "loss_cls": cross_entropy(scores, classes, reduction="mean"),
            "loss_box_reg": self.box_reg_loss(
                boxes, cat([t.tensor for t in targets], 0), deltas, classes
            ),
        }
        return {k: v * self.loss_weight.get(k, 1.0) for k, v in losses.items()}


def _log_accuracy(scores: Tensor, classes: Tensor) -> None:
    if not len(classes):
        return
    predicted, background = scores.argmax(1), scores.shape[1] - 1
    right = predicted == classes
    foreground = (classes >= 0) & (classes < background)
    missed = foreground & (predicted == background)
    count = foreground.sum()
    storage = get_event_storage()
    storage.put_scalar("fast_rcnn/cls_accuracy", right.sum() / len(classes))
    # Without foreground the others are NaN, which a deferring storage drops.
    if isinstance(storage, DeferredStorage) and storage.defers(count) or count:
        storage.put_scalar("fast_rcnn/fg_cls_accuracy", (right & foreground).sum() / count)
        storage.put_scalar("fast_rcnn/false_negative", missed.sum() / count)


class AsyncMaskHead(MaskRCNNConvUpsampleHead):
    """Detectron2's mask head, whose targets are drawn on the host while the GPU runs its layers."""

    def forward(self, x: Tensor, instances: list[Instances]) -> dict[str, Tensor] | list[Instances]:
        """Return the loss in training, otherwise the instances with their masks."""
        chosen = [found for found in instances if len(found)] if self.training else []
        drawn = [isinstance(found.gt_masks, IndexedPolygons) for found in chosen]
        if not chosen or not all(drawn) or self.vis_period > 0:
            return super().forward(x, instances)
        # Wait for the boxes before the layers are launched, not for the layers.
        boxes = [found.proposal_boxes.tensor for found in chosen]
        on_host = copied_to_host([found.gt_masks for found in chosen], boxes)
        logits = self.layers(x)
        targets = rasterized(on_host, logits.shape[2])
        if logits.device.type != "cpu":
            targets = targets.pin_memory().to(logits.device, non_blocking=True)
        if logits.shape[1] == 1:
            logits = logits[:, 0]
        else:
            rows = torch.arange(len(logits), device=logits.device)
            logits = logits[rows, cat([found.gt_classes for found in chosen], 0)]
        _log_mask_accuracy(logits, targets)
        loss = F.binary_cross_entropy_with_logits(logits, targets.float(), reduction="mean")
        return {"loss_mask": loss * self.loss_weight}


def _log_mask_accuracy(logits: Tensor, targets: Tensor) -> None:
    wrong, positive = (logits > 0) != targets, targets.sum()
    negative = targets.numel() - positive
    storage = get_event_storage()
    storage.put_scalar("mask_rcnn/accuracy", 1 - wrong.sum() / targets.numel())
    storage.put_scalar("mask_rcnn/false_positive", (wrong & ~targets).sum() / negative.clamp(min=1))
    storage.put_scalar("mask_rcnn/false_negative", (wrong & targets).sum() / positive.clamp(min=1))
