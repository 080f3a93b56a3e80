"""RetinaNet (Lin et al., 2017) by MMDetection's rules."""

import torch
from detectron2.layers import batched_nms
from detectron2.modeling.meta_arch import retinanet
from detectron2.structures import Boxes, Instances
from torch import Tensor

from d2ext.modeling.rpn import valid_anchors


class RetinaNet(retinanet.RetinaNet):
    """Detectron2's RetinaNet with other losses, and with boxes that end at the image's border.

    The losses are divided by the number of positive anchors in the batch, not by its moving average
    (which no checkpoint contains), and anchors in the padding of smaller images are ignored. Boxes
    are clipped before non-maximum suppression, not after it.

    Arguments that are not listed here are those of Detectron2's RetinaNet.

    Args:
        input_format: RGB or BGR, the order of the channels.
        vis_period: Number of iterations between two pictures in the event storage; 0 for none.
    """

    def losses(
        self,
        anchors: list[Boxes],
        pred_logits: list[Tensor],
        gt_labels: list[Tensor],
        pred_anchor_deltas: list[Tensor],
        gt_boxes: list[Tensor],
    ) -> dict[str, Tensor]:
        """Return the losses; see Detectron2's RetinaNet."""
        positive = [(labels >= 0) & (labels != self.num_classes) for labels in gt_labels]
        # An image without any counts as one.
        self.normalizer = float(sum(x.sum().clamp(min=1) for x in positive))
        return super().losses(anchors, pred_logits, gt_labels, pred_anchor_deltas, gt_boxes)

    def _ema_update(self, *args: object) -> float:
        """Return the number that Detectron2's class divides the losses by."""
        return self.normalizer

    @torch.no_grad()
    def label_anchors(
        self, anchors: list[Boxes], gt_instances: list[Instances]
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Return the labels (R,) and boxes (R, 4) of each image's anchors; -1 is ignored."""
        all_anchors = Boxes.cat(anchors)
        all_labels, all_boxes = [], []
        for objects in gt_instances:
            valid = valid_anchors(all_anchors, objects.image_size, border=-1)
            labels, boxes = super().label_anchors([all_anchors[valid]], [objects])
            all_labels.append(labels[0].new_full(valid.shape, -1))
            all_labels[-1][valid] = labels[0]
            all_boxes.append(torch.zeros_like(all_anchors.tensor))
            all_boxes[-1][valid] = boxes[0]
        return all_labels, all_boxes

    def inference_single_image(
        self,
        anchors: list[Boxes],
        box_cls: list[Tensor],
        box_delta: list[Tensor],
        image_size: tuple[int, int],
    ) -> Instances:
        """Return the detections of an image; see Detectron2's RetinaNet."""
        found = self._decode_multi_level_predictions(
            anchors,
            box_cls,
            box_delta,
            self.test_score_thresh,
            self.test_topk_candidates,
            image_size,
        )
        found.pred_boxes.clip(image_size)
        found = found[found.pred_boxes.nonempty()]
        kept = batched_nms(
            found.pred_boxes.tensor, found.scores, found.pred_classes, self.test_nms_thresh
        )
        return found[kept[: self.max_detections_per_image]]
