"""Mask R-CNN on a laptop, trained for longer: EfficientNet-Lite1 FPN with strong augmentation.

    CONFIG=balloon/mask_rcnn_lite1_fpn_strong_balloon.py
    d2ext train "$CONFIG"
    d2ext train "$CONFIG" --eval-only --weights last

The demo's recipe for 80 epochs instead of 33, with the preset `strong`.
Reference: 1 worker x 2 images, AdamW 1e-3, a third of it for the backbone. Results: RESULTS.md.
"""

from .mask_rcnn_lite1_fpn_balloon import (
    data,
    dataloader,
    datasets,
    evaluators,
    lr_multiplier,
    model,
    optimizer,
    train,
)

data.augmentation = "strong"
train.max_epochs = 80
train.eval_period = "40 epochs"
train.checkpointer.period = "40 epochs"
