"""Photos whose objects are painted in their own colors, and a model that sees these colors."""

from collections.abc import Sequence

import numpy as np
import pycocotools.mask
import torch
from detectron2.structures import Boxes, BoxMode, Instances
from PIL import Image
from torch import nn


class ColorModel(nn.Module):
    """A detector without errors: it returns each object of the pixels that it gets.

    Red is the class, counted from 1, and green and blue are the number of the object.

    Args:
        masks: Whether to return masks.
        keypoints: Whether to return two keypoints, the corners of the visible box. Their score is
            1 where the corner is not at the border of the pixels, else 0.1.
    """

    def __init__(self, masks: bool = True, keypoints: bool = False):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        self.masks, self.keypoints = masks, keypoints
        self.largest = 0  # pixels of the largest input so far

    def forward(self, inputs: list[dict]) -> list[dict]:
        self.largest = max([self.largest, *(sample["image"][0].numel() for sample in inputs)])
        return [{"instances": self._instances(sample["image"].numpy())} for sample in inputs]

    def _instances(self, image: np.ndarray) -> Instances:
        red, green, blue = image.astype(int)
        numbers = (green * 256 + blue) * (red > 0)
        found = Instances(image.shape[1:])
        ids = np.unique(numbers[numbers > 0])
        masks = np.array([numbers == i for i in ids], bool).reshape(-1, *image.shape[1:])
        boxes = np.array([box_of(mask) for mask in masks], np.float32).reshape(-1, 4)
        found.pred_boxes = Boxes(torch.from_numpy(boxes))
        found.scores = torch.tensor([1 - i / 2**16 for i in ids.tolist()])
        labels = [int(red[mask].max()) - 1 for mask in masks]
        found.pred_classes = torch.tensor(labels, dtype=torch.int64)
        if self.masks:
            found.pred_masks = torch.from_numpy(masks)
        if self.keypoints:
            size = image.shape[:0:-1]
            points = [[*box[:2], *box[2:]] for box in boxes.tolist()]
            points = np.array(points, np.float32).reshape(-1, 2, 2)
            inner = (points > 0).all(-1) & (points < size).all(-1)
            scores = np.where(inner, 1, 0.1).astype(np.float32)
            found.pred_keypoints = torch.from_numpy(np.dstack([points, scores]))
        return found


def box_of(mask: np.ndarray) -> list[int]:
    """Return x0, y0, x1, y1 of the pixels of a mask (H, W)."""
    ys, xs = np.nonzero(mask)
    return [xs.min(), ys.min(), xs.max() + 1, ys.max() + 1]


def paint(masks: Sequence[np.ndarray], classes: Sequence[int], size: tuple[int, int]) -> np.ndarray:
    """Return an image, uint8 (H, W, 3), with objects that do not overlap.

    Args:
        masks: Their masks, bool (H, W).
        classes: Their classes, counted from 0.
        size: H and W.
    """
    image = np.zeros((*size, 3), np.uint8)
    for i, (mask, label) in enumerate(zip(masks, classes, strict=True), start=1):
        image[mask] = label + 1, i // 256, i % 256
    return image


def encoded(mask: np.ndarray) -> dict:
    """Return the compressed RLE of a mask (H, W)."""
    rle = pycocotools.mask.encode(np.asfortranarray(mask, np.uint8))
    return {"size": rle["size"], "counts": rle["counts"].decode("ascii")}


def record_of(image: np.ndarray, masks: Sequence[np.ndarray], classes: Sequence[int], file) -> dict:
    """Write an image to a PNG file, and return its dataset dict with bitmaps."""
    Image.fromarray(image).save(file)
    return {
        "file_name": str(file),
        "image_id": 1,
        "height": image.shape[0],
        "width": image.shape[1],
        "annotations": [
            {
                "bbox": [float(v) for v in box_of(mask)],
                "bbox_mode": BoxMode.XYXY_ABS,
                "category_id": label,
                "iscrowd": 0,
                "segmentation": encoded(mask),
            }
            for mask, label in zip(masks, classes, strict=True)
        ],
    }
