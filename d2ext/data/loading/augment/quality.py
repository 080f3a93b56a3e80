"""Lower the quality of images: Gaussian blur, JPEG compression and noise.

Their strengths follow the corruptions of Hendrycks and Dietterich 2019
(https://arxiv.org/abs/1903.12261). Objects stay where they are.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import detectron2.data.transforms as T
import numpy as np

from d2ext.data.loading.augment.ranges import checked_range


@dataclass(frozen=True)
class Blur:
    """A Gaussian filter; apply it by calling it.

    Attributes:
        sigma: Standard deviation in pixels. The kernel ends after 3 of them; the image is mirrored
            at its border.
    """

    sigma: float

    def __call__(self, image: np.ndarray) -> np.ndarray:
        """Return the filtered image (H, W, C), uint8."""
        side = 2 * math.ceil(3 * self.sigma) + 1
        blurred = cv2.GaussianBlur(image, (side, side), self.sigma, borderType=cv2.BORDER_REFLECT)
        return blurred.reshape(image.shape)


@dataclass(frozen=True)
class Jpeg:
    """A compression to JPEG and back, with half the resolution of colors; apply it by calling it.

    Attributes:
        quality: libjpeg's quality, 1 to 100.
        is_rgb: Whether images are RGB, else BGR or gray.
    """

    quality: int
    is_rgb: bool = False

    def __call__(self, image: np.ndarray) -> np.ndarray:
        """Return the decoded image (H, W, C), uint8, with C = 1 or 3."""
        bgr = image[..., ::-1] if self.is_rgb else image
        _, data = cv2.imencode(
            ".jpg", np.ascontiguousarray(bgr), [cv2.IMWRITE_JPEG_QUALITY, self.quality]
        )
        decoded = np.asarray(cv2.imdecode(data, cv2.IMREAD_UNCHANGED)).reshape(image.shape)
        return decoded[..., ::-1] if self.is_rgb else decoded


@dataclass(frozen=True)
class Noise:
    """Independent Gaussian noise in every pixel and channel; apply it by calling it.

    Attributes:
        std: Standard deviation in levels, which are 0 to 255.
        seed: Seed of the noise.
    """

    std: float
    seed: int

    def __call__(self, image: np.ndarray) -> np.ndarray:
        """Return the noisy image (H, W, C), uint8; levels are rounded and clipped to 0 to 255."""
        noise = np.random.default_rng(self.seed).standard_normal(image.shape, np.float32)
        noise *= np.float32(self.std)
        noise += image
        np.rint(noise, out=noise)
        return np.clip(noise, 0, 255, out=noise).astype(np.uint8)


class RandomBlur(T.Augmentation):
    """Blur every image by a Gaussian filter of random size."""

    def __init__(self, sigma: Sequence[float] = (0.2, 2.0)):
        """Describe the filters.

        Args:
            sigma: Smallest and largest standard deviation in pixels, drawn uniformly; positive.

        Raises:
            ValueError: The range is reversed, or a standard deviation is not positive.
        """
        super().__init__()
        self.sigma = checked_range("sigma", sigma, "positive numbers of pixels", above=0)

    def get_transform(self, image: np.ndarray) -> T.Transform:
        """Return a random transform for an image (H, W, C), uint8."""
        return T.ColorTransform(Blur(np.random.uniform(self.sigma[0], self.sigma[1])))


class RandomJpeg(T.Augmentation):
    """Compress every image as a JPEG of random quality."""

    def __init__(self, quality: Sequence[int] = (40, 95), image_format: str = "BGR"):
        """Describe the compression.

        Args:
            quality: Lowest and highest quality of libjpeg (1 to 100), drawn uniformly.
            image_format: RGB, BGR or L.

        Raises:
            ValueError: The range is reversed, or a quality is outside of 1 to 100.
        """
        super().__init__()
        what = "qualities from 1 to 100"
        self.quality = checked_range("quality", quality, what, least=1, most=100)
        self.image_format = image_format

    def get_transform(self, image: np.ndarray) -> T.Transform:
        """Return a random transform for an image (H, W, C), uint8, with C = 1 or 3."""
        low, high = self.quality
        quality = np.random.randint(low, high + 1)
        return T.ColorTransform(Jpeg(quality, is_rgb=self.image_format == "RGB"))


class RandomNoise(T.Augmentation):
    """Add Gaussian noise of random strength to every image."""

    def __init__(self, std: Sequence[float] = (0.0, 10.0)):
        """Describe the noise.

        Args:
            std: Smallest and largest standard deviation in levels (0 to 255), drawn uniformly.

        Raises:
            ValueError: The range is reversed, or a standard deviation is negative.
        """
        super().__init__()
        self.std = checked_range("std", std, "numbers of levels from 0", least=0)

    def get_transform(self, image: np.ndarray) -> T.Transform:
        """Return a random transform for an image (H, W, C), uint8."""
        std = np.random.uniform(self.std[0], self.std[1])
        return T.ColorTransform(Noise(std, int(np.random.randint(2**31))))
