"""Ground truth and detections as columns: what every metric takes. Neither torch nor files here."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class GroundTruth:
    """The N objects of I images, in the order of the images.

    Attributes:
        image_ids: I ids as in the data set, integers or texts.
        file_names: I names, for messages and pages.
        heights: (I,) int64, pixels.
        widths: (I,) int64, pixels.
        classes: C names.
        image: (N,) int64, index into the images.
        label: (N,) int64, index into the classes.
        boxes: (N, 4) float64, [x, y, width, height] in pixels.
        areas: (N,) float64, square pixels.
        crowd: (N,) bool, COCO's iscrowd.
        difficult: (N,) bool, VOC's difficult and COCO's ignore: neither hit nor miss.
        group_of: (N,) bool, Open Images' IsGroupOf.
        segmentations: N COCO segmentations (polygons or RLE; None for an object without one), or
            None where no object has one.
    """

    image_ids: Sequence[Any]
    file_names: Sequence[str]
    heights: np.ndarray
    widths: np.ndarray
    classes: Sequence[str]
    image: np.ndarray
    label: np.ndarray
    boxes: np.ndarray
    areas: np.ndarray
    crowd: np.ndarray
    difficult: np.ndarray
    group_of: np.ndarray
    segmentations: Sequence[Any] | None


@dataclass(frozen=True)
class Detections:
    """M detections in the images of a GroundTruth.

    Attributes:
        image: (M,) int64, index into the images.
        label: (M,) int64, index into the classes.
        boxes: (M, 4) float64, [x, y, width, height] in pixels.
        scores: (M,) float64.
        masks: M compressed RLEs of the image's size, or None for boxes alone.
    """

    image: np.ndarray
    label: np.ndarray
    boxes: np.ndarray
    scores: np.ndarray
    masks: Sequence[dict] | None
