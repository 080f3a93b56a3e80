"""Random crops with padding keep objects whose center is inside, and move them with the pixels."""

import numpy as np
import pytest
import torch
from detectron2.data import DatasetMapper
from detectron2.data import transforms as T
from detectron2.structures import BoxMode
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from d2ext.data.loading.augment.center_crop import CenterCropPad, CropPadTransform
from d2ext.data.loading.mapper import Mapper
from d2ext.errors import UserError

COLOR = (123.675, 116.28, 103.53)
INTEGERS = [124, 116, 104]


def _image(height, width):
    """Return an image whose pixels state their place: row, column, and 77."""
    rows, columns = np.mgrid[:height, :width]
    return np.stack([rows % 256, columns % 256, np.full_like(rows, 77)], axis=2).astype(np.uint8)


def _drawn(seed, image, boxes, crop_size=(40, 40), **options):
    np.random.seed(seed)
    augmentation = CenterCropPad(crop_size, COLOR, **options)
    return augmentation.get_transform(image, np.array(boxes, float).reshape(-1, 4))


def _center(crop):
    return crop.x0 + crop.w // 2, crop.y0 + crop.h // 2


@given(
    *(st.integers(1, 60) for _ in range(4)),
    *(st.integers(-70, 70) for _ in range(2)),
)
def test_a_crop_has_the_image_s_pixels_and_the_color_elsewhere(height, width, h, w, x0, y0):
    image = _image(height, width)
    labels = image[..., 0]
    crop = CropPadTransform(x0, y0, w, h, COLOR)
    made, made_labels = crop.apply_image(image), crop.apply_segmentation(labels)
    assert made.shape == (h, w, 3) and made.dtype == np.uint8 and made_labels.shape == (h, w)
    rows, columns = np.arange(y0, y0 + h), np.arange(x0, x0 + w)
    inside = np.outer((rows >= 0) & (rows < height), (columns >= 0) & (columns < width))
    assert (made[~inside] == INTEGERS).all() and (made_labels[~inside] == 255).all()
    at = np.argwhere(inside) + [y0, x0]
    assert np.array_equal(made[inside], image[at[:, 0], at[:, 1]])
    assert np.array_equal(made_labels[inside], labels[at[:, 0], at[:, 1]])


def test_floating_point_images_get_the_exact_color():
    crop = CropPadTransform(-1, 0, 2, 2, COLOR)
    assert crop.apply_image(np.ones((2, 2, 3)))[0, 0].tolist() == list(COLOR)


BOXES = st.tuples(*(st.floats(0, 100) for _ in range(4))).map(
    lambda box: [min(box[::2]), min(box[1::2]), max(box[::2]) + 1, max(box[1::2]) + 1]
)


@given(
    st.lists(BOXES, min_size=1, max_size=4),
    *(st.integers(-60, 90) for _ in range(2)),
    *(st.integers(1, 99) for _ in range(2)),
)
def test_boxes_are_clipped_or_emptied(boxes, x0, y0, w, h):
    """Those whose center is inside are clipped; the others are empty."""
    given_boxes = np.array(boxes)
    made = CropPadTransform(x0, y0, w, h, COLOR).apply_box(given_boxes)
    assert np.array_equal(given_boxes, boxes)  # not changed in place
    for (left, top, right, bottom), box in zip(boxes, made, strict=True):
        x, y = (left + right) / 2 - x0, (top + bottom) / 2 - y0
        if 0 < x < w and 0 < y < h:
            expected = [
                max(left - x0, 0),
                max(top - y0, 0),
                min(right - x0, w),
                min(bottom - y0, h),
            ]
            assert box.tolist() == pytest.approx(expected)
            assert box[0] < box[2] and box[1] < box[3]
        else:
            assert box[0] == box[2] and box[1] == box[3]


def test_polygons_are_clipped_and_points_move():
    crop = CropPadTransform(10, -5, 20, 20, COLOR)
    (polygon,) = crop.apply_polygons([np.array([[0, 0], [15, 0], [15, 5], [0, 5]], float)])
    assert sorted(map(tuple, polygon)) == [(0, 5), (0, 10), (5, 5), (5, 10)]
    assert crop.apply_coords(np.array([[0.0, 0.0]])).tolist() == [[-10, 5]]


@given(
    st.integers(0, 2**32 - 1),
    *(st.integers(1, 700) for _ in range(2)),
    st.booleans(),
    st.tuples(*(st.floats(0, 0.999) for _ in range(2))),
)
def test_crops_lie_around_a_center_within_the_border(seed, height, width, has_object, at):
    """The center of an object is inside, if there is an object, also in tiny images."""
    image = np.broadcast_to(np.uint8(0), (height, width, 3))
    x, y = at[0] * width, at[1] * height
    boxes = [[x, y, x + 0.001 * width, y + 0.001 * height]] if has_object else []
    crop = _drawn(seed, image, boxes, (511, 511))
    assert crop.w == crop.h and crop.w in (306, 357, 408, 459, 511, 562, 613, 664)
    for center, side in zip(_center(crop), (width, height), strict=True):
        border = next(b for b in (128, 64, 32, 16, 8, 4, 2, 1, 0) if 2 * b < side)
        assert border <= center < side - border
    if has_object:
        box = crop.apply_box(np.array(boxes))[0]
        assert box[0] < box[2] and box[1] < box[3]


def test_ratios_and_centers_are_drawn_evenly():
    image = np.broadcast_to(np.uint8(0), (400, 600, 3))
    crops = [_drawn(seed, image, [], (511, 300)) for seed in range(800)]
    sizes, counts = np.unique([(crop.h, crop.w) for crop in crops], axis=0, return_counts=True)
    assert sizes.tolist() == [
        [int(511 * ratio), int(300 * ratio)] for ratio in (0.6, 0.7, 0.8, 0.9, 1.0, 1.1, 1.2, 1.3)
    ]
    assert 60 < counts.min() and counts.max() < 140
    for values, side in zip(zip(*map(_center, crops), strict=True), (600, 400), strict=True):
        assert 128 <= min(values) < 138 and side - 138 <= max(values) < side - 128
        assert np.mean(values) == pytest.approx(side / 2, abs=0.05 * side)


def test_a_crop_that_finds_no_object_is_centered_on_one():
    """The border keeps all others away from the objects, which are in two corners."""
    image = np.broadcast_to(np.uint8(0), (4000, 4000, 3))
    boxes = [[10, 20, 14, 24], [3990, 3980, 3992, 3986]]
    centers = {_center(_drawn(seed, image, boxes, (20, 20))) for seed in range(10)}
    assert centers == {(12, 22), (3991, 3983)}


def _record(folder, boxes, crowds=()):
    Image.fromarray(_image(200, 240)).save(folder / "photo.png")
    annotations = [
        {"bbox": box, "bbox_mode": BoxMode.XYXY_ABS, "category_id": i, "iscrowd": int(i in crowds)}
        for i, box in enumerate(boxes)
    ]
    size = {"height": 200, "width": 240}
    return {"file_name": str(folder / "photo.png"), **size, "annotations": annotations}


def _mapper(augmentations):
    return Mapper(True, augmentations=augmentations, image_format="RGB")


def test_the_mapper_passes_boxes_as_transformed_so_far(tmp_path):
    """Crowds do not count; objects outside of the crop are dropped."""
    seen = []

    class Watching(CenterCropPad):
        def get_transform(self, image, boxes):
            seen.append(boxes.tolist())
            return super().get_transform(image, boxes)

    corners = [[0, 0, 10, 10], [20, 180, 30, 190]]
    record = _record(tmp_path, [*corners, [100, 100, 120, 120]], crowds=[2])
    small = Watching([10, 10], COLOR)
    chain = [T.HFlipTransform(240), small, T.Resize((20, 20)), T.RandomFlip(horizontal=True)]
    kept = set()
    for seed in range(20):
        np.random.seed(seed)
        sample = _mapper(chain)(record)
        assert seen.pop() == [[230, 0, 240, 10], [210, 180, 220, 190]]
        assert sample["image"].shape == (3, 20, 20)
        (label,) = sample["instances"].gt_classes.tolist()  # the crop is too small for two
        kept.add(label)
        # The pixels' columns show that the box is where the object was in the photo.
        x0, y0, x1, y1 = sample["instances"].gt_boxes.tensor[0].round().long().tolist()
        inside = sample["image"][:, y0 + 2 : y1 - 2, x0 + 2 : x1 - 2]
        left, top, right, bottom = corners[label]
        assert top <= inside[0].min() and inside[0].max() <= bottom
        assert left <= inside[1].min() and inside[1].max() <= right
    assert kept == {0, 1}


def test_the_seed_determines_the_sample(tmp_path):
    record = _record(tmp_path, [[0, 0, 100, 90], [120, 100, 230, 190]])
    chain = [CenterCropPad([128, 128], COLOR), T.Resize((128, 128)), T.RandomFlip()]

    def sample(seed):
        np.random.seed(seed)
        made = _mapper(chain)(record)
        return made["image"], made["instances"].gt_boxes.tensor

    assert all(torch.equal(a, b) for a, b in zip(sample(1), sample(1), strict=True))
    assert len({sample(seed)[0].numpy().tobytes() for seed in range(10)}) == 10


def test_an_image_without_objects_is_cropped(tmp_path):
    np.random.seed(0)
    sample = _mapper([CenterCropPad([64, 64], COLOR), T.Resize((64, 64))])(_record(tmp_path, []))
    assert sample["image"].shape == (3, 64, 64) and len(sample["instances"]) == 0


@pytest.mark.parametrize("mask_format", ["polygon", "bitmask"])
@pytest.mark.parametrize("recompute", [False, True])
def test_a_dropped_object_stays_dropped_when_boxes_are_recomputed(tmp_path, mask_format, recompute):
    """A part of its mask is in the crop, but its center is not."""
    boxes = [[0, 10, 22, 30], [35, 20, 45, 30]]
    record = _record(tmp_path, boxes)
    for annotation, (x0, y0, x1, y1) in zip(record["annotations"], boxes, strict=True):
        annotation["segmentation"] = [[x0, y0, x1, y0, x1, y1, x0, y1]]
    mapper = Mapper(
        True,
        augmentations=[CropPadTransform(12, 0, 50, 50, COLOR)],
        image_format="RGB",
        use_instance_mask=True,
        instance_mask_format=mask_format,
        recompute_boxes=recompute,
    )
    instances = mapper(record)["instances"]
    assert instances.gt_classes.tolist() == [1]
    assert instances.gt_boxes.tensor.tolist() == [[23, 20, 33, 30]]


def test_a_mapper_that_passes_no_boxes_is_a_one_line_error(tmp_path):
    mapper = DatasetMapper(True, augmentations=[CenterCropPad([64, 64], COLOR)], image_format="RGB")
    with pytest.raises(UserError, match="needs the boxes .*; set .*loading.mapper.Mapper$"):
        mapper(_record(tmp_path, [[0, 0, 10, 10]]))


def test_precomputed_proposals_move_with_the_crop(tmp_path):
    record = _record(tmp_path, [[100, 90, 120, 110]]) | {
        "proposal_boxes": np.array([[100.0, 90, 120, 110]]),
        "proposal_objectness_logits": np.zeros(1),
        "proposal_bbox_mode": BoxMode.XYXY_ABS,
    }
    mapper = Mapper(
        True,
        augmentations=[CenterCropPad([200, 200], COLOR)],
        image_format="RGB",
        precomputed_proposal_topk=10,
    )
    sample = mapper(record)
    boxes = sample["instances"].gt_boxes.tensor, sample["proposals"].proposal_boxes.tensor
    assert len(boxes[0]) == 1 and torch.equal(*boxes)
