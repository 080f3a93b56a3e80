"""Turn images by multiples of 90 degrees, without changing any pixel."""

import detectron2.data.transforms as T
import numpy as np


class QuarterTurnTransform(T.Transform):
    """Turn an image counterclockwise by quarters; pixels, boxes and points are moved exactly."""

    def __init__(self, turns: int, height: int, width: int):
        """Describe the turn.

        Args:
            turns: Number of quarters, 0 to 3.
            height: Height of the image before, in pixels.
            width: Width of the image before, in pixels.
        """
        super().__init__()
        self.turns, self.height, self.width = turns, height, width

    def apply_image(self, img: np.ndarray) -> np.ndarray:
        """Return the turned image of an image of shape (H, W, C) or (H, W)."""
        return np.rot90(img, self.turns)

    def apply_segmentation(self, segmentation: np.ndarray) -> np.ndarray:
        """Return the turned label map of a label map of shape (H, W)."""
        return np.rot90(segmentation, self.turns)

    def apply_coords(self, coords: np.ndarray) -> np.ndarray:
        """Return the new places of points of shape (N, 2), x and y."""
        x, y = np.asarray(coords, float).T
        if self.turns == 1:
            x, y = y, self.width - x
        elif self.turns == 2:
            x, y = self.width - x, self.height - y
        elif self.turns == 3:
            x, y = self.height - y, x
        return np.stack([x, y], axis=1)


class RandomQuarterTurn(T.Augmentation):
    """Turn every image by 0, 90, 180 or 270 degrees, equally often.

    With a horizontal RandomFlip, these are all eight positions of a photo from above, among them
    the vertical flip. Width and height change places in half of the images.
    """

    def get_transform(self, image: np.ndarray) -> T.Transform:
        """Return a random transform for an image (H, W, C)."""
        return QuarterTurnTransform(int(np.random.randint(4)), *image.shape[:2])
