"""Random colors follow the formulas of SSD's paper and MMDetection."""

import colorsys

import numpy as np
import pytest

from d2ext.data.loading.augment.color import ColorJitter, Distortion, PhotoMetricDistortion


@pytest.fixture
def image():
    return np.random.default_rng(0).integers(40, 200, (5, 7, 3)).astype(np.uint8)


def _expected(image, change):
    """Compute the changes pixel by pixel, in floating point, for an RGB image."""
    out = np.empty_like(image)
    for at in np.ndindex(image.shape[:2]):
        pixel = image[at].astype(float) + change.brightness
        if not change.contrast_last:
            pixel = pixel * change.contrast
        hue, saturation, value = colorsys.rgb_to_hsv(*pixel)
        saturation = min(saturation * change.saturation, 1)
        pixel = np.array(colorsys.hsv_to_rgb((hue + change.hue / 360) % 1, saturation, value))
        if change.contrast_last:
            pixel = pixel * change.contrast
        out[at] = np.clip(np.rint(pixel[list(change.channels)]), 0, 255)
    return out


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"brightness": 31.5},
        {"brightness": -20, "contrast": 1.5},
        {"contrast": 0.5, "contrast_last": True, "saturation": 1.4},
        {"saturation": 0.6, "hue": 17},
        {"hue": -18, "saturation": 1.5},
        {"channels": (2, 0, 1), "hue": 5},
    ],
)
def test_changes_follow_the_formulas(image, change):
    change = Distortion(is_rgb=True, **change)
    made = change(image)
    assert made.dtype == np.uint8 and made.shape == image.shape
    assert np.abs(made.astype(int) - _expected(image, change)).max() <= 1


def test_the_order_of_channels(image):
    """A BGR image is changed like the same image in RGB."""
    change = {"brightness": 5, "contrast": 1.2, "saturation": 0.7, "hue": 9}
    rgb = Distortion(is_rgb=True, **change)(image)
    bgr = Distortion(is_rgb=False, **change)(np.ascontiguousarray(image[..., ::-1]))
    assert np.array_equal(rgb, bgr[..., ::-1])


def test_values_are_clipped(image):
    assert Distortion(brightness=250)(image).max() == 255
    assert Distortion(brightness=-250)(image).min() == 0


def test_numpys_seed_determines_the_change(image):
    augmentation = PhotoMetricDistortion()

    def changed(seed):
        np.random.seed(seed)
        return augmentation.get_transform(image).apply_image(image)

    assert np.array_equal(changed(3), changed(3))
    assert len({changed(seed).tobytes() for seed in range(20)}) > 15


def test_each_change_is_made_half_of_the_time_within_its_range(image):
    np.random.seed(0)
    augmentation = PhotoMetricDistortion(10, (0.9, 1.1), (0.8, 1.2), 5, "RGB")
    drawn = [augmentation.get_transform(image).op for _ in range(600)]
    for name, low, high, neutral in (
        ("brightness", -10, 10, 0),
        ("contrast", 0.9, 1.1, 1),
        ("saturation", 0.8, 1.2, 1),
        ("hue", -5, 5, 0),
    ):
        values = np.array([getattr(change, name) for change in drawn])
        changed = values[values != neutral]
        assert low <= values.min() and values.max() <= high
        assert 240 < len(changed) < 360 and changed.std() > (high - low) / 5
    assert 240 < sum(change.contrast_last for change in drawn) < 360
    assert all(change.is_rgb for change in drawn)


def test_jitter_keeps_the_mean_level_with_contrast_alone(image):
    np.random.seed(0)
    gray = image[..., :1].repeat(3, axis=2)
    mean = gray.mean()
    for _ in range(20):
        transform = ColorJitter(0, (0.5, 1.2), (1, 1), 0).get_transform(gray)
        expected = (gray - mean) * transform.op.contrast + mean
        assert np.abs(transform.apply_image(gray) - expected).max() <= 0.51


@pytest.mark.parametrize("image_format", ["RGB", "BGR"])
def test_jitter_equals_a_reference_pixel_by_pixel(image, image_format):
    """With the same draws: contrast changes the distance to the mean level of the image."""
    augmentation = ColorJitter(20, (0.6, 1.4), (0.5, 1.5), 12, image_format)
    given = image if image_format == "RGB" else np.ascontiguousarray(image[..., ::-1])
    for seed in range(10):
        np.random.seed(seed)
        made = augmentation.get_transform(given).apply_image(given)
        np.random.seed(seed)
        ranges = ((-20, 20), (0.6, 1.4), (0.5, 1.5), (-12, 12))
        added, contrast, factor, degrees = (np.random.uniform(*limits) for limits in ranges)
        expected = np.empty_like(image)
        for at in np.ndindex(image.shape[:2]):
            pixel = (image[at] - image.mean()) * contrast + image.mean() + added
            hue, saturation, value = colorsys.rgb_to_hsv(*pixel)
            pixel = colorsys.hsv_to_rgb(
                (hue + degrees / 360) % 1, min(saturation * factor, 1), value
            )
            expected[at] = np.clip(np.rint(pixel), 0, 255)
        made = made if image_format == "RGB" else made[..., ::-1]
        assert np.abs(made.astype(int) - expected).max() <= 1


def test_jitter_draws_every_change_uniformly(image):
    np.random.seed(0)
    augmentation = ColorJitter(20, (0.5, 2), (0.8, 1.2), 5, "RGB")
    drawn = [augmentation.get_transform(image).op for _ in range(400)]
    added = [(d.brightness * d.contrast) - image.mean() * (1 - d.contrast) for d in drawn]
    for values, low, high in (
        (added, -20, 20),
        ([d.contrast for d in drawn], 0.5, 2),
        ([d.saturation for d in drawn], 0.8, 1.2),
        ([d.hue for d in drawn], -5, 5),
    ):
        counts, _ = np.histogram(values, 4, (low, high))
        assert counts.sum() == 400 and counts.min() > 70
    assert all(d.is_rgb and d.channels == (0, 1, 2) for d in drawn)


@pytest.mark.parametrize(
    ("make", "arguments", "words"),
    [
        (ColorJitter, {"contrast": (0, 1)}, "contrast=.*positive"),
        (ColorJitter, {"saturation": (1.2, 0.8)}, "saturation=.*the smaller one first"),
        (PhotoMetricDistortion, {"contrast_range": (2, 1)}, "contrast_range=.*smaller one first"),
        (PhotoMetricDistortion, {"saturation_range": (-1, 1)}, "saturation_range=.*from 0"),
    ],
)
def test_impossible_ranges_are_refused(make, arguments, words):
    with pytest.raises(ValueError, match=words):
        make(**arguments)


@pytest.mark.parametrize("augmentation", [ColorJitter(), PhotoMetricDistortion()])
def test_gray_images_change_as_gray_pixels_of_color_images(augmentation):
    """Hue and saturation have no effect on gray."""
    gray = np.random.default_rng(0).integers(0, 256, (6, 7, 1)).astype(np.uint8)
    for seed in range(10):
        made = []
        for image in (gray, gray.repeat(3, axis=2)):
            np.random.seed(seed)
            made.append(augmentation.get_transform(image).apply_image(image))
        assert made[0].shape == gray.shape
        assert np.abs(made[0].astype(int) - made[1]).max() <= 1
