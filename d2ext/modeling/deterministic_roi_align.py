"""RoIAlign whose backward pass is deterministic on a GPU, with bounded memory.

torchvision's deterministic RoIAlign gathers all samples of all channels at once. With
`sampling_ratio=0`, as in Mask R-CNN R50, that is terabytes
(https://github.com/pytorch/vision/issues/8168). The backward pass of embedding_bag sorts its rows
on a GPU, and adds them in the same order each time.
"""

import torch
from torch import Tensor

from d2ext.modeling.roi_align import BagROIAlign


class DeterministicROIAlign(BagROIAlign):
    """Detectron2's ROIAlign with `F.embedding_bag`, in parts if memory requires it."""

    def pool_long(self, input: Tensor, rois: Tensor) -> Tensor:
        """Pool features of boxes in halves; this repeats until each part is short enough."""
        if len(rois) == 1:  # of features with more than 8 million pixels
            return super().pool_long(input, rois)
        middle = len(rois) // 2
        return torch.cat((self(input, rois[:middle]), self(input, rois[middle:])))
