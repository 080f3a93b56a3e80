"""Compute average precision for many draws of the images of a test set at once.

The matches of an image do not depend on other images, so they are computed once. A draw that
contains an image k times counts each of its detections and objects k times. As precision rises
along the copies of a hit, only the last copy matters for the highest precision at a recall, so the
copies are never made: cumulative sums of the counts give the curve of each draw.

Copies of a detection are adjacent here. In a dataset that repeats the image, they are adjacent
unless two detections of a class in an image have the same score, whose order is arbitrary anyway.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

_CELLS = 1 << 21


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
            levels: Function of (1, N) numbers of objects found and (R, 1) numbers of all objects
                that returns the (R, N) fractions of the recall levels reached.

        Returns:
            (T, R) fractions; NaN without objects.
        """
        always = self.counted.all(axis=0)
        rest = self.counted & ~always
        before = np.cumsum(always)
        result = np.zeros((len(self.hit), len(draws)))
        for part in parts(draws, len(self.image)):
            objects = np.maximum(counts(draws[part], self.objects), 1)
            reached = levels(np.arange(objects.max() + 1)[None], objects)
            errors_too = running(draws[part], self.image[always])
            for t, hit in enumerate(self.hit):
                at = np.flatnonzero(hit)
                found = running(draws[part], self.image[at])[:, 1:]
                total = errors_too[:, before[at]]
                if rest[t].any():
                    more = np.flatnonzero(rest[t])
                    place = np.searchsorted(more, at, side="right")
                    total = total + running(draws[part], self.image[more])[:, place]
                precision = found / np.maximum(total, 1)
                precision = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
                steps = np.diff(np.take_along_axis(reached, found, axis=1), axis=1, prepend=0)
                result[t, part] = np.einsum("rh,rh->r", precision, steps)
        result[:, counts(draws, self.objects)[:, 0] == 0] = np.nan
        return result

    def recall(self, draws: np.ndarray, limit: int) -> np.ndarray:
        """Return the recall of each draw with up to `limit` detections per image and class.

        Returns:
            (T, R) fractions; NaN without objects.
        """
        rows = np.flatnonzero(self.hit.any(axis=0) & (self.rank < limit))
        found = counts(draws, self.image[rows], self.hit[:, rows].T).T
        objects = counts(draws, self.objects)[:, 0]
        return np.divide(found, objects, out=np.full(found.shape, np.nan), where=objects > 0)


def counts(draws: np.ndarray, image: np.ndarray, kinds: np.ndarray | None = None) -> np.ndarray:
    """Return how many of N things each draw contains.

    Args:
        draws: (R, I) how often each draw contains each image.
        image: (N,) int64, image of each thing.
        kinds: (N, K) bool, whether a thing counts for each of K sums; by default, one sum of all.

    Returns:
        (R, K) float64, whole numbers.
    """
    images, place = np.unique(image, return_inverse=True)
    table = np.zeros((len(images), 1 if kinds is None else kinds.shape[1]))
    np.add.at(table, place, 1 if kinds is None else kinds)
    return draws[:, images].astype(np.float64) @ table


def named_samples(
    task: str, names: Sequence[str], values: np.ndarray, classes: Sequence[str], per_class: bool
) -> dict[str, np.ndarray]:
    """Return the means over the classes, and the values of each class, as `tables.named` does.

    Args:
        task: Name of the task, such as `bbox`.
        names: K names of numbers, such as `AP50`.
        values: (K, C, R) fractions of R draws; NaN if undefined, which the means leave out.
        classes: C class names.
        per_class: Include the values of each class.

    Returns:
        (R,) percent by `<task>/<name>` and `<task>/<name>-<class>`.
    """
    samples = {}
    for name, rows in zip(names, 100 * values, strict=True):
        samples[f"{task}/{name}"] = sampled_mean(rows)
        if per_class:
            samples |= {f"{task}/{name}-{c}": row for c, row in zip(classes, rows, strict=True)}
    return samples


def sampled_mean(rows: np.ndarray) -> np.ndarray:
    """Return the means (R,) of the (K, R) values that are not NaN; NaN where there are none."""
    known = ~np.isnan(rows)
    n = known.sum(axis=0)
    total = np.where(known, rows, 0).sum(axis=0)
    return np.divide(total, n, out=np.full(rows.shape[1], np.nan), where=n > 0)


def running(draws: np.ndarray, image: np.ndarray) -> np.ndarray:
    """Return (R, N + 1) how often the first 0, 1, ..., N detections are in each draw."""
    total = np.zeros((len(draws), len(image) + 1), np.int32)
    np.cumsum(draws[:, image], axis=1, out=total[:, 1:])
    return total


def parts(draws: np.ndarray, detections: int) -> Iterator[slice]:
    """Return slices of the draws, small enough for the memory."""
    rows = max(1, _CELLS // max(1, detections))
    return (slice(first, first + rows) for first in range(0, len(draws), rows))
