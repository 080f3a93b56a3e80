"""Levels that an FPN adds to those of its backbone."""

from detectron2.modeling.backbone.fpn import LastLevelP6P7
from torch import Tensor


class LinearP6P7(LastLevelP6P7):
    """P6 and P7 of MMDetection's RetinaNet: two convolutions without the ReLU between them.

    Args:
        in_channels: Channels of the level that P6 is computed from.
        out_channels: Channels of P6 and P7.
        in_feature: Name of the level that P6 is computed from, `res5` or `p5`.
    """

    def forward(self, c5: Tensor) -> list[Tensor]:
        """Return P6 and P7, each with half the height and width of the level before it.

        Args:
            c5: The level that P6 is computed from (N, C, H, W): `in_feature`.
        """
        p6 = self.p6(c5)
        return [p6, self.p7(p6)]
