"""A ResNet without an FPN whose input is padded as for one."""

from detectron2.modeling.backbone import ResNet


class PaddedResNet(ResNet):
    """Detectron2's ResNet; images are padded to a multiple of 32 pixels, as in MMDetection.

    Detectron2 pads only to the largest image of a batch for a ResNet without an FPN.
    """

    @property
    def size_divisibility(self) -> int:
        """Return the multiple of height and width."""
        return 32
