"""Region proposal network (Ren et al., 2015) whose training follows MMDetection's rules."""

from typing import Any

import torch
from detectron2.modeling.proposal_generator import RPN
from detectron2.structures import Boxes, Instances, pairwise_iou
from torch import Tensor


class ValidAnchorRPN(RPN):
    """Match and sample only the valid anchors of each image, and average losses over the samples.

    Anchors are invalid in the padding of smaller images of a batch, and where they cross the border
    of their image if `anchor_boundary_thresh` is 0 or more. Detectron2's RPN samples the former as
    background, and discards the latter after matching, so that an object may lose its best anchor.
    """

    @torch.no_grad()
    def label_and_sample_anchors(
        self, anchors: list[Boxes], gt_instances: list[Instances]
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Return labels (R,) and boxes (R, 4) for each image's anchors; see Detectron2's RPN."""
        all_anchors = Boxes.cat(anchors)
        all_labels, all_boxes = [], []
        for objects in gt_instances:
            valid = valid_anchors(all_anchors, objects.image_size, self.anchor_boundary_thresh)
            iou = pairwise_iou(objects.gt_boxes, all_anchors[valid])
            matches, labels = self.anchor_matcher(iou)
            all_labels.append(labels.new_full(valid.shape, -1))
            all_labels[-1][valid] = self._subsample_labels(labels)
            all_boxes.append(torch.zeros_like(all_anchors.tensor))
            if len(objects):
                all_boxes[-1][valid] = objects.gt_boxes.tensor[matches]
        return all_labels, all_boxes

    def losses(
        self,
        anchors: list[Boxes],
        pred_objectness_logits: list[Tensor],
        gt_labels: list[Tensor],
        pred_anchor_deltas: list[Tensor],
        gt_boxes: list[Tensor],
    ) -> dict[str, Tensor]:
        """Return the losses, averaged over the sampled anchors; see Detectron2's RPN."""
        found = super().losses(
            anchors, pred_objectness_logits, gt_labels, pred_anchor_deltas, gt_boxes
        )
        wanted = self.batch_size_per_image * len(gt_labels)  # Detectron2 divides by this number
        sampled: Any = sum((labels >= 0).sum() for labels in gt_labels)
        return {name: loss * (wanted / sampled.clamp(min=1)) for name, loss in found.items()}


def valid_anchors(anchors: Boxes, image_size: tuple[int, int], border: float) -> Tensor:
    """Return which anchors are valid in an image.

    Args:
        anchors: R anchors of a batch.
        image_size: Height and width of the image, in pixels.
        border: If 0 or more, anchors may cross the border of the image by so many pixels.

    Returns:
        Booleans (R,).
    """
    # MMDetection pads each image to a multiple of 32 pixels before it pads the batch.
    height, width = (-(-side // 32) * 32 for side in image_size)
    x, y = anchors.get_centers().unbind(1)
    valid = (x < width) & (y < height)
    return valid & anchors.inside_box(image_size, border) if border >= 0 else valid
