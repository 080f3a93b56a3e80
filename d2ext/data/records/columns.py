"""Describe the images of a dataset as arrays, for samplers, filters and checks."""

import functools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from numbers import Integral
from typing import Any

import numpy as np

from d2ext.data.formats.annotation_kinds import count_keypoints, flag_bits, mask_kind

_XYXY, _XYWH = 0, 1  # BoxMode.XYXY_ABS and XYWH_ABS, which would need torch
_NO_BOX = (math.nan,) * 4


@dataclass(frozen=True)
class Columns:
    """Arrays of N images with M annotations, for samplers, filters and checks.

    Attributes:
        heights: `int32` (N,), pixels; -1 if a record has no positive integer.
        widths: `int32` (N,), pixels; -1 if a record has no positive integer.
        annotations: `int32` (N,), number of annotations of each image.
        categories: `int32` (M,), `category_id` of each annotation, ordered by image; -1 if it is
            not an integer.
        masks: `int8` (M,), NO_MASK, POLYGON or RLE.
        flags: `uint8` (M,), CROWD, DIFFICULT and GROUP_OF; 0 for objects to train on (see
            `is_object`).
        keypoints: `int32` (M, 2), number of keypoints of each annotation, and how many of them are
            labeled (visibility above 0).
        boxes: `float64` (M, 4), x0, y0, x1, y1 in pixels, NaN without a box; None unless they were
            asked for.
    """

    heights: np.ndarray
    widths: np.ndarray
    annotations: np.ndarray
    categories: np.ndarray
    masks: np.ndarray
    flags: np.ndarray
    keypoints: np.ndarray
    boxes: np.ndarray | None = None

    NAMES = ("heights", "widths", "annotations", "categories", "masks", "flags", "keypoints")

    @functools.cached_property
    def objects(self) -> np.ndarray:
        """Return the number of objects to train on in each image, int32 (N,)."""
        return self._per_image(self.flags == 0)

    @property
    def labeled_keypoints(self) -> np.ndarray:
        """Return the number of labeled keypoints in each image, int64 (N,)."""
        counts = np.bincount(self.images(), self.keypoints[:, 1], len(self.annotations))
        return counts.astype(np.int64)

    def images(self) -> np.ndarray:
        """Return the index of each annotation's image, int64 (M,)."""
        return np.repeat(np.arange(len(self.annotations)), self.annotations)

    def take(self, indices: np.ndarray) -> "Columns":
        """Return the columns of the images with these indices."""
        ends, counts = np.cumsum(self.annotations)[indices], self.annotations[indices]
        rows = np.repeat(ends - np.cumsum(counts), counts) + np.arange(counts.sum())
        return Columns(
            self.heights[indices],
            self.widths[indices],
            counts,
            self.categories[rows],
            self.masks[rows],
            self.flags[rows],
            self.keypoints[rows],
            None if self.boxes is None else self.boxes[rows],
        )

    def objects_only(self) -> "Columns":
        """Return the columns without annotations that are not trained on."""
        return self._keep(self.flags == 0)

    def relabeled(self, labels: Sequence[int | None]) -> "Columns":
        """Return the columns with `category_id` c as labels[c]; None drops the annotation."""
        # The last element maps category -1, which stands for non-integers, to -1.
        new = np.array([*(-1 if label is None else label for label in labels), -1], np.int32)
        categories = new[self.categories]
        return replace(self, categories=categories)._keep(categories >= 0)

    def category_counts(self, num_classes: int) -> tuple[np.ndarray, np.ndarray]:
        """Count the objects and the images of each class, as two int64 arrays (num_classes,)."""
        objects = self.objects_only()
        valid = (objects.categories >= 0) & (objects.categories < num_classes)
        categories = objects.categories[valid]
        pairs = np.sort(objects.images()[valid] * num_classes + categories)
        # Faster than np.unique, whose hash table is slow for millions of pairs.
        pairs = pairs[np.diff(pairs, prepend=-1) > 0]
        return (
            np.bincount(categories, minlength=num_classes),
            np.bincount(pairs % num_classes, minlength=num_classes),
        )

    def _keep(self, rows: np.ndarray) -> "Columns":
        return replace(
            self,
            annotations=self._per_image(rows),
            categories=self.categories[rows],
            masks=self.masks[rows],
            flags=self.flags[rows],
            keypoints=self.keypoints[rows],
            boxes=None if self.boxes is None else self.boxes[rows],
        )

    def _per_image(self, rows: np.ndarray) -> np.ndarray:
        counts = np.bincount(self.images()[rows], minlength=len(self.annotations))
        return counts.astype(np.int32)


def no_keypoints(annotations: int) -> np.ndarray:
    """Return `Columns.keypoints` for annotations without keypoints; it takes no memory."""
    return np.broadcast_to(np.int32(0), (annotations, 2))


def list_boxes(records: Iterable[dict]) -> np.ndarray:
    """Return `Columns.boxes` of dataset dicts."""
    boxes = [_corners(a) for r in records for a in r.get("annotations", ())]
    return np.array(boxes, np.float64).reshape(-1, 4)


def _corners(annotation: dict) -> Sequence[float]:
    box, mode = annotation.get("bbox"), annotation.get("bbox_mode")
    if box is None or len(box) != 4 or mode not in (_XYXY, _XYWH):
        return _NO_BOX
    x0, y0, x1, y1 = box
    return (x0, y0, x0 + x1, y0 + y1) if mode == _XYWH else (x0, y0, x1, y1)


def list_columns(records: Sequence[dict]) -> Columns:
    """Build the columns from a list of dataset dicts; see `records.columns_of`."""
    sizes = [(_size(r.get("height")), _size(r.get("width"))) for r in records]
    annotations = [r.get("annotations", ()) for r in records]
    every = [a for image in annotations for a in image]
    keypoints = [count_keypoints(a.get("keypoints") or ()) for a in every]
    heights, widths = np.array(sizes, np.int32).reshape(-1, 2).T
    return Columns(
        heights,
        widths,
        np.array([len(image) for image in annotations], np.int32),
        np.array([_integer(a.get("category_id")) for a in every], np.int32),
        np.array([mask_kind(a) for a in every], np.int8),
        np.array([flag_bits(a) for a in every], np.uint8),
        np.array(keypoints, np.int32).reshape(-1, 2),
    )


def _size(value: object) -> int:
    number = _integer(value)
    return number if number > 0 else -1


def _integer(value: Any) -> int:
    whole = isinstance(value, Integral) and not isinstance(value, bool)
    return int(value) if whole and abs(value) < 2**31 else -1
