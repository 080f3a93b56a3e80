"""Large-scale jitter resizes and crops as the paper says."""

import detectron2.data.transforms as T
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from d2ext.data.loading.augment.scale import LargeScaleJitter, ScaleJitter

SIDES = st.integers(1, 300)


@given(st.integers(0, 2**32 - 1), SIDES, SIDES, st.floats(0.1, 3))
def test_sizes_equal_detectron2_s_but_are_never_zero(seed, height, width, scale):
    image = np.broadcast_to(np.uint8(0), (height, width, 3))
    np.random.seed(seed)
    made = ScaleJitter([80, 120], [0.1, scale]).get_transform(image)
    np.random.seed(seed)
    expected = T.ResizeScale(0.1, scale, 80, 120).get_transform(image)
    assert (made.h, made.w) == (height, width)
    assert (made.new_h, made.new_w) == (max(expected.new_h, 1), max(expected.new_w, 1))


def test_scales_are_uniform():
    np.random.seed(0)
    image = np.broadcast_to(np.uint8(0), (1000, 500, 3))
    heights = [ScaleJitter([1000, 1000]).get_transform(image).new_h for _ in range(400)]
    counts, _ = np.histogram(heights, 4, (99.5, 2000.5))
    assert counts.sum() == 400 and counts.min() > 70


def test_large_images_are_cropped_anywhere_and_small_ones_are_not_padded():
    image = np.broadcast_to(np.uint8(0), (40, 60, 3))
    corners = set()
    for seed in range(60):
        np.random.seed(seed)
        given_image = T.AugInput(image)
        resize, crop = LargeScaleJitter([50, 50])(given_image).transforms
        assert given_image.image.shape[:2] == (min(resize.new_h, 50), min(resize.new_w, 50))
        assert resize.new_w <= 100 and abs(resize.new_h - resize.new_w * 40 / 60) <= 1
        assert 0 <= crop.x0 <= resize.new_w - crop.w and 0 <= crop.y0 <= resize.new_h - crop.h
        corners.add((crop.x0, crop.y0))
    assert len(corners) > 20


def _weights(place, ratio, side):
    """Return the weight of each pixel of a side at a place of the new one: a triangle around it.

    When an image shrinks, the triangle covers all pixels that become one.
    """
    center, width = (place + 0.5) * ratio, max(ratio, 1)
    weights = [max(1 - abs(at + 0.5 - center) / width, 0) for at in range(side)]
    return np.array(weights) / sum(weights)


@pytest.mark.parametrize("shape", [(12, 17), (9, 5), (1, 4)])
def test_samples_equal_a_reference_pixel_by_pixel(shape):
    """Pixels are weighted means, labels those of the nearest pixel."""
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (*shape, 3)).astype(np.uint8)
    labels = rng.integers(0, 20, shape).astype(np.uint8)
    sides = set()
    for seed in range(12):
        np.random.seed(seed)
        given_image = T.AugInput(image, boxes=np.array([[1.0, 0, 3, 1]]), sem_seg=labels)
        resize, crop = LargeScaleJitter([10, 14], [0.4, 2])(given_image).transforms
        sides.add((crop.h, crop.w))
        made, made_labels = given_image.image, given_image.sem_seg
        assert made.shape == (crop.h, crop.w, 3) and made_labels.shape == (crop.h, crop.w)
        down, across = shape[0] / resize.new_h, shape[1] / resize.new_w
        for row, column in np.ndindex(crop.h, crop.w):
            y, x = row + crop.y0, column + crop.x0
            rows, columns = _weights(y, down, shape[0]), _weights(x, across, shape[1])
            expected = np.einsum("r,c,rck->k", rows, columns, image)
            assert np.abs(made[row, column] - expected).max() < 2  # Pillow rounds twice
            place = np.array([(y + 0.5) * down, (x + 0.5) * across])
            if np.abs(place - place.round()).min() > 1e-6:  # not between two pixels
                assert made_labels[row, column] == labels[tuple(place.astype(int))]
        assert given_image.boxes[0] == pytest.approx(
            [1 / across - crop.x0, -crop.y0, 3 / across - crop.x0, 1 / down - crop.y0]
        )
    assert len(sides) > 3


@pytest.mark.parametrize("scale", [[0, 1], [2, 1], 2])
def test_impossible_scales_are_refused(scale):
    with pytest.raises(ValueError, match="scale=.*positive"):
        LargeScaleJitter(scale=scale)
