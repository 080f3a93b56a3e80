"""Mask R-CNN models with few channels and proposals, and batches of drawn images for them."""

from typing import Any

import torch
from detectron2.structures import Boxes, Instances, PolygonMasks


def smaller(cfg: Any, classes: int = 3) -> None:
    """Make the heads of a model's config small; the number of layers stays."""
    cfg.proposal_generator.post_nms_topk = (60, 60)
    cfg.roi_heads.num_classes = classes
    cfg.roi_heads.batch_size_per_image = 16
    cfg.roi_heads.box_head.fc_dims = [32, 32]
    cfg.roi_heads.box_predictor.input_shape.channels = 32
    cfg.roi_heads.mask_head.conv_dims = [16] * len(cfg.roi_heads.mask_head.conv_dims)


def batch(n: int, height: int = 64, width: int = 96) -> list[dict]:
    """Return n images of noise, with three objects of two polygons each."""
    generator = torch.Generator().manual_seed(1)
    made = []
    for _ in range(n):
        objects = Instances((height, width))
        boxes = torch.tensor([[10.0, 12, 60, 60], [40, 20, 90, 50], [0, 0, 20, 16]])
        objects.gt_boxes, objects.gt_classes = Boxes(boxes), torch.tensor([0, 2, 1])
        objects.gt_masks = PolygonMasks(
            [
                [[x0, y0, x1, y0, x1, y1], [x0, y1, x0, y1 - 9, x0 + 7, y1]]
                for x0, y0, x1, y1 in boxes.tolist()
            ]
        )
        image = torch.randint(0, 256, (3, height, width), generator=generator, dtype=torch.uint8)
        made.append({"image": image, "instances": objects, "height": height, "width": width})
    return made
