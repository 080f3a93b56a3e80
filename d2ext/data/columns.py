"""What samplers, filters and checks need of a data set's images, as arrays."""

from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Integral

import numpy as np

NO_MASK, POLYGON, RLE = range(3)
_NO_OBJECT = ("iscrowd", "difficult", "is_group_of")


@dataclass(frozen=True)
class Columns:
    """What samplers, filters and checks need of N images with M objects; see `is_object`.

    Attributes:
        heights: int32 (N,), pixels; -1 where a record has no positive integer.
        widths: the same.
        objects: int32 (N,), objects of each image.
        categories: int32 (M,), `category_id` of each object, image by image; -1 where it is no
            integer.
        masks: int8 (M,), NO_MASK, POLYGON or RLE.
    """

    heights: np.ndarray
    widths: np.ndarray
    objects: np.ndarray
    categories: np.ndarray
    masks: np.ndarray

    NAMES = ("heights", "widths", "objects", "categories", "masks")

    def images(self) -> np.ndarray:
        """int64 (M,), the index of each object's image."""
        return np.repeat(np.arange(len(self.objects)), self.objects)

    def take(self, indices: np.ndarray) -> "Columns":
        """The columns of these images."""
        ends, counts = np.cumsum(self.objects)[indices], self.objects[indices]
        objects = np.repeat(ends - np.cumsum(counts), counts) + np.arange(counts.sum())
        return Columns(
            self.heights[indices],
            self.widths[indices],
            counts,
            self.categories[objects],
            self.masks[objects],
        )

    def relabeled(self, labels: Sequence[int | None]) -> "Columns":
        """The columns with `category_id` c as labels[c]; objects of which it is None are gone."""
        # The last one is for what is no integer, which is -1.
        new = np.array([*(-1 if label is None else label for label in labels), -1], np.int32)
        categories = new[self.categories]
        kept = categories >= 0
        objects = np.bincount(self.images()[kept], minlength=len(self.objects)).astype(np.int32)
        return Columns(self.heights, self.widths, objects, categories[kept], self.masks[kept])

    def category_counts(self, num_classes: int) -> tuple[np.ndarray, np.ndarray]:
        """Objects and images of each class: two int64 arrays (num_classes,)."""
        valid = (self.categories >= 0) & (self.categories < num_classes)
        pairs = np.unique(self.images()[valid] * num_classes + self.categories[valid])
        return (
            np.bincount(self.categories[valid], minlength=num_classes),
            np.bincount(pairs % num_classes, minlength=num_classes),
        )


def list_columns(records: Sequence[dict]) -> Columns:
    """The columns of dataset dicts, each of which is looked at; see `records.columns_of`."""
    sizes = [(_size(r.get("height")), _size(r.get("width"))) for r in records]
    objects = [list(filter(is_object, r.get("annotations", ()))) for r in records]
    every = [a for image in objects for a in image]
    return Columns(
        *np.array(sizes, np.int32).reshape(-1, 2).T,
        np.array([len(image) for image in objects], np.int32),
        np.array([_integer(a.get("category_id")) for a in every], np.int32),
        np.array([mask_kind(a) for a in every], np.int8),
    )


def is_object(annotation: dict) -> bool:
    """Whether it is one to learn from: no crowd, no group, not difficult (or to be ignored)."""
    return not any(map(annotation.get, _NO_OBJECT))


def mask_kind(annotation: dict) -> int:
    """NO_MASK, POLYGON or RLE."""
    masks = annotation.get("segmentation")
    kind = {list: POLYGON, dict: RLE}.get(type(masks), NO_MASK)
    return kind if kind == NO_MASK or masks else NO_MASK


def _size(value: object) -> int:
    number = _integer(value)
    return number if number > 0 else -1


def _integer(value: object) -> int:
    whole = isinstance(value, Integral) and not isinstance(value, bool)
    return int(value) if whole and abs(value) < 2**31 else -1
