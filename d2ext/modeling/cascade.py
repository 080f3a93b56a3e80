"""Cascade R-CNN (Cai and Vasconcelos, 2018) by MMDetection's rules."""

from collections.abc import Sequence
from typing import Any

import torch
from detectron2.modeling.roi_heads import cascade_rcnn, select_foreground_proposals
from detectron2.structures import Boxes, ImageList, Instances
from detectron2.utils.events import get_event_storage
from torch import Tensor, nn

Losses = dict[str, Tensor]


class CascadeROIHeads(cascade_rcnn.CascadeROIHeads):
    """Box heads, and optionally mask heads, of several stages.

    Each stage matches and samples its proposals again, after the objects were added to them, and
    trains its own mask head. Detectron2's class samples once, for the first stage, has one mask
    head, and divides the gradients of the features by the number of stages instead of weighting
    the losses.
    """

    def __init__(
        self,
        *,
        stage_loss_weights: Sequence[float] = (1, 0.5, 0.25),
        average_logits: bool = True,
        mask_head: Sequence[nn.Module] | nn.Module | None = None,
        **kwargs: Any,
    ) -> None:
        """Build the heads.

        Args:
            stage_loss_weights: Weight of each stage's losses.
            average_logits: Compute scores from the mean of the stages' logits. Otherwise, they are
                the mean of the stages' probabilities, as in Detectron2.
            mask_head: A mask head for each stage, or one that a subclass uses; None for boxes only.
            **kwargs: Arguments of Detectron2's CascadeROIHeads, except for those of keypoints.
        """
        heads = nn.ModuleList(mask_head) if isinstance(mask_head, Sequence) else mask_head
        super().__init__(mask_head=heads, proposal_append_gt=False, **kwargs)
        self.stage_loss_weights = stage_loss_weights
        self.average_logits = average_logits

    def forward(
        self,
        images: ImageList,
        features: dict[str, Tensor],
        proposals: list[Instances],
        targets: list[Instances] | None = None,
    ) -> tuple[list[Instances], Losses]:
        """Return the last stage's samples with losses, or detections, like Detectron2's class."""
        if not self.training:
            return super().forward(images, features, proposals)
        levels = [features[f] for f in self.box_in_features]
        boxes = [p.proposal_boxes for p in proposals]
        losses: Losses = {}
        for stage, weight in enumerate(self.stage_loss_weights):
            self.proposal_matcher = self.proposal_matchers[stage]
            with get_event_storage().name_scope(f"stage{stage}"):
                samples = self.label_and_sample_proposals(_with_objects(boxes, targets), targets)
                predictions = self._run_stage(levels, samples, stage)
                found = self.box_predictor[stage].losses(predictions, samples)
                found |= self._mask_losses(features, samples, stage)
            losses |= {f"{name}_stage{stage}": weight * loss for name, loss in found.items()}
            boxes = self._refine(predictions, samples, stage)
        return samples, losses

    def _refine(self, predictions: Any, samples: list[Instances], stage: int) -> list[Boxes]:
        """Return the proposals for the next stage; objects are not among them."""
        refined = []
        moved = self.box_predictor[stage].predict_boxes(predictions, samples)
        for boxes, sampled in zip(moved, samples, strict=True):
            kept = Boxes(boxes.detach()[~sampled.is_object])
            kept.clip(sampled.image_size)
            refined.append(kept)
        return refined

    def _mask_losses(
        self, features: dict[str, Tensor], samples: list[Instances], stage: int
    ) -> Losses:
        if not self.mask_on:
            return {}
        positive, _ = select_foreground_proposals(samples, self.num_classes)
        pooled = self._pool_masks(features, [x.proposal_boxes for x in positive])
        return self.mask_head[stage](pooled, positive)

    def _forward_box(
        self,
        features: dict[str, Tensor],
        proposals: list[Instances],
        targets: list[Instances] | None = None,
    ) -> list[Instances]:
        """Return detections."""
        levels = [features[f] for f in self.box_in_features]
        sizes = [p.image_size for p in proposals]
        predictions = self._run_stage(levels, proposals, 0)
        logits = [predictions[0]]
        for stage in range(1, self.num_cascade_stages):
            boxes = self.box_predictor[stage - 1].predict_boxes(predictions, proposals)
            proposals = self._create_proposals_from_boxes(boxes, sizes)
            predictions = self._run_stage(levels, proposals, stage)
            logits.append(predictions[0])
        if self.average_logits:
            mean = sum(logits) / len(logits)
        else:
            mean = torch.log(sum(x.softmax(1) for x in logits) / len(logits))
        return self.box_predictor[-1].inference((mean, predictions[1]), proposals)[0]

    def _forward_mask(
        self, features: dict[str, Tensor], instances: list[Instances]
    ) -> list[Instances]:
        """Set the masks of detections: the mean of the stages' probabilities."""
        if not self.mask_on:
            return instances
        pooled = self._pool_masks(features, [x.pred_boxes for x in instances])
        stages = []
        for head in self.mask_head:
            stages.append([x.pred_masks for x in head(pooled, instances)])
        for found, *masks in zip(instances, *stages, strict=True):
            found.pred_masks = sum(masks) / len(masks)
        return instances

    def _pool_masks(self, features: dict[str, Tensor], boxes: list[Boxes]) -> Tensor:
        return self.mask_pooler([features[f] for f in self.mask_in_features], boxes)

    def _run_stage(self, features: list[Tensor], proposals: list[Instances], stage: int) -> Any:
        """Return a stage's logits and deltas; gradients of the features are not scaled."""
        pooled = self.box_pooler(features, [x.proposal_boxes for x in proposals])
        return self.box_predictor[stage](self.box_head[stage](pooled))


def _with_objects(boxes: list[Boxes], targets: list[Instances]) -> list[Instances]:
    """Return objects and boxes as proposals; objects have `is_object`."""
    proposals = []
    for found, target in zip(boxes, targets, strict=True):
        both = Instances(target.image_size)
        both.proposal_boxes = Boxes.cat([target.gt_boxes, found])
        both.is_object = torch.arange(len(both), device=found.device) < len(target)
        proposals.append(both)
    return proposals
