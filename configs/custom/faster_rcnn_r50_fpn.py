"""Faster R-CNN R50-FPN on your own photos with boxes, initialized from COCO; needs a GPU.

    CONFIG=custom/faster_rcnn_r50_fpn.py
    DATA=(data.train.json=a.json data.train.images=imgs data.val.json=b.json data.val.images=imgs)
    d2ext train "$CONFIG" "${DATA[@]}"
    d2ext train "$CONFIG" --eval-only --weights best "${DATA[@]}"

Annotations with outlines work as well; only their boxes are used.

Reference: 1 worker x 2 images, SGD 0.0025; everything but masks and weights is the same as in
mask_rcnn_r50_fpn.py.

Training starts from Detectron2's Faster R-CNN R50-FPN 3x (COCO box AP 40.2 in its model zoo).
On a machine without network access, set `train.init_checkpoint=/path/to/model_final_280758.pkl`.
"""

from ..common.models.faster_rcnn_fpn import model
from .mask_rcnn_r50_fpn import (
    data,
    dataloader,
    datasets,
    evaluators,
    lr_multiplier,
    optimizer,
    train,
)

data.recipe = "custom/faster_rcnn_r50_fpn.py"
dataloader.train.mapper.use_instance_mask = False
evaluators.coco.tasks = ["bbox"]
train.best.metric = "coco/bbox/AP"
train.init_checkpoint = (
    "detectron2://COCO-Detection/faster_rcnn_R_50_FPN_3x/137849458/model_final_280758.pkl"
)
