"""Crops contain whole objects where they can."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from d2ext.data.loading.augment.object_crop import ObjectCrop
from d2ext.errors import UserError
from tests.data.loading.augment.test_affine import _inside


def _crop(seed, shape, boxes, size, tries=10):
    np.random.seed(seed)
    image = np.broadcast_to(np.uint8(0), (*shape, 3))
    return ObjectCrop(size, tries).get_transform(image, np.array(boxes, float).reshape(-1, 4))


def _cut_objects(crop, shape, boxes):
    """Count objects with pixels both inside and outside of the crop, pixel by pixel."""
    inside = np.zeros(shape, bool)
    inside[crop.y0 : crop.y0 + crop.h, crop.x0 : crop.x0 + crop.w] = True
    parts = [inside[y0:y1, x0:x1] for x0, y0, x1, y1 in boxes]
    return sum(bool(part.any() and not part.all()) for part in parts)


@st.composite
def _scenes(draw):
    height, width = draw(st.integers(1, 40)), draw(st.integers(1, 40))
    boxes = []
    for _ in range(draw(st.integers(0, 5))):
        x0, y0 = draw(st.integers(0, width - 1)), draw(st.integers(0, height - 1))
        boxes.append([x0, y0, draw(st.integers(x0 + 1, width)), draw(st.integers(y0 + 1, height))])
    return (height, width), boxes


SIZES = st.tuples(st.integers(1, 45), st.integers(1, 45))
SEEDS = st.integers(0, 2**32 - 1)


@given(SEEDS, _scenes(), SIZES)
def test_a_crop_contains_an_object_that_fits(seed, scene, size):
    """One that is too large fills the crop."""
    shape, boxes = scene
    crop = _crop(seed, shape, boxes, size)
    assert (crop.h, crop.w) == tuple(np.minimum(size, shape))
    assert 0 <= crop.x0 <= shape[1] - crop.w and 0 <= crop.y0 <= shape[0] - crop.h

    def lies_within(low, high, start, length):
        return start <= low and high <= start + length or low <= start and start + length <= high

    assert not boxes or any(
        lies_within(x0, x1, crop.x0, crop.w) and lies_within(y0, y1, crop.y0, crop.h)
        for x0, y0, x1, y1 in boxes
    )


@given(SEEDS, _scenes(), SIZES)
def test_the_place_that_cuts_the_fewest_objects_is_used(seed, scene, size):
    """The first of several places is what a single try finds."""
    shape, boxes = scene
    chosen, first = (_crop(seed, shape, boxes, size, tries) for tries in (10, 1))
    fewest, cut = (_cut_objects(crop, shape, boxes) for crop in (chosen, first))
    assert fewest <= cut
    if fewest == cut:
        assert (chosen.x0, chosen.y0) == (first.x0, first.y0)


@pytest.mark.parametrize("size", [(6, 8), (1, 1), (30, 5)])
def test_samples_equal_a_reference_pixel_by_pixel(size):
    """Objects are triangles: the lower left halves of their boxes."""
    boxes = [[2, 1, 6, 8], [5, 5, 15, 12], [9, 0, 12, 3]]
    image = np.random.default_rng(0).integers(0, 256, (12, 15, 3)).astype(np.uint8)
    for seed in range(6):
        crop = _crop(seed, (12, 15), boxes, size)
        made, labels = crop.apply_image(image), crop.apply_segmentation(image[..., 0])
        assert made.shape == (crop.h, crop.w, 3) and labels.shape == (crop.h, crop.w)
        polygons = [
            crop.apply_polygons([np.array([[x0, y0], [x0, y1], [x1, y1]], float)])
            for x0, y0, x1, y1 in boxes
        ]
        for row, column in np.ndindex(crop.h, crop.w):
            y, x = row + crop.y0, column + crop.x0
            assert np.array_equal(made[row, column], image[y, x])
            assert labels[row, column] == image[y, x, 0]
            for (x0, y0, x1, y1), parts in zip(boxes, polygons, strict=True):
                # A place in the pixel that is on no diagonal.
                across, down = (x + 0.51 - x0) / (x1 - x0), (y + 0.48 - y0) / (y1 - y0)
                found = any(_inside((column + 0.51, row + 0.48), part) for part in parts)
                assert found == (0 < across < down < 1)


def test_a_gap_between_objects_is_found():
    """Around the left object, only crops that start at columns 0 to 20 cut no other object."""
    boxes = [[20, 10, 30, 20], [60, 10, 70, 20]]
    crops = [_crop(seed, (30, 100), boxes, (30, 35), 50) for seed in range(100)]
    assert all(_cut_objects(crop, (30, 100), boxes) == 0 for crop in crops)
    random = [_crop(seed, (30, 100), [], (30, 35)) for seed in range(100)]
    assert sum(_cut_objects(crop, (30, 100), boxes) > 0 for crop in random) > 20


def test_objects_and_places_are_drawn_evenly():
    boxes = [[10, 10, 11, 11], [500, 10, 501, 11]]
    crops = [_crop(seed, (20, 600), boxes, (20, 5)) for seed in range(400)]
    columns, counts = np.unique([crop.x0 for crop in crops], return_counts=True)
    assert columns.tolist() == [*range(6, 11), *range(496, 501)]
    assert counts.min() > 20


def test_parts_outside_of_the_image_do_not_count():
    """As after an earlier crop: one object is outside, and one is cut at the border already."""
    boxes = [[-30, 0, -20, 10], [5, -20, 15, 5]]
    for seed in range(20):
        crop = _crop(seed, (50, 50), boxes, (20, 20))
        assert crop.y0 == 0 and crop.x0 <= 5 and crop.x0 + crop.w >= 15


def test_images_without_objects_are_cropped_anywhere():
    places = {(c.x0, c.y0) for c in (_crop(s, (3, 4), [], (2, 2)) for s in range(100))}
    assert places == {(x, y) for x in range(3) for y in range(2)}


def test_no_try_is_refused():
    with pytest.raises(ValueError, match="tries=0: give at least 1"):
        ObjectCrop([2, 2], tries=0)


def test_a_mapper_without_boxes_is_named():
    with pytest.raises(UserError, match="ObjectCrop needs the boxes"):
        ObjectCrop([2, 2]).get_transform(np.zeros((3, 3, 3), np.uint8), None)
