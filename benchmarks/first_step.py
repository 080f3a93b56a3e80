"""The balloon demo with a model that records the start of the first step; for training.py."""

from first_call import noting

from ..configs.balloon.mask_rcnn_lite0_fpn_balloon import (  # noqa: F401
    data,
    dataloader,
    datasets,
    evaluators,
    lr_multiplier,
    model,
    optimizer,
    train,
)

model["_target_"] = noting
