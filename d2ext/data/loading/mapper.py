"""Map dataset dicts to samples like Detectron2's DatasetMapper, but several times as fast.

The augmentations are Detectron2's and draw the same random numbers, but they are applied to pixels,
boxes and polygons in fewer, faster steps.
"""

import copy
from collections.abc import Sequence
from typing import Any

import cv2
import detectron2.data.transforms as T
import numpy as np
import pycocotools.mask
import torch
from detectron2.data import DatasetMapper
from detectron2.data.detection_utils import (
    annotations_to_instances,
    check_image_size,
    filter_empty_instances,
    transform_instance_annotations,
    transform_proposals,
)
from detectron2.structures import Boxes, BoxMode, Instances, PolygonMasks
from detectron2.structures.masks import polygons_to_bitmask
from fvcore.transforms.transform import HFlipTransform, Transform, TransformList
from PIL import Image

from d2ext.data.loading.image_io import cached_photo, read_photo
from d2ext.errors import UserError
from d2ext.limits import exhausted

_DIVISORS = (8, 4, 2)  # scales that libjpeg can decode at


class Mapper(DatasetMapper):
    """Detectron2's DatasetMapper with the same samples, up to rounding of resized pixels.

    In training, images are resized by torch; otherwise by Pillow, as in Detectron2, `d2ext predict`
    and exported models. Label maps are read in training only. Bitmap masks are padded with 0, also
    by transforms that pad label maps with another label. Polygons become bitmaps if a transform may
    bend their edges.

    Arguments that are not listed here are those of Detectron2's DatasetMapper.

    Args:
        is_train: Whether samples contain the objects to train on.
        augmentations: Detectron2's augmentations, in order.
        image_format: RGB or BGR.
        use_instance_mask: Whether samples contain masks.
        use_keypoint: Whether samples contain keypoints.
        keypoint_hflip_indices: As in Detectron2; `flip_indices` returns it. If it is given, objects
            without keypoints get as many unlabeled ones, which have no effect on the loss.
        decode: `exact`, or `scaled`: if the first augmentation is a ResizeShortestEdge that at
            least halves a JPEG, the file is decoded at half its size (or a fourth or an eighth).
            This is faster but changes pixels.
        cache: Whether to keep decoded images in files ($D2EXT_CACHE/photos, 3 bytes per pixel),
            whose memory all processes share. Only the pixels of a tile are read then.

    Attributes:
        resizes_by_torch: Whether images are resized by torch, as in training, or by Pillow.
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
        self.resizes_by_torch = is_train
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
        self._last: tuple[str, np.ndarray] | None = None  # photo of the last tile

    def __call__(self, dataset_dict: dict) -> dict:
        """Return the model's input for a dataset dict, which is not modified.

        Of a dataset dict with `tile` (see `d2ext.data.tiles.records.Tiles`), only these pixels are
        augmented and returned.
        """
        sample = {key: value for key, value in dataset_dict.items() if key != "annotations"}
        objects = _not_crowds(dataset_dict.get("annotations", ()))
        augmented, transforms = self._augmented(sample, objects)
        image = augmented.image
        sample["image"] = _planes(image)
        if augmented.sem_seg is not None:
            sample["sem_seg"] = torch.from_numpy(augmented.sem_seg.astype(np.int64))
        if self.proposal_topk is not None:
            size = image.shape[:2]
            transform_proposals(sample, size, transforms, proposal_topk=self.proposal_topk)
        if self.is_train and "annotations" in dataset_dict:
            sample["annotations"] = objects
            self._set_instances(sample, transforms, image.shape[:2])
        return sample

    def _augmented(self, sample: dict, objects: Sequence[dict]) -> tuple["_Input", TransformList]:
        """Return the augmented image and label map, and the transforms that were applied."""
        labels = sample.pop("sem_seg_file_name", None)
        augmentations, done = list(self.augmentations.augs), []
        sides: tuple[Any, Any] = (sample.get("height"), sample.get("width"))
        if self._scaled and None not in sides and type(augmentations[0]) is T.ResizeShortestEdge:
            # Draw the target size from the stated size, before the image is decoded.
            stand_in = np.broadcast_to(np.uint8(0), (*sides, 3))
            done.append(augmentations.pop(0).get_transform(stand_in))
        divisor = _divisor(done)
        if "tile" in sample:
            image = self._read_tile(sample)
        elif divisor == 1:
            image = self._read(sample["file_name"], self.image_format)
            check_image_size(sample, image)
        else:
            image = read_photo(sample["file_name"], self.image_format, divisor)
            if image.shape[:2] != tuple(-(-side // divisor) for side in sides):
                check_image_size(sample, image)  # not a JPEG, so read at full size; or wrong size
        label_map = None
        if labels and self.is_train:
            size = tuple(sample.get("photo_size", sides))
            label_map = _read_labels(labels, sample["file_name"], size)
            if "tile" in sample:
                label_map = cropped(label_map, sample["tile"])
        augmented = _Input(image, label_map, objects, by_torch=self.resizes_by_torch)
        for transform in done:
            augmented.transform(transform)
        done += T.AugmentationList(augmentations)(augmented).transforms
        return augmented, TransformList(done)

    def _read_tile(self, sample: dict) -> np.ndarray:
        """Return the pixels of a tile; keep its photo, because the next tile is often of the same.

        Raises:
            SizeMismatchError: The photo does not have its stated size.
        """
        file = sample["file_name"]
        if self._last is None or self._last[0] != file:
            self._last = None  # release the photo before another one is read
            self._last = file, self._read(file, self.image_format)
        photo = self._last[1]
        height, width = sample["photo_size"]
        check_image_size({"file_name": file, "height": height, "width": width}, photo)
        return cropped(photo, sample["tile"])

    def _set_instances(
        self, dataset_dict: dict, transforms: TransformList, image_shape: tuple[int, int]
    ) -> None:
        """Replace `annotations` by `instances`; transform all polygons at once."""
        objects = dataset_dict.pop("annotations")
        masks = [a.get("segmentation") for a in objects] if self.use_instance_mask else []
        polygons = self.instance_mask_format == "polygon" and all(
            isinstance(m, list) for m in masks
        )
        polygons = polygons and not _need_bitmaps(transforms)
        if self.use_keypoint and self.keypoint_hflip_indices is not None:
            unlabeled = [0] * (3 * len(self.keypoint_hflip_indices))
            objects = [{**a, "keypoints": a.get("keypoints") or unlabeled} for a in objects]
        if self.use_keypoint or masks and not polygons:
            instances = self._one_by_one(objects, transforms, image_shape)
        else:
            boxes = _boxes(objects)
            height, width = image_shape
            if objects:
                boxes = transforms.apply_box(boxes).clip(0, [width, height, width, height])
            instances = Instances(image_shape)
            instances.gt_boxes = Boxes(boxes)
            classes = [int(a["category_id"]) for a in objects]
            instances.gt_classes = torch.tensor(classes, dtype=torch.int64)
            if masks:
                instances.gt_masks = PolygonMasks(transform_polygons(masks, transforms))
        if self.recompute_boxes and instances.has("gt_masks"):
            # A transform may have dropped objects, of which a part of the mask is still inside.
            instances = filter_empty_instances(instances, by_mask=False)
            instances.gt_boxes = instances.gt_masks.get_bounding_boxes()
        dataset_dict["instances"] = filter_empty_instances(instances)

    def _one_by_one(
        self, objects: Sequence[dict], transforms: TransformList, image_shape: tuple[int, int]
    ) -> Instances:
        """Return the transformed objects by Detectron2's functions, with bitmaps or keypoints."""
        draws = self.use_instance_mask and _need_bitmaps(transforms)
        unread = {
            "segmentation": draws or not self.use_instance_mask,
            "keypoints": not self.use_keypoint,
        }
        padding_masks = TransformList([_padding_with_zeros(t) for t in transforms.transforms])
        annotations = [
            transform_instance_annotations(
                {key: copy.deepcopy(a[key]) for key in a if not unread.get(key)}
                | {"bbox": [float(side) for side in a["bbox"]]},  # integers would be truncated
                padding_masks,
                image_shape,
                keypoint_hflip_indices=self.keypoint_hflip_indices,
            )
            for a in objects
        ]
        if self.keypoint_hflip_indices is not None and _pipelines_mirror(transforms):
            order = np.asarray(self.keypoint_hflip_indices, int)
            annotations = [
                {**a, "keypoints": a["keypoints"][order]} if "keypoints" in a else a
                for a in annotations
            ]
        if draws:
            annotations = [
                {**made, "segmentation": _drawn(a["segmentation"], padding_masks)}
                for made, a in zip(annotations, objects, strict=True)
            ]
        mask_format = "bitmask" if draws else self.instance_mask_format
        return annotations_to_instances(annotations, image_shape, mask_format)


class _Input(T.AugInput):
    """An image whose most common transforms are done by torch and OpenCV with SIMD instructions."""

    def __init__(
        self,
        image: np.ndarray,
        sem_seg: np.ndarray | None,
        objects: Sequence[dict],
        by_torch: bool,
    ):
        self.image = image
        self.sem_seg = sem_seg
        self._by_torch = by_torch
        self._objects = objects
        self._done: list[Transform] = []

    @property
    def boxes(self) -> np.ndarray:
        """Boxes of the objects in the image as it is now; most augmentations do not ask for them.

        Shape (N, 4), x0 y0 x1 y1 in pixels.
        """
        boxes = _boxes(self._objects)
        return TransformList(self._done).apply_box(boxes) if self._objects else boxes

    def transform(self, tfm: Transform) -> None:
        self._done.append(tfm)
        image = self.image
        is_color = image.dtype == np.uint8 and image.ndim == 3 and image.shape[2] == 3
        is_bilinear = type(tfm) is T.ResizeTransform and tfm.interp == Image.Resampling.BILINEAR
        if is_color and is_bilinear and self._by_torch:
            self.image = resized(image, tfm.new_h, tfm.new_w)
        elif is_color and type(tfm) is HFlipTransform:
            self.image = _flipped(image)
        else:
            self.image = tfm.apply_image(image)
        if self.sem_seg is not None:
            self.sem_seg = tfm.apply_segmentation(self.sem_seg)


def _pipelines_mirror(transforms: TransformList) -> bool:
    """Return whether left and right change places in pipelines of other libraries.

    Detectron2's function for annotations exchanges the keypoints for its horizontal flips.
    """
    return sum(_has(t, "mirrors") for t in transforms.transforms) % 2 == 1


def _need_bitmaps(transforms: TransformList) -> bool:
    """Return whether a transform cannot move polygons."""
    return any(_has(t, "needs_bitmaps") for t in transforms.transforms)


def _has(transform: Transform, name: str) -> bool:
    return bool(getattr(transform, name, False))


def _drawn(segmentation: Any, transforms: TransformList) -> np.ndarray:
    """Return a mask (H, W), uint8, at its place in the augmented image.

    Args:
        segmentation: Polygons or RLE.
        transforms: Transforms, one of which needs bitmaps. Polygons are drawn before that one.
    """
    steps = transforms.transforms
    if isinstance(segmentation, dict):
        return transforms.apply_segmentation(pycocotools.mask.decode(segmentation))
    at = next(i for i, step in enumerate(steps) if _has(step, "needs_bitmaps"))
    (polygons,) = transform_polygons([segmentation], TransformList(steps[:at]))
    bitmap = polygons_to_bitmask(polygons, steps[at].height, steps[at].width)
    return TransformList(steps[at:]).apply_segmentation(bitmap.astype(np.uint8))


def _padding_with_zeros(transform: Transform) -> Transform:
    """Return a transform that pads masks with 0, if it pads label maps with another label."""
    if getattr(transform, "seg_pad_value", 0):
        transform = copy.copy(transform)
        transform.seg_pad_value = 0
    return transform


def cropped(image: np.ndarray, tile: Sequence[int]) -> np.ndarray:
    """Return a copy of the pixels of an image inside of x0, y0, x1, y1."""
    x0, y0, x1, y1 = tile
    return np.array(image[y0:y1, x0:x1], order="C")


def _not_crowds(annotations: Sequence[dict]) -> list[dict]:
    return [a for a in annotations if not a.get("iscrowd", 0)]


def _boxes(objects: Sequence[dict]) -> np.ndarray:
    """Return the boxes of annotations as x0 y0 x1 y1, shape (N, 4)."""
    boxes = [BoxMode.convert(a["bbox"], a["bbox_mode"], BoxMode.XYXY_ABS) for a in objects]
    return np.array(boxes, float).reshape(-1, 4)


def _read_labels(file: str, photo: str, sides: tuple[Any, Any]) -> np.ndarray:
    """Return a label map (H, W), uint8; raise a UserError if it cannot be used.

    The labels of a palette PNG are its indices.
    """
    try:
        with Image.open(file) as image:
            labels, mode = np.asarray(image), image.mode
    except (OSError, SyntaxError) as e:
        if exhausted(str(e)):  # the machine ran out of a resource; the file may be intact
            raise
        what = "is missing" if isinstance(e, FileNotFoundError) else f"cannot be read: {e}"
        raise UserError(f"label map {file} {what}; replace it, or remove its image") from e
    if labels.ndim != 2 or labels.max() > 255:
        what = f"the mode {mode}" if labels.ndim != 2 else f"the label {labels.max()}"
        raise UserError(
            f"label map {file} has {what}; save it as a gray or palette PNG with 8 bits"
        )
    if None not in sides and labels.shape != sides:
        (height, width), (right_height, right_width) = labels.shape, sides
        raise UserError(
            f"label map {file} has {width} x {height} pixels, but {photo} has {right_width} x"
            f" {right_height}; replace it, or remove its image"
        )
    return labels.astype(np.uint8)


def resized(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """Resize an image with an antialiased bilinear filter, like Pillow's `resize`.

    This is four times as fast as Pillow, which rounds differently between its two passes: values
    differ by at most 2.

    Args:
        image: Array (H, W, C), uint8.
        height: New height.
        width: New width.

    Returns:
        Array (height, width, C), uint8, stored plane by plane.
    """
    # The array is a channels_last tensor already, so nothing is copied. torch requires a writable
    # array, and Pillow's are not.
    writable = np.require(image, requirements=["C", "W"])
    tensor = torch.from_numpy(writable).permute(2, 0, 1)[None]
    made = torch.nn.functional.interpolate(tensor, (height, width), mode="bilinear", antialias=True)
    return made[0].permute(1, 2, 0).numpy()


def transform_polygons(
    objects: Sequence[Sequence[Sequence[float]]], transforms: TransformList
) -> list[list[np.ndarray]]:
    """Apply transforms to the polygons of all objects, in one call if possible.

    Args:
        objects: For each object, its polygons [x0, y0, x1, y1, ...].
        transforms: Transforms of the image.

    Returns:
        For each object, its polygons (float64) as returned by `transforms.apply_polygons`.
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
        else:  # a crop clips polygons
            parts = [transform.apply_polygons(polygons) for polygons in parts]
    return [[points.reshape(-1) for points in polygons] for polygons in parts]


def _divisor(resizes: Sequence[Transform]) -> int:
    """Return the largest divisor of a photo's sides that keeps them at least at their new size."""
    for resize in resizes:
        if isinstance(resize, T.ResizeTransform):
            for divisor in _DIVISORS:
                if resize.h >= divisor * resize.new_h and resize.w >= divisor * resize.new_w:
                    return divisor
    return 1


def _flipped(image: np.ndarray) -> np.ndarray:
    """Flip (H, W, 3) horizontally, plane by plane if it is stored that way."""
    if image.strides[1] != 1:
        return cv2.flip(image, 1)
    planes = np.empty((3, *image.shape[:2]), np.uint8)
    for i in range(3):
        cv2.flip(image[:, :, i], 1, planes[i])
    return planes.transpose(1, 2, 0)


def _planes(image: np.ndarray) -> torch.Tensor:
    """Convert (H, W, C) to the model's (C, H, W)."""
    planes = image.transpose(2, 0, 1)
    if image.dtype == np.uint8 and image.shape[2] == 3 and image.flags.c_contiguous:
        planes = np.empty((3, *image.shape[:2]), np.uint8)
        for i in range(3):
            cv2.extractChannel(image, i, planes[i])
    if min(planes.strides) < 0:  # even of a single row, where numpy calls the array contiguous
        planes = planes.copy()
    return torch.from_numpy(np.ascontiguousarray(planes))
