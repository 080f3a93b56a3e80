"""Compute average precision for many draws of the images of a test set at once.

The matches of an image do not depend on other images, so they are computed once. A draw that
contains an image k times counts each of its detections and objects k times. As precision rises
along the copies of a hit, only the last copy matters for the highest precision at a recall, so the
copies are never made: cumulative sums of the counts give the curve of each draw.

Copies of a detection are adjacent here. In a dataset that repeats the image, so they are unless two
detections of a class in an image have the same score; the order of these is arbitrary in any case.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

_CELLS = 1 << 21  # draws times detections processed at a time: about 50 MB


@dataclass(frozen=True)
class Matches:
    """D detections of a class, highest score first, compared with its objects at T thresholds.

    Attributes:
        image: (D,) int64, index into the images.
        hit: (T, D) bool, whether the detection found an object.
        counted: (T, D) bool, whether it is a hit or an error; others are ignored.
        objects: (N,) int64, image of each object that must be found.
        rank: (D,) int64, position among the detections of the class in the image, from 0.
    """

    image: np.ndarray
    hit: np.ndarray
    counted: np.ndarray
    objects: np.ndarray
    rank: np.ndarray

    def average_precision(
        self, draws: np.ndarray, levels: Callable[[np.ndarray, np.ndarray], np.ndarray]
    ) -> np.ndarray:
        """Return the AP of each draw, with the highest precision at each recall or any higher one.

        Args:
            draws: (R, I) int32, how often each draw contains each image.
            levels: Function of (R, H) numbers of objects found and (R, 1) numbers of objects that
                returns the (R, H) fractions of the recall levels reached.

        Returns:
            (T, R) fractions; NaN without objects.
        """
        always = self.counted.all(axis=0)
        rest = self.counted & ~always
        before = np.cumsum(always)
        result = np.zeros((len(self.hit), len(draws)))
        for part in _parts(draws, len(self.image)):
            objects = np.maximum(counts(draws[part], self.objects), 1)[:, None]
            errors_too = _running(draws[part], self.image[always])
            for t, hit in enumerate(self.hit):
                at = np.flatnonzero(hit)
                found = _running(draws[part], self.image[at])[:, 1:]
                total = errors_too[:, before[at]]
                if rest[t].any():
                    more = np.flatnonzero(rest[t])
                    place = np.searchsorted(more, at, side="right")
                    total = total + _running(draws[part], self.image[more])[:, place]
                precision = found / np.maximum(total, 1)
                precision = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
                steps = np.diff(levels(found, objects), axis=1, prepend=0)
                result[t, part] = np.einsum("rh,rh->r", precision, steps)
        result[:, counts(draws, self.objects) == 0] = np.nan
        return result

    def recall(self, draws: np.ndarray, limit: int) -> np.ndarray:
        """Return the recall of each draw with up to `limit` detections per image and class.

        Returns:
            (T, R) fractions; NaN without objects.
        """
        near = self.rank < limit
        found = np.array([counts(draws, self.image[hit & near]) for hit in self.hit])
        objects = counts(draws, self.objects)
        return np.divide(found, objects, out=np.full(found.shape, np.nan), where=objects > 0)


def counts(draws: np.ndarray, image: np.ndarray) -> np.ndarray:
    """Return (R,) how many of the N things, of which `image` is the image, each draw contains."""
    images, repeats = np.unique(image, return_counts=True)
    return draws[:, images] @ repeats.astype(draws.dtype)


def sampled_mean(rows: np.ndarray) -> np.ndarray:
    """Return the means (R,) of the (K, R) values that are not NaN; NaN where there are none."""
    known = ~np.isnan(rows)
    n = known.sum(axis=0)
    total = np.where(known, rows, 0).sum(axis=0)
    return np.divide(total, n, out=np.full(rows.shape[1], np.nan), where=n > 0)


def _running(draws: np.ndarray, image: np.ndarray) -> np.ndarray:
    """Return (R, N + 1) how often the first 0, 1, ..., N detections are in each draw."""
    total = np.zeros((len(draws), len(image) + 1), np.int32)
    np.cumsum(draws[:, image], axis=1, out=total[:, 1:])
    return total


def _parts(draws: np.ndarray, detections: int) -> Iterator[slice]:
    """Return slices of the draws, small enough for the memory."""
    rows = max(1, _CELLS // max(1, detections))
    return (slice(first, first + rows) for first in range(0, len(draws), rows))
