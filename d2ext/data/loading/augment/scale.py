"""Large-scale jitter, as Simple Copy-Paste (https://arxiv.org/abs/2012.07177) trains."""

from collections.abc import Sequence

import detectron2.data.transforms as T
import numpy as np

from d2ext.data.loading.augment.ranges import checked_range


class ScaleJitter(T.Augmentation):
    """Resize every image such that it fits into a multiple of a size.

    The multiple is drawn uniformly, and the aspect ratio stays. This is Detectron2's ResizeScale,
    except that no side becomes less than a pixel.
    """

    def __init__(self, size: Sequence[int], scale: Sequence[float] = (0.1, 2.0)):
        """Describe the sizes.

        Args:
            size: Height and width in pixels at a scale of 1.
            scale: Smallest and largest scale; positive.

        Raises:
            ValueError: The range of scales is reversed, or a scale is not positive.
        """
        super().__init__()
        self.size = tuple(size)
        self.scale = checked_range("scale", scale, "positive factors", above=0)

    def get_transform(self, image: np.ndarray) -> T.Transform:
        """Return a random transform for an image (H, W, C)."""
        sides = np.array(image.shape[:2])
        factor = (np.array(self.size) / sides).min() * np.random.uniform(
            self.scale[0], self.scale[1]
        )
        height, width = np.maximum(np.rint(sides * factor), 1).astype(int).tolist()
        return T.ResizeTransform(*sides.tolist(), height, width)


class LargeScaleJitter(T.AugmentationList):
    """Resize every image to a random multiple of a size, and crop it to at most that size.

    This is large-scale jitter of Ghiasi et al. 2021 (Simple Copy-Paste): scales of 0.1 to 2.0, of
    which those above 1 are cropped at a random place. Smaller images are not padded to the size;
    the model pads them to the largest image of the batch. Use `(0.8, 1.25)` for what the paper
    calls standard scale jitter.
    """

    def __init__(self, size: Sequence[int] = (1024, 1024), scale: Sequence[float] = (0.1, 2.0)):
        """Describe the sizes.

        Args:
            size: Height and width in pixels: the crop, and the image at a scale of 1.
            scale: Smallest and largest scale, drawn uniformly; positive.

        Raises:
            ValueError: The range of scales is reversed, or a scale is not positive.
        """
        super().__init__([ScaleJitter(size, scale), T.RandomCrop("absolute", tuple(size))])
