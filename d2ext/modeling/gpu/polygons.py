"""Rasterize the mask targets of a step in one call, and copy their boxes from a GPU once.

Detectron2 copies polygons and boxes of each image three times, and rasterizes mask by mask. The
targets are the same, bit for bit.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pycocotools.mask
import torch
from detectron2.structures import PolygonMasks
from torch import Tensor

Polygons = list[list[np.ndarray]]


class IndexedPolygons:
    """The masks of proposals: polygons of an image's objects, and the object of each proposal.

    Args:
        of_objects: Polygons of each object: vectors x0, y0, x1, y1, ... in pixels.
        objects: Index of each proposal's object (R,), on any device.
    """

    def __init__(self, of_objects: Polygons, objects: Tensor):
        self.of_objects = of_objects
        self.objects = objects

    def __len__(self) -> int:
        return len(self.objects)

    def __getitem__(self, item: Any) -> "IndexedPolygons":
        """Return the masks of some of the proposals."""
        return IndexedPolygons(self.of_objects, self.objects[item])

    def __iter__(self) -> Iterator[list[np.ndarray]]:
        return (self.of_objects[i] for i in self.objects.tolist())

    def to(self, *args: Any, **kwargs: Any) -> "IndexedPolygons":
        """Return itself: polygons stay on the CPU."""
        return self

    def crop_and_resize(self, boxes: Tensor, mask_size: int) -> Tensor:
        """Return masks (R, M, M) of the pixels in boxes (R, 4), like `PolygonMasks`."""
        (on_host,) = copied_to_host([self], [boxes])
        return rasterized([on_host], mask_size).to(boxes.device)


def indexed(masks: Any, objects: Tensor) -> Any:
    """Return the masks of the proposals' objects (R,), without a copy of polygons."""
    if type(masks) is PolygonMasks:
        return IndexedPolygons(masks.polygons, objects)
    return masks[objects]


def copied_to_host(
    masks: Sequence[IndexedPolygons], boxes: Sequence[Tensor]
) -> list[tuple[Polygons, np.ndarray]]:
    """Return the polygons of each proposal, and its boxes (R, 4), in one copy for all images."""
    objects = torch.cat([m.objects for m in masks])
    rows = torch.cat((objects[:, None].double(), torch.cat(list(boxes)).double()), 1).cpu().numpy()
    ends = np.cumsum([len(m) for m in masks])
    return [
        ([m.of_objects[i] for i in rows[:, 0].astype(int)], rows[:, 1:].astype(np.float32))
        for m, rows in zip(masks, np.split(rows, ends[:-1]), strict=True)
    ]


def rasterized(images: Sequence[tuple[Polygons, np.ndarray]], size: int) -> Tensor:
    """Return masks (R, size, size) of the pixels in boxes, as booleans on the CPU.

    Args:
        images: Polygons of each mask and boxes (R, 4), for each image.
        size: Height and width of a mask.
    """
    shifted, counts = [], []
    for polygons, boxes in images:
        for parts, box in zip(polygons, boxes, strict=True):
            # The types matter: Detectron2 computes the ratios in float32.
            width, height = box[2] - box[0], box[3] - box[1]
            ratios = size / max(width, 0.1), size / max(height, 0.1)
            for part in parts:
                shifted.append((part.reshape(-1, 2) - box[:2]) * ratios)
            counts.append(len(parts))
    masks = torch.zeros(len(counts), size, size, dtype=torch.bool)
    if not shifted:
        return masks
    runs = pycocotools.mask.frPyObjects([part.ravel() for part in shifted], size, size)
    drawn = torch.from_numpy(pycocotools.mask.decode(runs)).permute(2, 0, 1).bool()
    if max(counts) == 1 == min(counts):
        return drawn
    for i, mask in zip(np.repeat(np.arange(len(counts)), counts).tolist(), drawn, strict=True):
        masks[i] |= mask
    return masks
