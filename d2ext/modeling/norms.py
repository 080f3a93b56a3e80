"""Normalization layers that Detectron2 lacks."""

from torch import nn


class FixedStatisticsBatchNorm(nn.BatchNorm2d):
    """BatchNorm with trained scale and shift, but the statistics of its checkpoint.

    It is MMDetection's norm with `norm_eval=True`, and can be the `norm` of Detectron2's layers.
    """

    def train(self, mode: bool = True) -> "FixedStatisticsBatchNorm":
        """Stay in evaluation mode, in which the statistics do not change."""
        return super().train(False)
