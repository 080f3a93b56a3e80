"""RoIAlign by `F.embedding_bag`, since outputs are weighted sums of feature rows.

On CPUs, torchvision's RoIAlign processes each channel separately, and its backward pass uses one
thread. Here the channels of a pixel are contiguous, and embedding_bag sums such rows on all
threads, in both passes (benchmarks/roi_align.py). The sums are the same, in another order.
"""

import torch
from detectron2.layers import ROIAlign
from torch import Tensor, nn
from torch.nn import functional as F

from d2ext._compat import set_class

# Corners of samples, each of which takes 13 bytes, and 20 more if its weight is positive.
_MAX_SAMPLES = 2**25


class BagROIAlign(ROIAlign):
    """Detectron2's ROIAlign (He et al., Mask R-CNN, 2017, section 3) with `F.embedding_bag`."""

    def forward(self, input: Tensor, rois: Tensor) -> Tensor:
        """Pool features of boxes.

        Args:
            input: Features (N, C, H, W).
            rois: Boxes (R, 5): image index and x0, y0, x1, y1.

        Returns:
            Pooled features (R, C, h, w).
        """
        n, c, height, width = input.shape
        out_h, out_w = self.output_size
        corners = rois[:, 1:].float() * self.spatial_scale - 0.5 * self.aligned
        start, extent = corners[:, :2], corners[:, 2:] - corners[:, :2]
        if not self.aligned:
            extent = extent.clamp(min=1)
        x, x_weight = _samples(start[:, 0], extent[:, 0], out_w, self.sampling_ratio, width)
        y, y_weight = _samples(start[:, 1], extent[:, 1], out_h, self.sampling_ratio, height)
        if len(rois) * out_h * out_w * x.shape[2] * y.shape[2] > _MAX_SAMPLES:
            return self.pool_long(input, rois)  # one long box gives all boxes as many samples
        first = rois[:, 0].long()[:, None, None] * height
        # For each bin, all pairs of its rows and columns: (R, out_h, out_w, rows, columns).
        pixel = (first + y)[:, :, None, :, None] * width + x[:, None, :, None, :]
        weight = y_weight[:, :, None, :, None] * x_weight[:, None, :, None, :]
        used = weight > 0
        ends = F.pad(used.flatten(3).sum(3).flatten().cumsum(0), (1, 0))
        index = torch.nonzero(used.flatten())[:, 0]  # one index is faster than one for each axis
        # Compute in float32 under autocast, like torchvision.
        rows = input.permute(0, 2, 3, 1).reshape(n * height * width, c).float().contiguous()
        out = F.embedding_bag(
            pixel.flatten()[index],
            rows,
            ends,
            mode="sum",
            per_sample_weights=weight.flatten()[index],
            include_last_offset=True,
        )
        return out.view(len(rois), out_h, out_w, c).permute(0, 3, 1, 2).to(input.dtype)

    def pool_long(self, input: Tensor, rois: Tensor) -> Tensor:
        """Pool features of boxes that have too many samples for one call of `F.embedding_bag`."""
        return super().forward(input, rois)


def _samples(
    start: Tensor, extent: Tensor, bins: int, ratio: int, size: int
) -> tuple[Tensor, Tensor]:
    """Return the two pixels around each sample along one axis, and their weights.

    Args:
        start: Starts of the boxes (R,), in feature pixels with integer centers.
        extent: Lengths of the boxes (R,).
        bins: Number of bins per box.
        ratio: Number of samples per bin; 0 means one for each pixel of its length.
        size: Size of the features.

    Returns:
        Indices and weights, both (R, bins, 2 G), where G is the largest number of samples. Weights
        are 0 for boxes with fewer samples, and outside the features.
    """
    step = extent / bins
    count = torch.full_like(step, ratio) if ratio > 0 else step.ceil()
    sample = torch.arange(int(count.max()) if len(count) else 0, device=step.device)
    bin_ = torch.arange(bins, device=step.device)
    start, step, count = (t[:, None, None] for t in (start, step, count))
    among = count.clamp(min=1)  # empty boxes have no samples, so their output is 0
    at = start + bin_[:, None] * step + (sample + 0.5) * (step / among)
    share = ((sample < count) & (at >= -1) & (at <= size)) / among
    at = at.clamp(0, size - 1)
    low = at.floor()
    part = at - low
    index = torch.stack((low, (low + 1).clamp(max=size - 1)), 3)
    weight = torch.stack(((1 - part) * share, part * share), 3)
    return index.flatten(2).long(), weight.flatten(2)


def use_embedding_bag_roi_align(model: nn.Module, cls: type[BagROIAlign] = BagROIAlign) -> None:
    """Replace every ROIAlign of a model in place; they have no weights, so keys do not change.

    Args:
        model: Model to change.
        cls: Class of the replacements.
    """
    for module in model.modules():
        if type(module) is ROIAlign:
            set_class(module, cls)
