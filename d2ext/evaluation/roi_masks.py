"""Encode predicted masks as run lengths without creating masks of the image's size.

Detectron2 pastes each 28 x 28 mask into an array of the image's size and encodes that. Here the
mask is pasted into the pixels around its box, and the runs are counted there: the counts are the
same, but memory and time do not grow with the image.
"""

import numpy as np
import pycocotools.mask
from torch import Tensor

from d2ext._compat import paste_mask

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
    counts = []
    for i in range(len(masks)):
        pasted, (rows, columns) = paste_mask(masks[i : i + 1], boxes[i : i + 1], height, width)
        counts.append(_counts((pasted[0] >= _THRESHOLD).numpy(), rows, columns, height, width))
    encoded = pycocotools.mask.frPyObjects(
        [{"size": [height, width], "counts": c} for c in counts], height, width
    )
    return [{"size": e["size"], "counts": e["counts"].decode("ascii")} for e in encoded]


def _counts(crop: np.ndarray, rows: slice, columns: slice, height: int, width: int) -> list[int]:
    """Return the column-wise run lengths of an image that is empty except for a crop."""
    top, left, tall = int(rows.start), int(columns.start), len(crop)
    if tall < height:  # an empty row, so that runs end at the end of their column
        crop = np.pad(crop, ((0, 1), (0, 0)))
    down = np.pad(crop.T.ravel(), 1)  # so that the first run has a start and the last one an end
    changes = np.flatnonzero(down[1:] != down[:-1])
    starts, lengths = changes[::2], changes[1::2] - changes[::2]
    column, row = np.divmod(starts, len(crop))
    starts = (left + column) * height + top + row
    ends = starts + lengths
    # Alternating runs of background and mask, background first, without a last run of length 0.
    edges = np.stack((starts, ends), 1).ravel()
    counts = np.diff(edges, prepend=0, append=height * width).tolist()
    return counts if counts[-1] or len(counts) == 1 else counts[:-1]
