"""The balloon demo as a config whose model notes when the first step begins; for training.py."""

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
