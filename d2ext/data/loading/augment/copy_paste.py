"""Paste objects of one sample into another one (https://arxiv.org/abs/2012.07177)."""

import numpy as np
import torch
from detectron2.structures import BitMasks, Boxes, Instances, Keypoints, PolygonMasks

from d2ext.errors import UserError

_IGNORED = 255  # label


class CopyPaste:
    """Paste objects of one sample into another one, by their masks.

    This is Simple Copy-Paste of Ghiasi et al. 2021 without blending, which makes no difference
    there. It works on the samples of a mapper, after all its augmentations.

    The smaller of both images lies at a random place in the larger one, in each direction. Each
    object of the source is pasted with a probability of 1/2, if enough of it is inside of the
    image. Crowds are never pasted. Pasted objects hide others: masks and boxes of these are cut
    where they are hidden, visible keypoints there become labeled but not visible, and objects that
    are mostly hidden are dropped. All masks of the result are bitmaps.
    """

    def __init__(self, prob: float = 0.5, min_visible: float = 0.3):
        """Describe what is pasted and kept.

        Args:
            prob: Share of the samples that get objects of another one.
            min_visible: Smallest share of an object's pixels: of a pasted object, those that are
                inside of the image, or of an object of the image, those that are not hidden.

        Raises:
            ValueError: A share is not between 0 and 1.
        """
        for name, value in (("prob", prob), ("min_visible", min_visible)):
            if not 0 <= value <= 1:
                raise ValueError(f"{name}={value}: give a share from 0 to 1")
        self.prob = prob
        self.min_visible = min_visible

    def __call__(self, sample: dict, source: dict) -> dict:
        """Return a sample with objects of another one, which are drawn from numpy's generator.

        Args:
            sample: Sample of a mapper for training, with `image` (C, H, W) and `instances`.
            source: Another one. Neither is modified.

        Returns:
            A sample of the same size. If objects were pasted, `pasted_from` lists the file of the
            source.

        Raises:
            UserError: The samples have no masks.
        """
        height, width = sample["image"].shape[1:]
        free = np.array([height, width]) - source["image"].shape[1:]
        offset = tuple(np.random.randint(np.minimum(free, 0), np.maximum(free, 0) + 1).tolist())
        objects = _objects(source)
        drawn = torch.from_numpy(np.random.random(len(objects)) < 0.5)
        if not drawn.any():
            return sample
        objects = objects[drawn]
        masks = _bitmaps(objects)
        moved = _moved(masks, offset, (height, width), 0)
        before, inside = _areas(masks), _areas(moved)
        kept = self._are_visible(inside, before)
        if not kept.any():
            return sample
        pasted = _shifted(objects, moved, offset, inside != before)[kept]
        hiding = torch.from_numpy(np.logical_or.reduce(moved[kept].numpy()))
        made = {**sample, "pasted_from": [source["file_name"]]}
        pixels = _moved(source["image"], offset, (height, width), 0)
        made["image"] = torch.where(hiding, pixels, sample["image"])
        if "sem_seg" in sample:
            labels = source.get("sem_seg", torch.full(source["image"].shape[1:], _IGNORED))
            labels = _moved(labels, offset, (height, width), _IGNORED)
            made["sem_seg"] = torch.where(hiding, labels, sample["sem_seg"])
        visible = self._visible(sample, hiding)
        made["instances"] = Instances.cat([visible, pasted]) if len(visible) else pasted
        return made

    def _visible(self, sample: dict, hiding: torch.Tensor) -> Instances:
        """Return the objects of a sample, without those that are mostly hidden.

        Args:
            sample: The sample.
            hiding: bool (H, W), the pixels that are hidden.
        """
        objects = _copied(_objects(sample), sample["instances"].image_size)
        if not len(objects):
            return objects
        masks = _bitmaps(objects).clone()
        part = (slice(None), *_extent(hiding))
        overlap = masks[part] & hiding[part[1:]]
        cut = _areas(overlap) > 0
        before = _areas(masks[cut])
        masks[part] &= ~hiding[part[1:]]
        objects.gt_masks = BitMasks(masks)
        boxes = objects.gt_boxes.tensor.clone()
        boxes[cut] = _boxes(masks[cut])
        objects.gt_boxes = Boxes(boxes)
        if objects.has("gt_keypoints"):
            points = objects.gt_keypoints.tensor.clone()
            columns = points[..., 0].long().clamp(0, hiding.shape[1] - 1)
            rows = points[..., 1].long().clamp(0, hiding.shape[0] - 1)
            points[..., 2] = torch.where(hiding[rows, columns], 1, 2).minimum(points[..., 2])
            objects.gt_keypoints = Keypoints(points)
        kept = ~cut
        kept[cut] = self._are_visible(_areas(masks[cut]), before)
        return objects[kept]

    def _are_visible(self, areas: torch.Tensor, before: torch.Tensor) -> torch.Tensor:
        """Return which masks keep enough of their pixels, bool (N,).

        Args:
            areas: Numbers of pixels (N,).
            before: Numbers of pixels of the whole masks (N,).
        """
        return (areas > 0) & (areas / before.clamp(min=1) >= self.min_visible)


def _objects(sample: dict) -> Instances:
    """Return the objects of a sample; raise a UserError if they have no masks."""
    objects: Instances | None = sample.get("instances")
    if objects is None or (len(objects) and not objects.has("gt_masks")):
        raise UserError(
            "copy-paste needs masks; set dataloader.train.copy_paste=null, or train a model with"
            " masks on data with masks"
        )
    return objects


def _bitmaps(objects: Instances) -> torch.Tensor:
    """Return the masks of objects, bool (N, H, W)."""
    masks = objects.gt_masks
    if isinstance(masks, PolygonMasks):
        masks = BitMasks.from_polygon_masks(masks, *objects.image_size)
    return masks.tensor.bool()


def _areas(masks: torch.Tensor) -> torch.Tensor:
    """Return the numbers of pixels (N,) of masks, bool (N, H, W)."""
    # torch's sum takes about 80 times as long for bool.
    return torch.tensor([np.count_nonzero(mask) for mask in masks.numpy()], dtype=torch.int64)


def _extent(mask: torch.Tensor) -> tuple[slice, slice]:
    """Return the rows and columns of the box around a mask (H, W) that is not empty."""
    x0, y0, x1, y1 = _boxes(mask[None])[0].int().tolist()
    return slice(y0, y1), slice(x0, x1)


def _boxes(masks: torch.Tensor) -> torch.Tensor:
    """Return the boxes around masks, float32 (N, 4); zeros for an empty one."""
    return BitMasks(masks).get_bounding_boxes().tensor


def _moved(
    array: torch.Tensor, offset: tuple[int, int], size: tuple[int, int], fill: int
) -> torch.Tensor:
    """Return an image (..., h, w) at a place in a larger or smaller one (..., H, W).

    Args:
        array: The image.
        offset: Row and column of its first pixel in the new image.
        size: H and W.
        fill: Value of all other pixels.
    """
    made = torch.full((*array.shape[:-2], *size), fill, dtype=array.dtype)
    new, old = [], []
    for start, side, length in zip(offset, size, array.shape[-2:], strict=True):
        new.append(slice(max(start, 0), min(start + length, side)))
        old.append(slice(max(-start, 0), min(side - start, length)))
    made[..., new[0], new[1]] = array[..., old[0], old[1]]
    return made


def _copied(objects: Instances, size: tuple[int, int]) -> Instances:
    """Return objects for an image of another size, with the same fields."""
    return Instances(size, **objects.get_fields())


def _shifted(
    objects: Instances, masks: torch.Tensor, offset: tuple[int, int], cut: torch.Tensor
) -> Instances:
    """Return objects at their place in another image.

    Args:
        objects: The objects.
        masks: Their masks there, bool (N, H, W).
        offset: Row and column of the first pixel of the objects' image in the other one.
        cut: bool (N,), the objects that are partly outside; their boxes become those of the masks.
    """
    height, width = masks.shape[1:]
    shift = torch.tensor(offset[::-1])
    made = _copied(objects, (height, width))
    made.gt_masks = BitMasks(masks)
    boxes = objects.gt_boxes.tensor + shift.repeat(2)
    boxes[cut] = _boxes(masks[cut])
    made.gt_boxes = Boxes(boxes)
    made.gt_boxes.clip((height, width))
    if made.has("gt_keypoints"):
        points = objects.gt_keypoints.tensor.clone()
        points[..., :2] += shift
        inside = (points[..., :2] >= 0) & (points[..., :2] <= torch.tensor([width, height]))
        points[~inside.all(dim=-1) | (points[..., 2] == 0)] = 0  # as Detectron2's mapper does
        made.gt_keypoints = Keypoints(points)
    return made
