"""Every augmentation moves pixels, masks, boxes and keypoints together, in any image."""

import detectron2.data.transforms as T
import numpy as np
import pycocotools.mask
import pytest
import torch
from detectron2.structures import BitMasks, BoxMode
from PIL import Image

from d2ext.data.loading.augment.affine import RandomRotateShear
from d2ext.data.loading.augment.color import ColorJitter
from d2ext.data.loading.augment.object_crop import ObjectCrop
from d2ext.data.loading.augment.quality import RandomBlur, RandomJpeg, RandomNoise
from d2ext.data.loading.augment.quarter_turn import RandomQuarterTurn
from d2ext.data.loading.augment.scale import LargeScaleJitter
from d2ext.data.loading.loader import build_train_loader
from d2ext.data.loading.mapper import Mapper

BLACK = (0.0, 0.0, 0.0)
AUGMENTATIONS = {
    "color": ColorJitter(),
    "blur": RandomBlur(),
    "JPEG": RandomJpeg(),
    "noise": RandomNoise(),
    "rotation": RandomRotateShear([-60, 60], [-20, 20], pad_value=BLACK),
    "rotation, same size": RandomRotateShear([-60, 60], [-20, 20], False, BLACK),
    "quarters": RandomQuarterTurn(),
    "jitter": LargeScaleJitter([150, 150], [0.5, 2]),
    "crop": ObjectCrop([90, 80]),
    "all": T.AugmentationList(
        [
            T.ResizeShortestEdge([150], 400, "choice"),
            T.RandomApply(RandomRotateShear(pad_value=BLACK)),
            LargeScaleJitter([200, 200], [0.5, 2]),
            ObjectCrop([90, 80]),
            T.RandomFlip(),
            RandomQuarterTurn(),
            T.RandomApply(ColorJitter()),
            T.RandomApply(RandomBlur()),
            T.RandomApply(RandomNoise()),
            T.RandomApply(RandomJpeg()),
        ]
    ),
}
TRIANGLES = [[[20, 30], [70, 40], [30, 90]], [[100, 20], [150, 70], [90, 75]]]


def _record(folder, shape=(120, 180), triangles=TRIANGLES, crowds=()):
    """Write a black photo with white triangles, whose keypoint is their center."""
    image = np.zeros(shape, np.uint8)
    centers = np.stack(np.meshgrid(np.arange(shape[1]), np.arange(shape[0])), axis=2) + 0.5
    annotations = []
    for i, corners in enumerate(triangles):
        points = np.array(corners, float)
        sides = [
            np.linalg.det(np.stack(np.broadcast_arrays(end - start, centers - start), axis=-1))
            for start, end in zip(points, np.roll(points, -1, axis=0), strict=True)
        ]
        image[(np.stack(sides) > 0).all(axis=0)] = 255
        annotations.append(
            {
                "bbox": [*points.min(axis=0), *points.max(axis=0)],
                "bbox_mode": BoxMode.XYXY_ABS,
                "category_id": i,
                "iscrowd": int(i in crowds),
                "segmentation": [points.ravel().tolist()],
                "keypoints": [*points.mean(axis=0), 2],
            }
        )
    Image.fromarray(image).convert("RGB").save(folder / "photo.png")
    size = {"height": shape[0], "width": shape[1]}
    return {"file_name": str(folder / "photo.png"), **size, "annotations": annotations}


def _as_rle(record):
    sides = record["height"], record["width"]
    annotations = [
        {**a, "segmentation": pycocotools.mask.frPyObjects(a["segmentation"], *sides)[0]}
        for a in record["annotations"]
    ]
    return {**record, "annotations": annotations}


def _has_block(mask):
    """Return whether a mask (H, W) contains 5 x 5 pixels.

    Outlines differ by rounding, and the blur rounds tips; a misplaced object differs in a block.
    """
    return (torch.nn.functional.avg_pool2d(mask[None].float(), 5, 1) == 1).any()


def _sample(augmentation, record, seed, masks="polygon", **options):
    mapper = Mapper(
        True,
        augmentations=[augmentation],
        image_format="BGR",
        use_instance_mask=True,
        instance_mask_format=masks,
        use_keypoint=True,
        keypoint_hflip_indices=np.array([0]),
        **options,
    )
    np.random.seed(seed)
    return mapper(record)


@pytest.mark.parametrize("masks", ["polygon", "bitmask"])
@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_objects_are_where_their_pixels_are(tmp_path, name, masks):
    record = _record(tmp_path)
    given_record = _as_rle(record) if masks == "bitmask" else record
    seen = 0
    for seed in range(12):
        sample = _sample(AUGMENTATIONS[name], given_record, seed, masks)
        white = sample["image"].float().mean(dim=0) > 127
        objects, shape = sample["instances"], tuple(white.shape)
        found = objects.gt_masks
        if masks == "polygon" and len(objects):
            found = BitMasks.from_polygon_masks(found, *shape)
        bitmaps = found.tensor if len(objects) else torch.zeros(1, *shape).bool()
        union = bitmaps.any(dim=0)
        assert not _has_block(white ^ union)
        for i in range(len(objects)):
            seen += 1
            ys, xs = torch.nonzero(bitmaps[i], as_tuple=True)
            x0, y0, x1, y1 = objects.gt_boxes.tensor[i].tolist()
            assert x0 - 2 <= xs.min() and xs.max() + 1 <= x1 + 2
            assert y0 - 2 <= ys.min() and ys.max() + 1 <= y1 + 2
            x, y, visibility = objects.gt_keypoints.tensor[i, 0].tolist()
            if visibility:
                assert bitmaps[i, int(y), int(x)]
    assert seen > 10


@pytest.mark.parametrize("name", AUGMENTATIONS)
@pytest.mark.parametrize("shape", [(1, 1), (1, 300), (40, 30)])
def test_any_image_without_objects_is_augmented(tmp_path, name, shape):
    """A crowd is not an object."""
    for triangles in ([], [[[0, 0], [20, 0], [0, 20]]]):
        record = _record(tmp_path, shape, triangles, crowds=[0])
        for seed in range(5):
            sample = _sample(AUGMENTATIONS[name], record, seed)
            assert sample["image"].dtype == torch.uint8 and min(sample["image"].shape) >= 1
            assert len(sample["instances"]) == 0


@pytest.mark.parametrize("shape", [(1, 7), (7, 1), (1, 1)])
@pytest.mark.parametrize(
    "augmentation", [RandomQuarterTurn(), T.RandomFlip(vertical=True, horizontal=False)]
)
def test_thin_gray_images_are_turned(tmp_path, augmentation, shape):
    record = _record(tmp_path, shape, [])
    mapper = Mapper(True, augmentations=[augmentation], image_format="L")
    for seed in range(8):
        np.random.seed(seed)
        assert mapper(record)["image"].numel() == shape[0] * shape[1]


def test_a_crowd_neither_attracts_nor_repels_crops(tmp_path):
    for seed in range(10):
        with_crowd = _record(tmp_path, triangles=TRIANGLES, crowds=[1])
        alone = {**with_crowd, "annotations": with_crowd["annotations"][:1]}
        made = [_sample(ObjectCrop([30, 30]), r, seed)["image"] for r in (with_crowd, alone)]
        assert torch.equal(*made)


def test_mirrored_and_turned_images_exchange_left_and_right(tmp_path):
    """Seen from the third point, the first one stays on the left."""
    record = _record(tmp_path, triangles=[[[40, 20], [140, 10], [90, 100]]])
    record["annotations"][0]["keypoints"] = [50, 24, 2, 130, 16, 1, 90, 90, 2]
    mapper = Mapper(
        True,
        augmentations=[T.RandomFlip(), RandomQuarterTurn()],
        image_format="BGR",
        use_keypoint=True,
        keypoint_hflip_indices=[1, 0, 2],
    )
    visibilities = set()
    for seed in range(20):
        np.random.seed(seed)
        points = mapper(record)["instances"].gt_keypoints.tensor[0]
        (a, b), (c, d) = points[:2, :2] - points[2, :2]
        assert a * d - b * c > 0
        visibilities.add(tuple(points[:, 2].tolist()))
    assert visibilities == {(2, 1, 2), (1, 2, 2)}


def test_boxes_are_fitted_to_rotated_masks(tmp_path):
    record = _record(tmp_path)
    loose, tight = (
        _sample(RandomRotateShear([45, 45], [0, 0]), record, 0, recompute_boxes=fit)["instances"]
        for fit in (False, True)
    )
    assert (tight.gt_boxes.area() < 0.8 * loose.gt_boxes.area()).all()
    assert torch.equal(tight.gt_boxes.tensor, tight.gt_masks.get_bounding_boxes().tensor)


def test_label_maps_are_ignored_outside_of_the_image(tmp_path):
    record = _record(tmp_path)
    Image.fromarray(np.full((120, 180), 3, np.uint8)).save(tmp_path / "labels.png")
    record["sem_seg_file_name"] = str(tmp_path / "labels.png")
    labels = _sample(RandomRotateShear([45, 45], [0, 0]), record, 0)["sem_seg"]
    assert labels.unique().tolist() == [3, 255]
    assert (labels == 3).sum() == pytest.approx(120 * 180, rel=0.02)


def test_workers_and_resume_do_not_change_samples(tmp_path):
    records = [_record(tmp_path)] * 4
    mapper = Mapper(True, augmentations=[AUGMENTATIONS["all"]], image_format="BGR")
    options = dict(
        total_batch_size=2, seed=5, reference_batch_size=2, reference_world_size=1, accumulate=1
    )

    def images(num_workers, start_iter, count):
        batches = iter(
            build_train_loader(
                records, mapper, num_workers=num_workers, start_iter=start_iter, **options
            )
        )
        return [sample["image"] for _ in range(count) for sample in next(batches)]

    whole = images(0, 0, 3)
    assert all(map(torch.equal, whole, images(2, 0, 3)))
    assert all(map(torch.equal, whole[4:], images(1, 2, 1)))
    assert len({image.numpy().tobytes() for image in whole}) == 6
