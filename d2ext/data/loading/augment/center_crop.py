"""Crop around a random center and pad, as CornerNet trains.

The random scaling and cropping of section 4.1 of https://arxiv.org/abs/1808.01244, which gives no
numbers except for the size of 511 x 511 pixels. Ratios, border and tries are those of MMDetection's
RandomCenterCropPad for training.
"""

from collections.abc import Sequence

import detectron2.data.transforms as T
import numpy as np
from fvcore.transforms.transform import CropTransform

from d2ext.data.loading.augment.boxes import required_boxes

_TRIES = 50  # centers for each ratio
_ROUNDS = 20  # ratios; MMDetection has no limit


class CropPadTransform(CropTransform):
    """Cut out a rectangle that may extend beyond the image; it is filled there.

    Polygons are clipped to the rectangle, as CropTransform does.
    """

    def __init__(
        self,
        x0: int,
        y0: int,
        w: int,
        h: int,
        pad_value: Sequence[float],
        seg_pad_value: int = 255,
    ):
        """Describe the rectangle.

        Args:
            x0: Left column, in pixels of the image; negative left of it.
            y0: Top row; negative above the image.
            w: Width in pixels.
            h: Height in pixels.
            pad_value: Color of each channel outside of the image.
            seg_pad_value: Label outside of a label map. `Mapper` pads the masks of objects with 0.
        """
        super().__init__(x0, y0, w, h)
        self.pad_value = tuple(pad_value)
        self.seg_pad_value = seg_pad_value

    def apply_image(self, img: np.ndarray) -> np.ndarray:
        """Return the rectangle of an image of shape (H, W, C)."""
        fill = np.asarray(self.pad_value)
        return self._cut(img, fill if img.dtype.kind == "f" else np.rint(fill))

    def apply_segmentation(self, segmentation: np.ndarray) -> np.ndarray:
        """Return the rectangle of a label map of shape (H, W)."""
        return self._cut(segmentation, np.asarray(self.seg_pad_value))

    def apply_box(self, box: np.ndarray) -> np.ndarray:
        """Return boxes clipped to the rectangle; those whose center is outside become empty.

        Args:
            box: Shape (N, 4), x0 y0 x1 y1 in pixels of the image.

        Returns:
            Shape (N, 4), in pixels of the rectangle.
        """
        boxes = np.asarray(box, dtype=float).reshape(-1, 4)
        corner, size = [self.x0, self.y0], [self.w, self.h]
        clipped = (boxes - corner * 2).clip(0, size * 2)
        outside = ~_are_inside(_centers(boxes) - corner, size)
        clipped[outside, 2:] = clipped[outside, :2]
        return clipped

    def _cut(self, array: np.ndarray, fill: np.ndarray) -> np.ndarray:
        height, width = array.shape[:2]
        made = np.empty((self.h, self.w, *array.shape[2:]), array.dtype)
        made[...] = fill
        top, bottom = max(self.y0, 0), min(self.y0 + self.h, height)
        left, right = max(self.x0, 0), min(self.x0 + self.w, width)
        if top < bottom and left < right:
            made[top - self.y0 : bottom - self.y0, left - self.x0 : right - self.x0] = array[
                top:bottom, left:right
            ]
        return made


class CenterCropPad(T.Augmentation):
    """Crop around a random center that keeps an object, and fill what lies outside of the image.

    The size of the crop is one of several multiples of `crop_size`, drawn at random. Centers are
    drawn until the center of an object is inside, with another ratio after 50 of them; after 1000,
    the crop is centered on an object. Objects whose center is outside are dropped. An image without
    objects is cropped around the first center.
    """

    def __init__(
        self,
        crop_size: Sequence[int],
        pad_value: Sequence[float],
        ratios: Sequence[float] = (0.6, 0.7, 0.8, 0.9, 1.0, 1.1, 1.2, 1.3),
        border: int = 128,
    ):
        """Describe the crops.

        Args:
            crop_size: Height and width in pixels, which are multiplied by a ratio.
            pad_value: Color of each channel outside of the image, such as the model's pixel_mean.
            ratios: Ratios, one of which is drawn for each image.
            border: Smallest distance of the center from the image's edges in pixels. It is halved
                until it is less than half of the side.
        """
        super().__init__()
        self.crop_size = tuple(crop_size)
        self.ratios = tuple(ratios)
        self.border = border
        self.pad_value = tuple(pad_value)

    def get_transform(self, image: np.ndarray, boxes: np.ndarray | None) -> CropPadTransform:
        """Return a random crop.

        Args:
            image: Shape (H, W, C).
            boxes: Shape (N, 4), x0 y0 x1 y1 in pixels.

        Raises:
            UserError: The mapper passes no boxes, like Detectron2's DatasetMapper.
        """
        boxes = required_boxes(self, boxes)
        sides = np.array(image.shape[1::-1], int)
        borders = np.array([_fitting(self.border, side) for side in sides.tolist()])
        centers = _centers(boxes)
        for _ in range(_ROUNDS):
            ratio = self.ratios[np.random.randint(len(self.ratios))]
            size = np.array([int(side * ratio) for side in self.crop_size[::-1]])
            for _ in range(_TRIES):
                corner = np.random.randint(borders, sides - borders) - size // 2
                if not len(boxes) or _are_inside(centers - corner, size).any():
                    return self._crop(corner, size)
        center = centers[np.random.randint(len(centers))]
        return self._crop(np.floor(center).astype(int) - size // 2, size)

    def _crop(self, corner: np.ndarray, size: np.ndarray) -> CropPadTransform:
        (x0, y0), (width, height) = corner.tolist(), size.tolist()
        return CropPadTransform(x0, y0, width, height, self.pad_value)


def _centers(boxes: np.ndarray) -> np.ndarray:
    return (boxes[:, :2] + boxes[:, 2:]) / 2


def _are_inside(points: np.ndarray, size: Sequence[int] | np.ndarray) -> np.ndarray:
    return np.all((points > 0) & (points < size), axis=1)


def _fitting(border: int, side: int) -> int:
    """Return the border, halved until it is less than half of a side."""
    while 2 * border >= side:
        border //= 2
    return border
