"""Describe a training set by the few numbers that the rules of `data.auto` use.

nnU-Net (https://doi.org/10.1038/s41592-020-01008-z) calls such a description a fingerprint, and
configures its training by rules on it.
"""

import msgspec
import numpy as np

PERCENTS = (1, 2, 5, 25, 50, 75, 95, 98, 99)
_MOST = 200_000  # values from which quantiles are computed; more are thinned out


class Fingerprint(msgspec.Struct, frozen=True, kw_only=True):
    """Sizes and counts of the objects to train on, in the images that have some.

    Quantiles are dicts of percent and value.

    Attributes:
        images: Number of images with objects.
        objects: Number of objects with a box.
        images_of_class: Number of images with each class, in the order of the classes.
        short_side: Quantiles of the images' short side in pixels.
        aspect: Quantiles of the images' long side divided by the short side.
        size: Quantiles of the objects' size, sqrt(width x height), divided by the image's short
            side.
        length: Quantiles of the objects' longer side, divided by the image's short side.
    """

    images: int
    objects: int
    images_of_class: list[int]
    short_side: dict[int, float]
    aspect: dict[int, float]
    size: dict[int, float]
    length: dict[int, float]

    def lines(self) -> list[str]:
        """Return the fingerprint as text."""
        sides, sizes = self.short_side, self.size
        return [
            f"images    {self.images} with objects; short side {_range(sides[5], sides[95])} pixels"
            f" (5 to 95 % of them), long side {self.aspect[50]:.2f} times that",
            f"objects   {self.objects}, {self.objects / self.images:.1f} per image; size"
            f" {percent(sizes[5])}, {percent(sizes[50])} and {percent(sizes[95])} of the short side"
            " (5, 50 and 95 % of them)",
            f"classes   {len(self.images_of_class)}, each in"
            f" {_range(min(self.images_of_class), max(self.images_of_class))} images",
        ]


def _range(low: float, high: float) -> str:
    """Return two whole numbers, or one if they are equal."""
    return f"{low:.0f} to {high:.0f}" if round(low) < round(high) else f"{low:.0f}"


def percent(share: float) -> str:
    """Return a share in percent, with a digit after the point below 10 %."""
    return f"{100 * share:.{0 if share >= 0.0995 else 1}f} %"


def fingerprint(
    widths: np.ndarray,
    heights: np.ndarray,
    images: np.ndarray,
    boxes: np.ndarray,
    categories: np.ndarray,
    num_classes: int,
) -> Fingerprint | None:
    """Return the fingerprint of N images with M objects; None without any object.

    Objects without a box of positive size, or of an unknown class, do not count.

    Args:
        widths: Widths of the images in pixels (N,); not positive if unknown.
        heights: Heights of the images (N,).
        images: Index of each object's image (M,).
        boxes: x0, y0, x1, y1 of each object (M, 4), in pixels.
        categories: Class index of each object (M,).
        num_classes: Number of classes.
    """
    with np.errstate(over="ignore", invalid="ignore"):  # of unchecked files
        wide, high = boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1]
    short = np.minimum(widths, heights)
    valid = (wide > 0) & (high > 0) & (wide < np.inf) & (high < np.inf) & (short > 0)[images]
    valid &= (categories >= 0) & (categories < num_classes)
    rows = np.flatnonzero(valid)
    if not len(rows):
        return None
    owners, labels = images[rows], categories[rows]
    used = np.zeros(len(short), bool)
    used[owners] = True
    thin = rows[:: -(-len(rows) // _MOST)]
    sides = np.stack([wide[thin], high[thin]], axis=1) / short[images[thin], None]
    long = np.maximum(widths, heights)
    return Fingerprint(
        images=int(used.sum()),
        objects=len(rows),
        images_of_class=_images_of_class(owners, labels, num_classes),
        short_side=_quantiles(short[used]),
        aspect=_quantiles(long[used] / short[used]),
        size=_quantiles(np.sqrt(sides).prod(axis=1)),
        length=_quantiles(sides.max(axis=1)),
    )


def _images_of_class(images: np.ndarray, labels: np.ndarray, num_classes: int) -> list[int]:
    """Return the number of images of each class; a pair of image and class counts once."""
    pairs = np.sort(images.astype(np.int64) * num_classes + labels)  # np.unique is slower
    first = np.concatenate([[True], pairs[1:] != pairs[:-1]])
    return np.bincount(pairs[first] % num_classes, minlength=num_classes).tolist()


def _quantiles(values: np.ndarray) -> dict[int, float]:
    thin = values[:: -(-len(values) // _MOST)]
    found = np.percentile(thin, PERCENTS)
    return {percent: round(float(q), 4) for percent, q in zip(PERCENTS, found, strict=True)}
