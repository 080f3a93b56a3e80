"""Measure RoIAlign forward and backward on the CPU: as an embedding bag, and torchvision's.

    python benchmarks/roi_align.py

The finest level of an FPN at 512 x 640 with 600 boxes, pooled to 7 x 7 as for R50-FPN.
"""

import time

import torch
from common import paired, record
from detectron2.layers import ROIAlign

from d2ext.modeling.roi_align import BagROIAlign

ROUNDS = 5


def main() -> None:
    """Record the seconds of forward and backward together."""
    torch.manual_seed(0)
    features = torch.randn(2, 256, 128, 160).contiguous(memory_format=torch.channels_last)
    corners, sides = torch.rand(600, 2) * torch.tensor([512.0, 410.0]), torch.rand(600, 2) * 100
    rois = torch.cat([torch.randint(0, 2, (600, 1)), corners, corners + sides + 10], 1)

    def seconds(layer: torch.nn.Module) -> float:
        input_ = features.clone().requires_grad_()
        start = time.perf_counter()
        layer(input_, rois).sum().backward()
        return time.perf_counter() - start

    ours, theirs = (kind((7, 7), 0.25, 0) for kind in (BagROIAlign, ROIAlign))
    pairs = paired(lambda: seconds(ours), lambda: seconds(theirs), ROUNDS)
    record("roi_align", pairs, "s", on_photos=False)


if __name__ == "__main__":
    main()
