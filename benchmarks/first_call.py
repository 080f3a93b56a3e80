"""A model that records its first call, which is the start of the first training step."""

import os
import time
from pathlib import Path
from typing import Any

from detectron2.modeling import GeneralizedRCNN
from torch import nn

FILE = "D2EXT_FIRST_CALL"  # environment variable: the file for the moment, on the monotonic clock


def noting(**arguments: Any) -> nn.Module:
    """Return a `GeneralizedRCNN` that records its first call."""
    model = GeneralizedRCNN(**arguments)

    def note(*_: Any) -> None:
        Path(os.environ[FILE]).write_text(str(time.monotonic()))
        hook.remove()

    hook = model.register_forward_pre_hook(note)
    return model
