"""The balloon demo as a config, whose model notes when it is first called: the first step begins.

training.py gives it to both sides, and the file for the moment in $D2EXT_FIRST_STEP.
"""

import os
import time
from pathlib import Path
from typing import Any

from detectron2.modeling import GeneralizedRCNN
from torch import nn

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


def noting(**arguments: Any) -> nn.Module:
    """A `GeneralizedRCNN` that writes the moment of its first call, on the monotonic clock."""
    model = GeneralizedRCNN(**arguments)

    def note(*_: Any) -> None:
        Path(os.environ["D2EXT_FIRST_STEP"]).write_text(str(time.monotonic()))
        hook.remove()

    hook = model.register_forward_pre_hook(note)
    return model


model["_target_"] = noting
