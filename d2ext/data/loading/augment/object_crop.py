"""Crop images such that whole objects stay inside where possible."""

from collections.abc import Sequence

import detectron2.data.transforms as T
import numpy as np

from d2ext.data.loading.augment.boxes import required_boxes


class ObjectCrop(T.Augmentation):
    """Crop every image around a random object, and cut few other objects.

    An object is drawn uniformly, and then several places of the crop, uniformly among those that
    contain the whole object; if it is larger than the crop, among those that it fills. The place
    that cuts the fewest objects is used, the first one if there are several. An image without
    objects is cropped at a random place. Cut objects are clipped, as by Detectron2's RandomCrop.
    SSD (https://arxiv.org/abs/1512.02325) and nnU-Net (https://doi.org/10.1038/s41592-020-01008-z,
    crops that contain foreground) crop around objects for the same reason.
    """

    def __init__(self, size: Sequence[int], tries: int = 10):
        """Describe the crops.

        Args:
            size: Height and width in pixels; a smaller image keeps its side.
            tries: Places to choose from.

        Raises:
            ValueError: There is nothing to choose from.
        """
        super().__init__()
        if tries < 1:
            raise ValueError(f"tries={tries}: give at least 1")
        self.size = tuple(size)
        self.tries = tries

    def get_transform(self, image: np.ndarray, boxes: np.ndarray | None) -> T.Transform:
        """Return a random crop.

        Args:
            image: Shape (H, W, C).
            boxes: Shape (N, 4), x0 y0 x1 y1 in pixels. Parts outside of the image do not count.

        Raises:
            UserError: The mapper passes no boxes, like Detectron2's DatasetMapper.
        """
        boxes = required_boxes(self, boxes)
        sides = np.array(image.shape[1::-1])
        size = np.minimum(self.size[::-1], sides)
        last = sides - size  # corner of the last crop
        boxes = np.clip(boxes, 0, np.tile(sides, 2))
        lows, highs = boxes[:, :2], boxes[:, 2:]
        visible = (lows < highs).all(axis=1)
        lows, highs = lows[visible], highs[visible]
        first = np.zeros(2, int)
        if len(lows):
            drawn = np.random.randint(len(lows))
            ends = np.stack([np.ceil(highs[drawn] - size), np.floor(lows[drawn])])
            first, last = np.clip(np.sort(ends, axis=0), 0, last).astype(int)
        corners = np.random.randint(first, last + 1, (self.tries, 2))
        cut = [_cut(lows - corner, highs - corner, size) for corner in corners]
        (x0, y0), (width, height) = corners[np.argmin(cut)].tolist(), size.tolist()
        return T.CropTransform(x0, y0, width, height)


def _cut(lows: np.ndarray, highs: np.ndarray, size: np.ndarray) -> int:
    """Return how many boxes are partly inside of a crop.

    Args:
        lows: Left upper corners (N, 2), in pixels of the crop.
        highs: Right lower corners (N, 2).
        size: Width and height of the crop.
    """
    touched = ((highs > 0) & (lows < size)).all(axis=1)
    whole = ((lows >= 0) & (highs <= size)).all(axis=1)
    return int((touched & ~whole).sum())
