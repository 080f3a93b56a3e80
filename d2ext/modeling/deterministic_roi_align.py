"""RoIAlign whose backward pass is deterministic on a GPU, with bounded memory.

torchvision's deterministic RoIAlign gathers all samples of all channels at once. With
`sampling_ratio=0`, as in Mask R-CNN R50, that is terabytes
(https://github.com/pytorch/vision/issues/8168). The backward pass of embedding_bag sorts its rows
on a GPU, and adds them in the same order each time.
"""

import torch
from detectron2.layers import ROIAlign
from torch import Tensor, nn

from d2ext._compat import set_class
from d2ext.modeling.cpu.roi_align import BagROIAlign


class DeterministicROIAlign(BagROIAlign):
    """Detectron2's ROIAlign with `F.embedding_bag`, in parts if memory requires it."""

    def pool_long(self, input: Tensor, rois: Tensor) -> Tensor:
        """Pool features of boxes in halves; this repeats until each part is short enough."""
        if len(rois) == 1:  # of features with more than 8 million pixels
            return super().pool_long(input, rois)
        middle = len(rois) // 2
        return torch.cat((self(input, rois[:middle]), self(input, rois[middle:])))


def use_deterministic_roi_align(model: nn.Module) -> None:
    """Replace every ROIAlign of a model in place; they have no weights, so keys do not change."""
    for module in model.modules():
        if type(module) is ROIAlign:
            set_class(module, DeterministicROIAlign)
