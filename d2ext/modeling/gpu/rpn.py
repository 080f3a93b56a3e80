"""A region proposal network that waits less often for a GPU in training.

Detectron2's makes coordinates of anchors on the CPU and copies them at each step, samples anchors
after the backbone, and reads the number of sampled anchors for the log. Here anchors are made on
the GPU, and sampled while it has nothing to do yet, which needs sizes and ground truth only.
"""

from typing import Any

import torch
from detectron2.layers import cat
from detectron2.modeling import GeneralizedRCNN
from detectron2.modeling.anchor_generator import DefaultAnchorGenerator
from detectron2.modeling.proposal_generator import RPN
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import get_event_storage
from torch import Tensor
from torch.nn import functional as F

from d2ext._compat import dense_box_regression_loss
from d2ext.modeling.rpn import ValidAnchorRPN


class AsyncAnchorGenerator(DefaultAnchorGenerator):
    """Detectron2's anchors, made on the device of the features."""

    def forward(self, features: list[Tensor]) -> list[Boxes]:
        """Return the anchors of each feature map."""
        return self.on_grids([(x.shape[-2], x.shape[-1]) for x in features])

    def on_grids(self, grids: list[tuple[int, int]]) -> list[Boxes]:
        """Return the anchors of feature maps with these heights and widths."""
        made = []
        # With fewer features than strides, Detectron2 ignores the other strides.
        for grid, stride, cells in zip(grids, self.strides, self.cell_anchors, strict=False):
            first = self.offset * stride
            ticks = [
                torch.arange(first, n * stride, stride, dtype=torch.float32, device=cells.device)
                for n in grid
            ]
            y, x = torch.meshgrid(*ticks, indexing="ij")
            shifts = torch.stack((x, y, x, y), 2).view(-1, 1, 4)
            made.append(Boxes((shifts + cells).view(-1, 4)))
        return made


class EarlyLabelRPN(RPN):
    """An RPN that uses the labels that `label_anchors_early` drew."""

    _early: tuple[list[int], tuple[list[Tensor], list[Tensor]]] | None = None

    def label_and_sample_anchors(
        self, anchors: list[Boxes], gt_instances: list[Instances]
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Return labels (R,) and boxes (R, 4) for each image's anchors; see Detectron2's RPN."""
        early, self._early = self._early, None
        if early is not None and early[0] == [len(boxes) for boxes in anchors]:
            return early[1]
        return super().label_and_sample_anchors(anchors, gt_instances)

    def label_early(self, grids: list[tuple[int, int]], gt_instances: list[Instances]) -> None:
        """Label and sample anchors for the next forward pass, if its features have these sizes."""
        self.forget_early()
        anchors = self.anchor_generator.on_grids(grids)
        labels = self.label_and_sample_anchors(anchors, gt_instances)
        self._early = [len(boxes) for boxes in anchors], labels

    def forget_early(self) -> None:
        """Forget labels that a forward pass has not used, because it failed, for example."""
        self._early = None


class DeferredNumberRPN(RPN):
    """Detectron2's RPN, whose numbers for the log stay on the GPU."""

    def losses(
        self,
        anchors: list[Boxes],
        pred_objectness_logits: list[Tensor],
        gt_labels: list[Tensor],
        pred_anchor_deltas: list[Tensor],
        gt_boxes: list[Tensor],
    ) -> dict[str, Tensor]:
        """Return the losses of Detectron2's RPN."""
        images = len(gt_labels)
        labels = torch.stack(gt_labels)
        # The host waits for a mask at each use, but once for its indices.
        positive = torch.nonzero(labels == 1, as_tuple=True)
        valid = torch.nonzero(labels >= 0, as_tuple=True)
        storage = get_event_storage()
        storage.put_scalar("rpn/num_pos_anchors", len(positive[0]) / images)
        storage.put_scalar("rpn/num_neg_anchors", (len(valid[0]) - len(positive[0])) / images)
        of_boxes = dense_box_regression_loss(
            anchors,
            self.box2box_transform,
            pred_anchor_deltas,
            gt_boxes,
            positive,
            self.box_reg_loss_type,
            self.smooth_l1_beta,
        )
        of_objects = F.binary_cross_entropy_with_logits(
            cat(pred_objectness_logits, 1)[valid], labels[valid].float(), reduction="sum"
        )
        losses = {"loss_rpn_cls": of_objects, "loss_rpn_loc": of_boxes}
        anchors_sampled = self.batch_size_per_image * images
        return {k: v / anchors_sampled * self.loss_weight.get(k, 1.0) for k, v in losses.items()}


class AsyncRPN(EarlyLabelRPN, DeferredNumberRPN):
    """Detectron2's RPN, which waits less often."""


class AsyncValidAnchorRPN(EarlyLabelRPN, ValidAnchorRPN, DeferredNumberRPN):
    """A `ValidAnchorRPN` that waits less often."""


def label_anchors_early(
    model: GeneralizedRCNN, args: tuple[list[dict], ...], kwargs: dict[str, list[dict]]
) -> None:
    """Label and sample anchors before the forward pass of a model in training."""
    backbone: Any = model.backbone
    rpn: Any = model.proposal_generator
    batch = args[0] if args else kwargs["batched_inputs"]
    if not model.training or "instances" not in batch[0]:
        return
    padding = backbone.padding_constraints
    if padding.get("square_size"):
        return
    multiple = max(padding.get("size_divisibility", backbone.size_divisibility), 1)
    sides = [max(sample["image"].shape[axis] for sample in batch) for axis in (-2, -1)]
    height, width = (-(-side // multiple) * multiple for side in sides)
    grids = [(-(-height // s), -(-width // s)) for s in rpn.anchor_generator.strides]
    objects = [sample["instances"] for sample in batch]
    # The model copies the other fields itself.
    boxes = [Instances(o.image_size, gt_boxes=o.gt_boxes.to(model.device)) for o in objects]
    rpn.label_early(grids, boxes)


def forget_early_labels(model: GeneralizedRCNN, *_: Any) -> None:
    """Forget labels that the forward pass of a model has not used."""
    rpn: Any = model.proposal_generator
    rpn.forget_early()
