"""Blur, JPEG and noise equal what is computed pixel by pixel, or by Pillow."""

import io
import math

import numpy as np
import pytest
from PIL import Image

from d2ext.data.loading.augment.quality import (
    Blur,
    Jpeg,
    Noise,
    RandomBlur,
    RandomJpeg,
    RandomNoise,
)


@pytest.fixture
def image():
    return np.random.default_rng(0).integers(0, 256, (9, 13, 3)).astype(np.uint8)


def _mirrored(at, side):
    """Return the pixel that stands for one outside of the image: d c b a | a b c d | d c b a."""
    at %= 2 * side
    return min(at, 2 * side - 1 - at)


def _blurred(image, sigma):
    """Blur pixel by pixel, in floating point."""
    reach = math.ceil(3 * sigma)
    offsets = range(-reach, reach + 1)
    weights = np.array([math.exp(-(i**2) / (2 * sigma**2)) for i in offsets])
    weights /= weights.sum()
    height, width = image.shape[:2]
    out = np.zeros(image.shape)
    for row, column in np.ndindex(height, width):
        for dy, wy in zip(offsets, weights, strict=True):
            for dx, wx in zip(offsets, weights, strict=True):
                at = _mirrored(row + dy, height), _mirrored(column + dx, width)
                out[row, column] += wy * wx * image[at]
    return out


@pytest.mark.parametrize("sigma", [0.2, 0.8, 2])
@pytest.mark.parametrize("shape", [(9, 13), (1, 1), (1, 5)])
def test_blur_is_a_gaussian_average(image, shape, sigma):
    image = image[: shape[0], : shape[1]]
    made = Blur(sigma)(image)
    assert made.dtype == np.uint8
    assert np.abs(made - _blurred(image, sigma)).max() <= 2


@pytest.mark.parametrize("quality", [10, 60, 95])
def test_jpeg_is_pillow_s(quality):
    """Two decoders may round differently."""
    rows, columns = np.mgrid[:40, :56]
    rgb = np.stack([4 * rows, 200 - 2 * columns, 2 * (rows + columns)], axis=2).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(rgb).save(file, "JPEG", quality=quality)
    expected = np.asarray(Image.open(file)).astype(int)
    made = Jpeg(quality, is_rgb=True)(rgb)
    assert np.abs(made - expected).mean() < 1 and np.abs(made - expected).max() <= 8
    assert np.array_equal(Jpeg(quality)(rgb[..., ::-1]), made[..., ::-1])


def test_lower_qualities_change_more(image):
    errors = [np.abs(Jpeg(q)(image).astype(int) - image).mean() for q in (95, 60, 10)]
    assert errors == sorted(errors) and errors[0] < errors[2]


def test_noise_has_its_standard_deviation():
    image = np.full((100, 100, 3), 128, np.uint8)
    noise = Noise(6, seed=3)(image).astype(float) - 128
    assert noise.mean() == pytest.approx(0, abs=0.2)
    assert noise.std() == pytest.approx(6, rel=0.03)
    assert abs(np.corrcoef(noise[..., 0].ravel(), noise[..., 1].ravel())[0, 1]) < 0.05
    assert abs(np.corrcoef(noise[:-1].ravel(), noise[1:].ravel())[0, 1]) < 0.05


def test_noise_is_added_and_rounded(image):
    drawn = np.random.default_rng(4).standard_normal(image.shape, np.float32)
    expected = np.clip(np.rint(image + drawn * np.float32(7.5)), 0, 255)
    assert np.array_equal(Noise(7.5, seed=4)(image), expected)


def test_noise_is_clipped():
    ends = np.array([[[0, 255, 0]]], np.uint8).repeat(50, 0)
    made = Noise(5, seed=0)(ends)
    assert made[:, 0, 0].max() < 40 and made[:, 0, 1].min() > 215


@pytest.mark.parametrize(
    ("augmentation", "name", "low", "high"),
    [
        (RandomBlur([0.5, 3]), "sigma", 0.5, 3),
        (RandomJpeg([30, 33]), "quality", 29.5, 33.5),
        (RandomNoise([2, 8]), "std", 2, 8),
    ],
)
def test_strengths_are_uniform(image, augmentation, name, low, high):
    np.random.seed(0)
    values = [getattr(augmentation.get_transform(image).op, name) for _ in range(400)]
    counts, _ = np.histogram(values, 4, (low, high))
    assert counts.sum() == 400 and counts.min() > 70


@pytest.mark.parametrize("augmentation", [RandomBlur(), RandomJpeg(), RandomNoise()])
def test_transforms_are_repeatable_and_keep_shapes(image, augmentation):
    np.random.seed(1)
    transforms = [augmentation.get_transform(image) for _ in range(2)]
    made = [t.apply_image(image) for t in transforms]
    assert np.array_equal(made[0], transforms[0].apply_image(image))
    assert not np.array_equal(*made)
    gray = image[..., :1]
    assert transforms[0].apply_image(gray).shape == gray.shape
    upside_down = image[::-1]
    expected = transforms[0].apply_image(upside_down.copy())
    assert np.array_equal(transforms[0].apply_image(upside_down), expected)


@pytest.mark.parametrize(
    ("make", "value", "field"),
    [
        (RandomBlur, [0, 1], "sigma"),
        (RandomJpeg, [0, 50], "quality"),
        (RandomJpeg, [50, 101], "quality"),
        (RandomNoise, [-1, 1], "std"),
        (RandomBlur, [2, 1], "sigma"),
        (RandomJpeg, [90, 40], "quality"),
        (RandomJpeg, 80, "quality"),
        (RandomNoise, [1, 2, 3], "std"),
        (RandomNoise, "ab", "std"),
    ],
)
def test_impossible_strengths_are_refused(make, value, field):
    with pytest.raises(ValueError, match=f"{field}=.*give"):
        make(value)
