"""Create cutouts, label images and color splashes from an image and the masks of its objects."""

from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
import pycocotools.mask


def cutout(image: np.ndarray, instance: dict[str, Any]) -> np.ndarray:
    """Cut out an object: uint8 (h, w, 4), RGBA, cropped to its box, transparent outside its mask.

    Args:
        image: Array (H, W, 3), uint8, RGB.
        instance: COCO result; without a `segmentation`, its whole box is opaque.
    """
    box = _box(instance, image)
    alpha = np.full(image.shape[:2], 255, np.uint8)
    if "segmentation" in instance:
        alpha = pycocotools.mask.decode(instance["segmentation"]) * np.uint8(255)
    return np.dstack([image[box], alpha[box]])


def label_image(image: np.ndarray, instances: Sequence[dict[str, Any]]) -> np.ndarray:
    """Draw a label image: uint16 (H, W), 0 for the background and k for the k-th object.

    Where objects overlap, the first one, which has the highest score, takes precedence.

    Args:
        image: Array (H, W, 3), uint8.
        instances: COCO results; those without a `segmentation` fill their box.
    """
    labels = np.zeros(image.shape[:2], np.uint16)
    for k, instance in reversed(list(enumerate(instances, start=1))):
        if "segmentation" in instance:
            labels[pycocotools.mask.decode(instance["segmentation"]).astype(bool)] = k
        else:
            labels[_box(instance, image)] = k
    return labels


def _box(instance: dict[str, Any], image: np.ndarray) -> tuple[slice, slice]:
    """Return the rows and columns of an object's box, at least one of each."""
    height, width = image.shape[:2]
    x, y, w, h = instance["bbox"]
    left, top = max(int(x), 0), max(int(y), 0)
    right, bottom = min(int(np.ceil(x + w)), width), min(int(np.ceil(y + h)), height)
    return slice(top, max(bottom, top + 1)), slice(left, max(right, left + 1))


def color_splash(image: np.ndarray, instances: Sequence[dict[str, Any]]) -> np.ndarray:
    """Convert an image to gray except for its objects: uint8 (H, W, 3), RGB.

    This is the balloon example of Matterport's Mask R-CNN
    (https://engineering.matterport.com/splash-of-color-instance-segmentation-with-mask-r-cnn).

    Args:
        image: Array (H, W, 3), uint8, RGB.
        instances: COCO results; those without a `segmentation` stay gray.
    """
    gray = cv2.cvtColor(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)
    rles = [instance["segmentation"] for instance in instances if "segmentation" in instance]
    if not rles:
        return gray
    colored = pycocotools.mask.decode(pycocotools.mask.merge(rles)).astype(bool)
    return np.where(colored[..., None], image, gray)
