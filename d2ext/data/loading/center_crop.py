"""CornerNet's random crop, which may reach over the border of the photo."""

import math
from collections.abc import Sequence

import detectron2.data.transforms as T
import numpy as np
from fvcore.transforms.transform import Transform

_TRIES = 50


class CenterCropPad(T.Augmentation):
    """Crop around a random center in the photo, with a random scale, and pad with a color.

    Objects whose center is outside the crop are dropped; at least one is inside, if the photo has
    objects and such a crop is found. As in CornerNet (section 4.1) and MMDetection.
    """

    def __init__(
        self,
        size: int = 511,
        ratios: Sequence[float] = (0.6, 0.7, 0.8, 0.9, 1.0, 1.1, 1.2, 1.3),
        border: int = 128,
        pad_value: Sequence[float] = (0, 0, 0),
    ):
        """Set the parameters.

        Args:
            size: Side of a crop at ratio 1, in pixels.
            ratios: Scales to choose from.
            border: Smallest distance of the center from the photo's border, in pixels; in small
                photos it is halved until it fits.
            pad_value: Color of the padding, in the photo's channel order.
        """
        super().__init__()
        self.size = size
        self.ratios = tuple(ratios)
        self.border = border
        self.pad_value = tuple(pad_value)

    def get_transform(self, image: np.ndarray, boxes: np.ndarray) -> Transform:
        """Return a crop.

        Args:
            image: Array (H, W, C).
            boxes: Boxes of the objects, shape (N, 4), x0 y0 x1 y1 in pixels.
        """
        height, width = image.shape[:2]
        across, down = _border(self.border, width), _border(self.border, height)
        for _ in range(_TRIES):
            side = int(self.size * np.random.choice(self.ratios))
            x = np.random.randint(across, width - across)
            y = np.random.randint(down, height - down)
            crop = CropPadTransform(x - side // 2, y - side // 2, side, side, self.pad_value)
            if not len(boxes) or crop.contains_center(boxes).any():
                break
        return crop


class CropPadTransform(Transform):
    """Crop a rectangle that may reach over the border of the photo."""

    def __init__(self, x0: int, y0: int, width: int, height: int, pad_value: Sequence[float]):
        """Set the rectangle in pixels, and the color outside the photo."""
        super().__init__()
        self.x0, self.y0 = x0, y0
        self.width, self.height = width, height
        self.pad_value = pad_value

    def apply_image(self, img: np.ndarray) -> np.ndarray:
        """Return the crop of an image (H, W, C)."""
        return self._cropped(img, np.rint(self.pad_value).astype(img.dtype))

    def apply_segmentation(self, segmentation: np.ndarray) -> np.ndarray:
        """Return the crop of a label map (H, W), with 255 (no class) outside the photo."""
        return self._cropped(segmentation, np.uint8(255))

    def apply_coords(self, coords: np.ndarray) -> np.ndarray:
        """Shift points (N, 2)."""
        return coords - [self.x0, self.y0]

    def apply_box(self, box: np.ndarray) -> np.ndarray:
        """Shift boxes (N, 4), and make those empty whose center is outside."""
        inside = self.contains_center(box)
        return np.where(inside[:, None], super().apply_box(box), 0.0)

    def contains_center(self, boxes: np.ndarray) -> np.ndarray:
        """Return whether the center of each box is inside the crop."""
        centers = self.apply_coords((boxes[:, :2] + boxes[:, 2:]) / 2)
        return ((centers > 0) & (centers < [self.width, self.height])).all(axis=1)

    def _cropped(self, array: np.ndarray, fill: np.ndarray) -> np.ndarray:
        made = np.empty((self.height, self.width, *array.shape[2:]), array.dtype)
        made[:] = fill
        top, left = max(self.y0, 0), max(self.x0, 0)
        part = array[top : max(self.y0 + self.height, 0), left : max(self.x0 + self.width, 0)]
        y, x = top - self.y0, left - self.x0
        made[y : y + part.shape[0], x : x + part.shape[1]] = part
        return made


def _border(border: int, side: int) -> int:
    """Return the border, halved until less than half of the side is left on each side of it."""
    if 2 * border < side:
        return border
    return border >> math.floor(math.log2(2 * border / side) + 1)
