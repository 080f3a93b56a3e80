"""Encode predicted masks as run lengths without creating masks of the image's size.

Detectron2 pastes each 28 x 28 mask into an array of the image's size and encodes that. Here the
mask is resized to the pixels around its box, and the runs are counted there: the counts are the
same, but memory and time do not grow with the image.
"""

import numpy as np
import pycocotools.mask
import torch
from torch import Tensor
from torch.nn import functional as F

_THRESHOLD = 0.5  # detector_postprocess's


def encoded_masks(masks: Tensor, boxes: Tensor, height: int, width: int) -> list[dict]:
    """Return the compressed COCO RLEs of the masks that `paste_masks_in_image` creates.

    Args:
        masks: (N, 1, M, M) probabilities.
        boxes: (N, 4) x0, y0, x1, y1 in pixels of the image; not empty.
        height: Height of the image in pixels.
        width: Width of the image in pixels.
    """
    if not len(masks):
        return []
    masks, corners = masks.float(), boxes.float().numpy()
    # A pixel more on each side, for the borders of masks that reach the edge of their box.
    start = np.maximum(np.floor(corners[:, :2]) - 1, 0).astype(int)
    end = np.minimum(np.ceil(corners[:, 2:]) + 1, (width, height)).astype(int)
    counts = []
    for i, ((x0, y0, x1, y1), (left, top), (right, bottom)) in enumerate(
        zip(corners, start, end, strict=True)
    ):
        # Centers of the pixels, relative to the box, from -1 to 1. Tiny operations on arrays are
        # faster in numpy than in torch.
        grid = np.empty((1, bottom - top, right - left, 2), np.float32)
        grid[..., 0] = (np.arange(left, right, dtype=np.float32) + 0.5 - x0) / (x1 - x0) * 2 - 1
        y = (np.arange(top, bottom, dtype=np.float32) + 0.5 - y0) / (y1 - y0) * 2 - 1
        grid[..., 1] = y[:, None]
        resized = F.grid_sample(masks[i : i + 1], torch.from_numpy(grid), align_corners=False)
        counts.append(_counts(resized[0, 0].numpy() >= _THRESHOLD, top, left, height, width))
    encoded = pycocotools.mask.frPyObjects(
        [{"size": [height, width], "counts": c} for c in counts], height, width
    )
    return [{"size": e["size"], "counts": e["counts"].decode("ascii")} for e in encoded]


def _counts(crop: np.ndarray, top: int, left: int, height: int, width: int) -> list[int]:
    """Return the column-wise run lengths of an image that is empty except for a crop."""
    tall, wide = crop.shape
    tall += tall < height  # an empty row, so that runs end at the end of their column
    down = np.zeros(wide * tall + 2, bool)  # so that the first run has a start and the last an end
    down[1:-1].reshape(wide, tall)[:, : len(crop)] = crop.T
    changes = np.flatnonzero(down[1:] != down[:-1])
    starts, lengths = changes[::2], changes[1::2] - changes[::2]
    column, row = np.divmod(starts, tall)
    starts = (left + column) * height + top + row
    ends = starts + lengths
    # Alternating runs of background and mask, background first, without a last run of length 0.
    edges = np.stack((starts, ends), 1).ravel()
    counts = np.diff(edges, prepend=0, append=height * width).tolist()
    return counts if counts[-1] or len(counts) == 1 else counts[:-1]
