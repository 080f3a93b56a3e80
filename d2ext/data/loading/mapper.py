"""Dataset dicts to samples: Detectron2's DatasetMapper, several times as fast.

Augmentations are Detectron2's, and draw the same numbers; what they do to pixels, boxes and
polygons is done in fewer and quicker steps.
"""

import copy
from collections.abc import Sequence

import cv2
import detectron2.data.transforms as T
import numpy as np
import torch
from detectron2.data import DatasetMapper
from detectron2.data.detection_utils import check_image_size, filter_empty_instances
from detectron2.structures import Boxes, BoxMode, Instances, PolygonMasks
from fvcore.transforms.transform import HFlipTransform, Transform, TransformList
from PIL import Image

from d2ext.data.loading.image_io import cached_photo, read_photo

_DIVISORS = (8, 4, 2)  # that libjpeg decodes at


class Mapper(DatasetMapper):
    """Detectron2's DatasetMapper, with the same samples but for rounding where it resizes.

    Arguments that are not listed here are those of Detectron2's.

    Args:
        is_train: samples hold the objects to learn from.
        augmentations: of Detectron2, in this order.
        image_format: RGB or BGR.
        use_instance_mask: samples hold masks, too.
        decode: `exact`, or `scaled`: a JPEG at least twice as large as the first augmentation, a
            ResizeShortestEdge, makes it is decoded at half its size (or a fourth, an eighth), which
            changes pixels.
        cache: keep decoded images in files ($D2EXT_CACHE/photos, 3 bytes a pixel), which all
            processes read from the same memory.
    """

    def __init__(
        self,
        is_train: bool,
        *,
        augmentations: Sequence[T.Augmentation | Transform],
        image_format: str,
        use_instance_mask: bool = False,
        use_keypoint: bool = False,
        instance_mask_format: str = "polygon",
        keypoint_hflip_indices: np.ndarray | None = None,
        precomputed_proposal_topk: int | None = None,
        recompute_boxes: bool = False,
        decode: str = "exact",
        cache: bool = False,
    ):
        if decode not in ("exact", "scaled"):
            raise ValueError(f"decode={decode!r}: give exact or scaled")
        super().__init__(
            is_train,
            augmentations=list(augmentations),
            image_format=image_format,
            use_instance_mask=use_instance_mask,
            use_keypoint=use_keypoint,
            instance_mask_format=instance_mask_format,
            keypoint_hflip_indices=keypoint_hflip_indices,
            precomputed_proposal_topk=precomputed_proposal_topk,
            recompute_boxes=recompute_boxes,
        )
        self._scaled = decode == "scaled" and not cache and len(self.augmentations.augs) > 0
        self._read = cached_photo if cache else read_photo

    def __call__(self, dataset_dict: dict) -> dict:
        """Return the model's input, as Detectron2's mapper does; keep the dataset dict as it is."""
        if self.proposal_topk is not None or "sem_seg_file_name" in dataset_dict:
            return super().__call__(dataset_dict)
        sample = {key: value for key, value in dataset_dict.items() if key != "annotations"}
        image, transforms = self._image(sample)
        sample["image"] = _planes(image)
        if self.is_train and "annotations" in dataset_dict:
            sample["annotations"] = dataset_dict["annotations"]
            self._transform_annotations(sample, transforms, image.shape[:2])
        return sample

    def _image(self, sample: dict) -> tuple[np.ndarray, TransformList]:
        """Return the augmented image (H, W, C), and what was done to it."""
        augmentations, done = list(self.augmentations.augs), []
        sides = (sample.get("height"), sample.get("width"))
        if self._scaled and None not in sides and type(augmentations[0]) is T.ResizeShortestEdge:
            # The size to make is drawn before there are pixels, from the stated size.
            stand_in = np.broadcast_to(np.uint8(0), (*sides, 3))
            done.append(augmentations.pop(0).get_transform(stand_in))
        divisor = _divisor(done)
        if divisor == 1:
            image = self._read(sample["file_name"], self.image_format)
            check_image_size(sample, image)
        else:
            image = read_photo(sample["file_name"], self.image_format, divisor)
            if image.shape[:2] != tuple(-(-side // divisor) for side in sides):
                check_image_size(sample, image)  # no JPEG, and so read whole; or it is wrong
        augmented = _Input(image)
        for transform in done:
            augmented.transform(transform)
        done += T.AugmentationList(augmentations)(augmented).transforms
        return augmented.image, TransformList(done)

    def _transform_annotations(
        self, dataset_dict: dict, transforms: TransformList, image_shape: tuple[int, int]
    ) -> None:
        """Replace `annotations` by `instances`, all polygons in one go."""
        objects = [a for a in dataset_dict.pop("annotations") if not a.get("iscrowd", 0)]
        masks = [a.get("segmentation") for a in objects] if self.use_instance_mask else []
        polygons = self.instance_mask_format == "polygon" and all(
            isinstance(m, list) for m in masks
        )
        if self.use_keypoint or masks and not polygons:
            dataset_dict["annotations"] = copy.deepcopy(objects)
            super()._transform_annotations(dataset_dict, transforms, image_shape)
            return
        boxes = [BoxMode.convert(a["bbox"], a["bbox_mode"], BoxMode.XYXY_ABS) for a in objects]
        boxes = np.array(boxes, float).reshape(-1, 4)
        height, width = image_shape
        if objects:
            boxes = transforms.apply_box(boxes).clip(0, [width, height, width, height])
        instances = Instances(image_shape)
        instances.gt_boxes = Boxes(boxes)
        classes = [int(a["category_id"]) for a in objects]
        instances.gt_classes = torch.tensor(classes, dtype=torch.int64)
        if masks:
            instances.gt_masks = PolygonMasks(transform_polygons(masks, transforms))
        if self.recompute_boxes:
            instances.gt_boxes = instances.gt_masks.get_bounding_boxes()
        dataset_dict["instances"] = filter_empty_instances(instances)


class _Input(T.AugInput):
    """An image whose usual transforms take torch's and OpenCV's vector instructions."""

    def transform(self, tfm: Transform) -> None:
        image = self.image
        coloured = image.dtype == np.uint8 and image.ndim == 3 and image.shape[2] == 3
        if coloured and type(tfm) is T.ResizeTransform and tfm.interp == Image.BILINEAR:
            self.image = resized(image, tfm.new_h, tfm.new_w)
        elif coloured and type(tfm) is HFlipTransform:
            self.image = _flipped(image)
        else:
            super().transform(tfm)


def resized(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """Bilinear, with a triangle filter as wide as the reduction, as Pillow's `resize`.

    Four times as fast as Pillow, which rounds between its two passes in another way: values differ
    by 2 at most.

    Args:
        image: (H, W, C), uint8.
        height: to make.
        width: to make.
    """
    # Seen as channels_last, which it is in memory, it is not copied. What is made is in planes.
    # Writable, as torch asks: what Pillow has read is not.
    writable = np.require(image, requirements=["C", "W"])
    tensor = torch.from_numpy(writable).permute(2, 0, 1)[None]
    made = torch.nn.functional.interpolate(tensor, (height, width), mode="bilinear", antialias=True)
    return made[0].permute(1, 2, 0).numpy()


def transform_polygons(
    objects: Sequence[Sequence[Sequence[float]]], transforms: TransformList
) -> list[list[np.ndarray]]:
    """Return what `transforms.apply_polygons` makes of each object, in one call where possible.

    Args:
        objects: of each its polygons, [x0, y0, x1, y1, ...].
        transforms: of the image.

    Returns:
        Of each object its polygons, float64.
    """
    parts = [[np.asarray(p, float).reshape(-1, 2) for p in polygons] for polygons in objects]
    for transform in transforms.transforms:
        if type(transform).apply_polygons is Transform.apply_polygons:  # point by point
            points = [points for polygons in parts for points in polygons]
            if not points:
                break
            ends = np.cumsum([len(p) for p in points])[:-1]
            moved = iter(np.split(transform.apply_coords(np.concatenate(points)), ends))
            parts = [[next(moved) for _ in polygons] for polygons in parts]
        else:  # a crop cuts them
            parts = [transform.apply_polygons(polygons) for polygons in parts]
    return [[points.reshape(-1) for points in polygons] for polygons in parts]


def _divisor(resizes: Sequence[Transform]) -> int:
    """By how much a photo's sides can be divided and still be as large as they are to be."""
    for resize in resizes:
        if isinstance(resize, T.ResizeTransform):
            for divisor in _DIVISORS:
                if resize.h >= divisor * resize.new_h and resize.w >= divisor * resize.new_w:
                    return divisor
    return 1


def _flipped(image: np.ndarray) -> np.ndarray:
    """(H, W, 3), left and right exchanged, plane by plane where the memory is so."""
    if image.strides[1] != 1:
        return cv2.flip(image, 1)
    planes = np.empty((3, *image.shape[:2]), np.uint8)
    for i in range(3):
        cv2.flip(image[:, :, i], 1, planes[i])
    return planes.transpose(1, 2, 0)


def _planes(image: np.ndarray) -> torch.Tensor:
    """(H, W, C) to the model's (C, H, W)."""
    planes = image.transpose(2, 0, 1)
    if image.dtype == np.uint8 and image.shape[2] == 3 and image.flags.c_contiguous:
        planes = np.empty((3, *image.shape[:2]), np.uint8)
        for i in range(3):
            cv2.extractChannel(image, i, planes[i])
    return torch.from_numpy(np.ascontiguousarray(planes))
