"""Rotate and shear images, with objects that stay polygons."""

from collections.abc import Sequence

import cv2
import detectron2.data.transforms as T
import numpy as np

from d2ext.data.loading.augment.ranges import checked_range


class AffineTransform(T.Transform):
    """Move every point by a matrix, and fill what lies outside of the image.

    Pixels are interpolated bilinearly, and masks and label maps take the nearest pixel. Points and
    polygons are exact. Boxes become those around their four moved corners.
    """

    def __init__(
        self,
        matrix: np.ndarray,
        height: int,
        width: int,
        pad_value: Sequence[float],
        seg_pad_value: int = 255,
    ):
        """Describe the new image.

        Args:
            matrix: Shape (2, 3), from points (x, y, 1) of the image to new points, in pixels. The
                center of the first pixel is (0.5, 0.5).
            height: Height of the new image in pixels.
            width: Width of the new image in pixels.
            pad_value: Color of each channel outside of the image.
            seg_pad_value: Label outside of a label map. `Mapper` pads the masks of objects with 0.
        """
        super().__init__()
        self.matrix = np.asarray(matrix, float)
        self.height, self.width = height, width
        self.pad_value = tuple(pad_value)
        self.seg_pad_value = seg_pad_value

    def apply_image(self, img: np.ndarray) -> np.ndarray:
        """Return the new image of an image of shape (H, W, C)."""
        return self._warped(img, cv2.INTER_LINEAR, self.pad_value)

    def apply_segmentation(self, segmentation: np.ndarray) -> np.ndarray:
        """Return the new label map of a label map of shape (H, W), uint8."""
        return self._warped(segmentation, cv2.INTER_NEAREST, [self.seg_pad_value])

    def apply_coords(self, coords: np.ndarray) -> np.ndarray:
        """Return the new places of points of shape (N, 2)."""
        return np.asarray(coords, float) @ self.matrix[:, :2].T + self.matrix[:, 2]

    def _warped(self, array: np.ndarray, method: int, fill: Sequence[float]) -> np.ndarray:
        # OpenCV counts from the center of the first pixel.
        shifted = self.matrix.copy()
        shifted[:, 2] += self.matrix[:, :2].sum(axis=1) / 2 - 0.5
        made = cv2.warpAffine(
            array,
            shifted,
            (self.width, self.height),
            flags=method,
            borderMode=cv2.BORDER_CONSTANT,
            borderValue=np.rint(fill).tolist(),
        )
        return made.reshape(self.height, self.width, *array.shape[2:])


class RandomRotateShear(T.Augmentation):
    """Shear and then rotate every image around its center, each by uniform draws.

    Unlike Detectron2's RandomRotation, this also shears and fills the corners with a color. Boxes
    become those around their moved corners, which are larger than the objects:
    `mapper.recompute_boxes=True` fits them to the masks, if there are any.
    """

    def __init__(
        self,
        angle: Sequence[float] = (-10.0, 10.0),
        shear: Sequence[float] = (-5.0, 5.0),
        expand: bool = True,
        pad_value: Sequence[float] = (128.0, 128.0, 128.0),
    ):
        """Describe the angles.

        Args:
            angle: Smallest and largest rotation in degrees, counterclockwise.
            shear: Smallest and largest shear in degrees, by which the vertical and the horizontal
                edges are inclined; drawn separately for both. Between -45 and 45.
            expand: Whether the image grows such that nothing is lost. Otherwise it keeps its size,
                and polygons are clipped to it.
            pad_value: Color of each channel outside of the image, such as the model's pixel_mean.

        Raises:
            ValueError: A range is reversed, or a shear is not between -45 and 45 degrees.
        """
        super().__init__()
        self.angle = checked_range("angle", angle, "degrees")
        what = "degrees between -45 and 45"
        self.shear = checked_range("shear", shear, what, above=-45, below=45)
        self.expand = expand
        self.pad_value = tuple(pad_value)

    def get_transform(self, image: np.ndarray) -> T.Transform:
        """Return a random transform for an image (H, W, C)."""
        height, width = image.shape[:2]
        angle = np.deg2rad(np.random.uniform(self.angle[0], self.angle[1]))
        across, down = np.tan(np.deg2rad(np.random.uniform(self.shear[0], self.shear[1], 2)))
        cosine, sine = np.cos(angle), np.sin(angle)
        linear = np.array([[cosine, sine], [-sine, cosine]]) @ [[1, across], [down, 1]]
        corners = np.array([[0, 0], [width, 0], [0, height], [width, height]]) @ linear.T
        low, high = corners.min(axis=0), corners.max(axis=0)
        size = np.array([width, height])
        if self.expand:
            size = np.ceil(high - low - 1e-6).astype(int)  # rounding errors do not add a pixel
        matrix = np.column_stack([linear, (size - low - high) / 2])
        new_width, new_height = size.tolist()
        moved = AffineTransform(matrix, new_height, new_width, self.pad_value)
        if self.expand:
            return moved
        # The crop keeps all pixels, but clips polygons.
        return T.TransformList([moved, T.CropTransform(0, 0, width, height)])
