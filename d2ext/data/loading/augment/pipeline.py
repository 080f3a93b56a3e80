"""Augment images by a pipeline of Albumentations (extra `albumentations`).

Albumentations draws random numbers from its own generators and calls its transforms once for each
sample. Detectron2 applies one transform to image, boxes, masks and points in turn, so the pipeline
runs once, with a map of the pixels' places in addition to the image; masks and label maps then take
their pixels from that map.
"""

import importlib
import random
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import detectron2.data.transforms as T
import numpy as np

from d2ext.errors import UserError

# Transforms that use or change the content of masks, which are not part of the run.
_BY_MASKS = {
    *("ConstrainedCoarseDropout", "CropNonEmptyMaskIfExists", "MaskDropout", "Morphological"),
    *("Mosaic", "OverlayElements"),
}
# Transforms that prepare images for a model, as Detectron2's models do themselves.
_BY_MODEL = {"Normalize", "ToFloat", "ToTensor3D", "ToTensorV2"}
_GIVEN = {"image", "bboxes"}
_LEAST_SIDE = 0.01  # pixels; rounding in float32 may leave this much of a box that is outside
_MARK = -7  # of pixels from the image; not a plausible fill value


class PipelineTransform(T.Transform):
    """The result of one run of a pipeline for an image.

    Bitmap masks and label maps are exact: each pixel takes the label of the pixel that the
    pipeline's transforms for masks put there. Boxes and points are those of Albumentations; if the
    pipeline resizes, points may be off by half a pixel, because it counts from pixels' centers.

    Attributes:
        moved_boxes: New boxes of the objects, shape (N, 4); dropped boxes have no area.
        needs_bitmaps: Whether `Mapper` draws polygons before the pipeline, because it moved pixels
            and may have bent edges.
    """

    def __init__(
        self,
        pipeline: Any,
        seed: int,
        image: np.ndarray,
        boxes: np.ndarray | None,
        is_rgb: bool,
        seg_pad_value: int = 255,
    ):
        """Run a pipeline.

        Args:
            pipeline: Result of `AlbumentationsPipeline.composed`.
            seed: Seed of the run.
            image: Shape (H, W, C).
            boxes: Boxes of all objects in the image, shape (N, 4), x0 y0 x1 y1 in pixels; None from
                a mapper that passes none.
            is_rgb: Whether the image is RGB, else BGR or gray.
            seg_pad_value: Label of pixels that do not come from the image.
        """
        super().__init__()
        self.height, self.width = image.shape[:2]
        self.seg_pad_value = seg_pad_value
        self._pipeline, self._seed, self._is_rgb = pipeline, seed, is_rgb
        self._image = image
        self._boxes = self._clipped(np.zeros((0, 4)) if boxes is None else boxes)
        rows, columns = np.mgrid[: self.height, : self.width]
        places = np.stack([rows, columns, np.full_like(rows, _MARK)], axis=2).astype(np.float32)
        made = self._run(image, places=places)
        self._made = self._reordered(made["image"])
        self.moved_boxes = _joined(made["bboxes"], made["box_ids"], len(self._boxes))
        self._places = np.rint(made["mask"]).astype(int)
        self.needs_bitmaps = not np.array_equal(self._places, places)

    @property
    def mirrors(self) -> bool:
        """Return whether the pipeline mirrored the image, so that left and right change places."""
        if not self.needs_bitmaps:
            return False
        step = max(min(self._places.shape[:2]) // 64, 1)  # 64 rows and columns determine the map
        places = self._places[::step, ::step]
        known = places[..., 2] == _MARK
        now, before = np.argwhere(known), places[known][:, :2]
        if not len(now):
            return False
        # The sign is that of the affine map that fits best.
        return bool(np.linalg.det((now - now.mean(axis=0)).T @ (before - before.mean(axis=0))) < 0)

    def apply_image(self, img: np.ndarray) -> np.ndarray:
        """Return the augmented image of an image of shape (H, W, C)."""
        return self._made if img is self._image else self._reordered(self._run(img)["image"])

    def apply_segmentation(self, segmentation: np.ndarray) -> np.ndarray:
        """Return the augmented label map of a label map or mask of shape (H, W)."""
        if not self.needs_bitmaps:
            return segmentation
        rows, columns, mark = self._places.transpose(2, 0, 1)
        known = mark == _MARK
        made = np.full(known.shape, self.seg_pad_value, segmentation.dtype)
        made[known] = segmentation[rows[known], columns[known]]
        return made

    def apply_coords(self, coords: np.ndarray) -> np.ndarray:
        """Return the new places of points of shape (N, 2); this runs the pipeline again.

        Points that Albumentations drops lie outside of the image.
        """
        points = np.asarray(coords, float).reshape(-1, 2)
        made = np.full(points.shape, -1.0)
        found = self._run(self._image, points)
        ids = np.asarray(found["point_ids"], int)
        made[ids] = np.asarray(found["keypoints"], float).reshape(-1, 2) + 0.5
        return made

    def apply_polygons(self, polygons: list[np.ndarray]) -> list[np.ndarray]:
        """Return the new places of polygons (N, 2), moved point by point if pixels moved."""
        return super().apply_polygons(polygons) if self.needs_bitmaps else polygons

    def apply_box(self, box: np.ndarray) -> np.ndarray:
        """Return the new boxes (N, 4); dropped boxes have no area.

        The pipeline runs again for boxes that are not among those of its first run.
        """
        boxes = self._clipped(box)
        found = [np.flatnonzero((self._boxes == one).all(axis=1))[:1] for one in boxes]
        if all(map(len, found)):
            return self.moved_boxes[np.array(found, int).reshape(-1)]
        both = np.concatenate([self._boxes, boxes])
        again = PipelineTransform(self._pipeline, self._seed, self._image, both, self._is_rgb)
        return again.moved_boxes[len(self._boxes) :]

    def _run(
        self,
        image: np.ndarray,
        points: np.ndarray | None = None,
        places: np.ndarray | None = None,
    ) -> dict[str, Any]:
        """Run the pipeline with the same draws each time.

        Raises:
            UserError: The new image does not have the type and the channels of the old one.
        """
        generator = np.random.default_rng(self._seed)
        self._pipeline.set_random_state(generator, random.Random(self._seed))
        ids = np.flatnonzero((self._boxes[:, :2] < self._boxes[:, 2:]).all(axis=1))
        points = np.zeros((0, 2)) if points is None else points
        made = self._pipeline(
            image=self._reordered(image),
            bboxes=self._boxes[ids],
            box_ids=ids.tolist(),
            keypoints=points - 0.5,
            point_ids=list(range(len(points))),
            **({} if places is None else {"mask": places}),
        )
        new, channels = made["image"], image.shape[2]
        if isinstance(new, np.ndarray) and new.ndim == 2:  # some transforms drop a single channel
            made["image"] = new = new[..., None]
        if not isinstance(new, np.ndarray) or new.dtype != np.uint8 or new.shape[2:] != (channels,):
            kind = f"a {type(new).__name__} of shape {tuple(new.shape)} and type {new.dtype}"
            raise UserError(
                f"AlbumentationsPipeline made {kind}; remove the transforms that convert the image,"
                f" which must stay a uint8 array (H, W, {channels})"
            )
        return made

    def _reordered(self, image: np.ndarray) -> np.ndarray:
        """Return a copy of an image (H, W, C) with channels in the pipeline's order, or back."""
        # Always copied, because OpenCV and torch refuse negative strides even of a single channel.
        return np.array(image if self._is_rgb else image[..., ::-1], order="C")

    def _clipped(self, boxes: np.ndarray) -> np.ndarray:
        sides = [self.width, self.height] * 2
        return np.clip(np.asarray(boxes, float).reshape(-1, 4), 0, sides).astype(np.float32)


class AlbumentationsPipeline(T.Augmentation):
    """Augment every image by transforms of Albumentations 2.

    Their random numbers are seeded from numpy's global generator for each image. Install the
    package with `pip install 'd2ext[albumentations]'`. `import d2ext` turns off its check for
    updates, which needs a network.
    """

    def __init__(self, transforms: Sequence[Any], image_format: str = "BGR"):
        """Describe the pipeline.

        Args:
            transforms: Transforms of Albumentations, in order, such as
                `{_target_: albumentations.RandomGamma, p: 0.5}`.
            image_format: RGB, BGR or L; the transforms get RGB or gray images.

        Raises:
            UserError: The package is missing, or a transform normalizes or converts the image,
                which the model does, or depends on the content of masks or on data that a sample
                does not have.
        """
        super().__init__()
        self.transforms = list(transforms)
        self.image_format = image_format
        self.composed = _composed(self.transforms)

    def get_transform(self, image: np.ndarray, boxes: np.ndarray | None) -> T.Transform:
        """Return the result of a run for an image.

        Args:
            image: Shape (H, W, C), uint8.
            boxes: Shape (N, 4), x0 y0 x1 y1 in pixels; None from a mapper that passes none.
        """
        seed = int(np.random.randint(2**31))
        return PipelineTransform(self.composed, seed, image, boxes, self.image_format == "RGB")


def _composed(transforms: list[Any]) -> Any:
    """Return the transforms as one pipeline for images, masks, boxes and points."""
    try:
        A = importlib.import_module("albumentations")
    except ImportError as e:
        raise UserError(
            f"albumentations cannot be imported ({e}): pip install 'd2ext[albumentations]'"
        ) from e
    for transform in _leaves(transforms):
        name = type(transform).__name__
        if name in _BY_MODEL:
            raise UserError(
                f"AlbumentationsPipeline: remove {name}; the model normalizes and converts images"
            )
        needed = set(getattr(transform, "targets_as_params", ())) - _GIVEN
        if name in _BY_MASKS or needed:
            what = ", ".join(sorted(needed)) or "the content of masks"
            raise UserError(
                f"AlbumentationsPipeline: {name} needs {what}, which the pipeline does not get; use"
                " another transform"
            )
    boxes = A.BboxParams(
        "pascal_voc", label_fields=["box_ids"], min_width=_LEAST_SIDE, min_height=_LEAST_SIDE
    )
    points = A.KeypointParams("xy", remove_invisible=False, label_fields=["point_ids"])
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Got processor for .*")  # if no transform moves boxes
        return A.Compose(transforms, bbox_params=boxes, keypoint_params=points)


def _leaves(transforms: Sequence[Any]) -> Iterator[Any]:
    for transform in transforms:
        inner = getattr(transform, "transforms", None)
        if inner is None:
            yield transform
        else:
            yield from _leaves(inner)


def _joined(boxes: Any, ids: Sequence[int], count: int) -> np.ndarray:
    """Return the boxes by id (count, 4): those around all with this id, without area for none."""
    made = np.zeros((count, 4))
    boxes = np.asarray(boxes, float).reshape(-1, 4)
    for i in set(map(int, ids)):
        mine = boxes[np.asarray(ids, int) == i]
        made[i] = [*mine[:, :2].min(axis=0), *mine[:, 2:].max(axis=0)]
    return made
