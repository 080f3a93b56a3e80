"""Read the losses that a model returns in training."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from d2ext.errors import UserError


def losses_of(output: Any) -> dict[str, Tensor]:
    """Return a model's losses by name; a single loss is called `total_loss`, as in Detectron2.

    Args:
        output: What the model returns in training: losses by name, or one loss.

    Raises:
        UserError: The model returns something else, or no loss.
    """
    if torch.is_tensor(output):
        return {"total_loss": output}
    if isinstance(output, Mapping) and output:
        return dict(output)
    raise UserError(
        f"the model returns no loss in training (a {type(output).__name__}); return a dict of"
        " losses, or one loss"
    )
