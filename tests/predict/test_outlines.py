"""Simplified outlines keep an IoU of 0.95 with their mask, and have few points."""

import cv2
import hypothesis
import numpy as np
import pycocotools.mask as mask_util
import pytest
from hypothesis import strategies as st

from d2ext.predict.outlines import simplified


def encoded(pixels):
    """Return a mask as a compressed RLE, as in a prediction."""
    rle = mask_util.encode(np.asfortranarray(pixels, dtype=np.uint8))
    return {"size": rle["size"], "counts": rle["counts"].decode()}


def iou(polygons, rle):
    """Return the IoU of polygons, rasterized by pycocotools, with a mask."""
    drawn = mask_util.merge(mask_util.frPyObjects(polygons, *rle["size"]))
    return mask_util.iou([drawn], [rle], [0])[0, 0]


def points(polygons):
    return [len(polygon) // 2 for polygon in polygons]


def _noise(rng, shape):
    return rng.random(shape) < rng.random()


def _blobs(rng, shape):
    """Return smooth blobs, which touch the border and have holes and islands."""
    return cv2.GaussianBlur(rng.random(shape), (0, 0), 3) > 0.5


def _line(rng, shape):
    pixels = np.zeros(shape, np.uint8)
    ends = [(int(rng.integers(shape[1])), int(rng.integers(shape[0]))) for _ in range(2)]
    return cv2.line(pixels, *ends, 1, 1)


def _pixel(rng, shape):
    pixels = np.zeros(shape, np.uint8)
    pixels[rng.integers(shape[0]), rng.integers(shape[1])] = 1
    return pixels


@hypothesis.settings(max_examples=120)
@hypothesis.given(
    st.sampled_from([_noise, _blobs, _line, _pixel]),
    st.tuples(st.integers(1, 60), st.integers(1, 60)),
    st.integers(0, 2**32 - 1),
    st.booleans(),
)
def test_outlines_cover_the_mask(make, shape, seed, one_outline):
    """All coordinates are in the image; with `one_outline` there is a single polygon."""
    pixels = make(np.random.default_rng(seed), shape)
    rle = encoded(pixels)
    polygons = simplified(rle, one_outline)
    if not pixels.any():
        assert polygons == []
        return
    assert iou(polygons, rle) >= 0.95
    assert not one_outline or len(polygons) == 1
    for polygon in polygons:
        assert len(polygon) >= 6
        assert (
            0 <= min(polygon) and max(polygon[::2]) <= shape[1] and max(polygon[1::2]) <= shape[0]
        )


def test_large_smooth_masks_need_few_points():
    pixels = np.zeros((700, 900), np.uint8)
    cv2.ellipse(pixels, (400, 300), (350, 200), 20, 0, 360, 1, -1)
    polygons = simplified(encoded(pixels))
    assert points(polygons)[0] <= 16 and len(polygons) == 1
    pixels[:] = 0
    pixels[100:300, 200:500] = 1
    assert points(simplified(encoded(pixels))) == [4]


@pytest.mark.parametrize("one_outline", [False, True])
def test_large_holes_and_parts_stay_and_specks_vanish(one_outline):
    pixels = np.zeros((200, 300), np.uint8)
    cv2.circle(pixels, (80, 100), 60, 1, -1)
    cv2.circle(pixels, (80, 100), 30, 0, -1)
    pixels[40:160, 200:280] = 1
    clean = simplified(encoded(pixels), one_outline)
    assert len(clean) == (1 if one_outline else 2)
    pixels[10, 10] = pixels[190, 290] = 1  # specks
    pixels[100, 240] = 0
    speckled = simplified(encoded(pixels), one_outline)
    assert iou(speckled, encoded(pixels)) >= 0.95 and len(speckled) == len(clean)
    drawn = mask_util.decode(mask_util.merge(mask_util.frPyObjects(speckled, 200, 300)))
    assert not drawn[100, 80] and not drawn[10, 10] and drawn[100, 240]


def test_small_masks_keep_their_shape():
    """A ring of pixels around one keeps its hole, which is a ninth of the area."""
    pixels = np.zeros((9, 9), np.uint8)
    pixels[3:6, 3:6] = 1
    pixels[4, 4] = 0
    assert iou(simplified(encoded(pixels)), encoded(pixels)) == 1
