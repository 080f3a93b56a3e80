"""Random changes of brightness, contrast, saturation, hue and channel order."""

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import detectron2.data.transforms as T
import numpy as np

from d2ext.data.loading.augment.ranges import checked_range


@dataclass(frozen=True)
class Distortion:
    """One change of an image's colors; apply it by calling it.

    Attributes:
        brightness: Summand, in levels.
        contrast: Factor.
        contrast_last: Whether contrast changes after saturation and hue.
        saturation: Factor.
        hue: Summand, in degrees.
        channels: Order of the channels.
        is_rgb: Whether images are RGB, else BGR.
    """

    brightness: float = 0.0
    contrast: float = 1.0
    contrast_last: bool = False
    saturation: float = 1.0
    hue: float = 0.0
    channels: Sequence[int] = (0, 1, 2)
    is_rgb: bool = False

    def __call__(self, image: np.ndarray) -> np.ndarray:
        """Return the changed image; values are clipped to 0 to 255.

        Args:
            image: Array (H, W, 3) or gray (H, W, 1), uint8. Only brightness and contrast change a
                gray image.

        Returns:
            Array of the same shape, uint8.
        """
        is_gray = image.shape[2] == 1
        pixels = image.astype(np.float32) + np.float32(self.brightness)
        if not self.contrast_last:
            pixels *= np.float32(self.contrast)
        to_hsv, back = (
            (cv2.COLOR_RGB2HSV, cv2.COLOR_HSV2RGB)
            if self.is_rgb
            else (cv2.COLOR_BGR2HSV, cv2.COLOR_HSV2BGR)
        )
        if not is_gray and (self.saturation != 1 or self.hue):
            hsv = cv2.cvtColor(pixels, to_hsv)  # degrees, 0 to 1, and levels
            hsv[..., 1] = np.clip(hsv[..., 1] * np.float32(self.saturation), 0, 1)
            hsv[..., 0] = (hsv[..., 0] + np.float32(self.hue)) % 360
            pixels = cv2.cvtColor(hsv, back)
        if self.contrast_last:
            pixels *= np.float32(self.contrast)
        if not is_gray:
            pixels = pixels[..., list(self.channels)]
        return np.clip(np.rint(pixels), 0, 255).astype(np.uint8)


class PhotoMetricDistortion(T.Augmentation):
    """Change colors at random, like the MMDetection transform of this name and SSD's paper.

    Each change is made with a probability of 1/2. Contrast changes before or after saturation and
    hue, equally often.

    Args:
        brightness_delta: Largest change of the levels.
        contrast_range: Smallest and largest factor of the levels.
        saturation_range: Smallest and largest factor of the saturation.
        hue_delta: Largest change of the hue, in degrees.
        image_format: RGB, BGR or L.

    Raises:
        ValueError: A range is reversed, or a factor is negative.
    """

    def __init__(
        self,
        brightness_delta: float = 32,
        contrast_range: Sequence[float] = (0.5, 1.5),
        saturation_range: Sequence[float] = (0.5, 1.5),
        hue_delta: float = 18,
        image_format: str = "BGR",
    ):
        super().__init__()
        self._brightness, self._hue = brightness_delta, hue_delta
        what = "factors from 0"
        self._contrast = checked_range("contrast_range", contrast_range, what, least=0)
        self._saturation = checked_range("saturation_range", saturation_range, what, least=0)
        self._is_rgb = image_format == "RGB"

    def get_transform(self, image: np.ndarray) -> T.Transform:
        """Return a random transform for an image (H, W, 3) or (H, W, 1), uint8."""
        brightness = self._drawn((-self._brightness, self._brightness), 0.0)
        contrast_last = bool(np.random.randint(2))
        distortion = Distortion(
            brightness=brightness,
            contrast=self._drawn(self._contrast, 1.0),
            contrast_last=contrast_last,
            saturation=self._drawn(self._saturation, 1.0),
            hue=self._drawn((-self._hue, self._hue), 0.0),
            channels=tuple(np.random.permutation(3) if np.random.randint(2) else (0, 1, 2)),
            is_rgb=self._is_rgb,
        )
        return T.ColorTransform(distortion)

    def _drawn(self, limits: Sequence[float], neutral: float) -> float:
        """Return a number between the limits, or the neutral one, equally often."""
        return np.random.uniform(limits[0], limits[1]) if np.random.randint(2) else neutral


class ColorJitter(T.Augmentation):
    """Change brightness, contrast, saturation and hue of every image, each by a uniform draw.

    The changes are those of Krizhevsky et al. 2012 and Howard 2013 (https://arxiv.org/abs/1312.5402)
    in the form of torchvision's ColorJitter, in the fixed order brightness and contrast,
    saturation, hue. Contrast keeps the mean level of the image. Channels are never swapped, so
    that colors stay plausible. Saturation and hue are those of HSV.
    """

    def __init__(
        self,
        brightness: float = 32,
        contrast: Sequence[float] = (0.75, 1.25),
        saturation: Sequence[float] = (0.75, 1.25),
        hue: float = 8,
        image_format: str = "BGR",
    ):
        """Describe the ranges.

        Args:
            brightness: Largest change of the levels, which are 0 to 255, in both directions.
            contrast: Smallest and largest factor of the difference to the mean level; positive.
            saturation: Smallest and largest factor of the saturation.
            hue: Largest change of the hue in degrees, in both directions.
            image_format: RGB, BGR or L.

        Raises:
            ValueError: A range is reversed, a factor of the contrast is not positive, or one of the
                saturation is negative.
        """
        super().__init__()
        self.brightness, self.hue = brightness, hue
        self.contrast = checked_range("contrast", contrast, "positive factors", above=0)
        self.saturation = checked_range("saturation", saturation, "factors from 0", least=0)
        self.image_format = image_format

    def get_transform(self, image: np.ndarray) -> T.Transform:
        """Return a random transform for an image (H, W, 3) or (H, W, 1), uint8."""
        added = np.random.uniform(-self.brightness, self.brightness)
        factor = np.random.uniform(self.contrast[0], self.contrast[1])
        distortion = Distortion(
            # (x + brightness) * factor = (x - mean) * factor + mean + added
            brightness=(image.mean() * (1 - factor) + added) / factor,
            contrast=factor,
            saturation=np.random.uniform(self.saturation[0], self.saturation[1]),
            hue=np.random.uniform(-self.hue, self.hue),
            is_rgb=self.image_format == "RGB",
        )
        return T.ColorTransform(distortion)
