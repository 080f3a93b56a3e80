"""Normalization layers that Detectron2 lacks."""

from typing import Self

from torch import nn


class FixedStatisticsBatchNorm(nn.BatchNorm2d):
    """BatchNorm that trains scale and shift, but keeps its mean and variance.

    MMDetection's backbones use it (`norm_eval=True` with `requires_grad=True`). Detectron2's
    FrozenBN also fixes scale and shift. For a backbone, set `stages.norm` and `stem.norm` to this
    class.
    """

    def train(self, mode: bool = True) -> Self:
        """Stay in evaluation mode."""
        return super().train(False)
