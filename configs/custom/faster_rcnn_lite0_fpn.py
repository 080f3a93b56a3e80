"""Faster R-CNN on your own photos with boxes, on a laptop: EfficientNet-Lite0 FPN, no GPU needed.

    CONFIG=custom/faster_rcnn_lite0_fpn.py
    DATA=(data.train.json=a.json data.train.images=imgs data.val.json=b.json data.val.images=imgs)
    d2ext train "$CONFIG" "${DATA[@]}"
    d2ext train "$CONFIG" --eval-only --weights best "${DATA[@]}"

Annotations with outlines work as well; only their boxes are used.

Reference: 1 worker x 4 images, AdamW 5e-4; everything but the masks is the same as in
mask_rcnn_lite0_fpn.py.
"""

from ..common.models.faster_rcnn_lite0_fpn import model
from .mask_rcnn_lite0_fpn import (
    data,
    dataloader,
    datasets,
    evaluators,
    lr_multiplier,
    optimizer,
    train,
)

data.recipe = "custom/faster_rcnn_lite0_fpn.py"
dataloader.train.mapper.use_instance_mask = False
evaluators.coco.tasks = ["bbox"]
train.best.metric = "coco/bbox/AP"
