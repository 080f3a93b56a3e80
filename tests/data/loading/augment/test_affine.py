"""Rotated and sheared pixels, points and polygons equal those computed one by one."""

import math

import detectron2.data.transforms as T
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from d2ext.data.loading.augment.affine import RandomRotateShear

PAD = (90.0, 128.4, 140.0)
ANGLES = st.floats(-180, 180)
SHEARS = st.floats(-40, 40)
SIDES = st.integers(1, 60)


def _transform(height, width, angle, shear, expand=True):
    """Return the transform of one angle and one shear, which need no draw."""
    augmentation = RandomRotateShear([angle, angle], [shear, shear], expand, PAD)
    return augmentation.get_transform(np.zeros((height, width, 3), np.uint8))


def _moved(point, sides, new_sides, angle, shear):
    """Return a point's new place: the center stays the center."""
    x, y = point[0] - sides[1] / 2, point[1] - sides[0] / 2
    slope = math.tan(math.radians(shear))
    x, y = x + slope * y, y + slope * x
    distance, direction = math.hypot(x, y), math.atan2(-y, x) + math.radians(angle)
    x, y = distance * math.cos(direction), -distance * math.sin(direction)
    return x + new_sides[1] / 2, y + new_sides[0] / 2


def _inside(point, polygon):
    """Return whether a ray to the right crosses the polygon's edges an odd number of times."""
    x, y = point
    crossings = 0
    for (x0, y0), (x1, y1) in zip(polygon, np.roll(polygon, -1, axis=0), strict=True):
        if (y0 > y) != (y1 > y) and x < x0 + (y - y0) / (y1 - y0) * (x1 - x0):
            crossings += 1
    return crossings % 2 == 1


@given(SIDES, SIDES, ANGLES, SHEARS, st.booleans(), st.tuples(*[st.floats(-50, 90)] * 2))
def test_points_are_sheared_and_rotated_counterclockwise(
    height, width, angle, shear, expand, point
):
    transform = _transform(height, width, angle, shear, expand)
    made = transform.apply_image(np.zeros((height, width, 3), np.uint8))
    expected = _moved(point, (height, width), made.shape, angle, shear)
    assert transform.apply_coords(np.array([point]))[0] == pytest.approx(expected, abs=1e-6)


@given(SIDES, SIDES, ANGLES, SHEARS)
def test_an_expanded_image_holds_the_whole_image_and_not_more(height, width, angle, shear):
    transform = _transform(height, width, angle, shear)
    corners = np.array([[0, 0], [width, 0], [width, height], [0, height]], float)
    moved = transform.apply_coords(corners)
    sides = np.array([transform.width, transform.height])
    assert (moved > -1e-5).all() and (moved < sides + 1e-5).all()
    assert (moved.max(axis=0) - moved.min(axis=0) > sides - 1 - 1e-5).all()


@pytest.mark.parametrize(
    ("angle", "shear", "expand"), [(20, 0, True), (-35, 8, True), (0, -20, False), (130, 5, False)]
)
@pytest.mark.parametrize("shape", [(17, 23), (1, 1), (1, 12)])
def test_pixels_are_those_of_the_place_that_they_come_from(shape, angle, shear, expand):
    height, width = shape
    rng = np.random.default_rng(0)
    rows, columns = np.mgrid[:height, :width]
    image = np.stack([100 + 2 * rows, 150 - columns, 110 + rows + columns], axis=2).astype(np.uint8)
    labels = rng.integers(0, 20, shape).astype(np.uint8)
    transform = _transform(height, width, angle, shear, expand)
    made, made_labels = transform.apply_image(image), transform.apply_segmentation(labels)
    new_height, new_width = made_labels.shape
    assert made.shape == (new_height, new_width, 3) and made.dtype == np.uint8
    matrix = T.TransformList([transform]).transforms[0].matrix
    inverse = np.linalg.inv(np.vstack([matrix, [0, 0, 1]]))
    padded = np.full((height + 2, width + 2, 3), np.rint(PAD))
    padded[1:-1, 1:-1] = image
    compared = 0
    for row, column in np.ndindex(new_height, new_width):
        x, y, _ = inverse @ [column + 0.5, row + 0.5, 1]
        # Pixels, bilinearly between four centers.
        left, top = math.floor(x - 0.5), math.floor(y - 0.5)
        right_share, bottom_share = x - 0.5 - left, y - 0.5 - top
        expected = np.zeros(3)
        for at_x, share_x in ((left, 1 - right_share), (left + 1, right_share)):
            for at_y, share_y in ((top, 1 - bottom_share), (top + 1, bottom_share)):
                outside = not (-1 <= at_x <= width and -1 <= at_y <= height)
                color = padded[0, 0] if outside else padded[at_y + 1, at_x + 1]
                expected += share_x * share_y * color
        assert made[row, column] == pytest.approx(expected, abs=3)
        # Labels, of the pixel that contains the place. OpenCV rounds places to fractions.
        if all(0.05 < value % 1 < 0.95 for value in (x, y)):
            inside = 0 <= x < width and 0 <= y < height
            assert made_labels[row, column] == (labels[int(y), int(x)] if inside else 255)
            compared += 1
    assert compared


@given(st.integers(0, 2**32 - 1), ANGLES, SHEARS, st.booleans())
def test_polygons_stay_polygons_and_are_clipped_only_to_an_image_of_the_same_size(
    seed, angle, shear, expand
):
    rng = np.random.default_rng(seed)
    directions = (np.arange(7) + rng.uniform(0, 1, 7)) * 2 * np.pi / 7
    star = np.stack([np.cos(directions), np.sin(directions)], axis=1) * rng.uniform(2, 25, (7, 1))
    star += [20, 15]
    transform = _transform(30, 40, angle, shear, expand)
    polygons = transform.apply_polygons([star.copy()])
    if expand:
        assert len(polygons) == 1 and len(polygons[0]) == 7
    matrix = T.TransformList([transform]).transforms[0].matrix
    inverse = np.linalg.inv(np.vstack([matrix, [0, 0, 1]]))
    for point in rng.uniform([0, 0], [40, 30], (60, 2)):
        before = (inverse @ [*point, 1])[:2]
        assert _inside(before, star) == any(_inside(point, p) for p in polygons)
    if not expand and polygons:
        points = np.concatenate(polygons)
        assert points.min() > -1e-6 and (points < [40 + 1e-6, 30 + 1e-6]).all()


def test_gray_images_and_mirrored_arrays():
    gray = np.arange(12, dtype=np.uint8).reshape(3, 4, 1)
    assert _transform(3, 4, 90, 0).apply_image(gray).shape == (4, 3, 1)
    image = np.random.default_rng(0).integers(0, 255, (5, 6, 3)).astype(np.uint8)
    mirrored = _transform(5, 6, 30, 0).apply_image(image[:, ::-1])
    assert np.array_equal(mirrored, _transform(5, 6, 30, 0).apply_image(image[:, ::-1].copy()))


def test_right_angles_move_pixels_without_change():
    image = np.random.default_rng(0).integers(0, 255, (5, 6, 3)).astype(np.uint8)
    for turns in range(4):
        made = _transform(5, 6, 90 * turns, 0).apply_image(image)
        assert np.array_equal(made, np.rot90(image, turns))


def test_angles_and_shears_are_uniform():
    np.random.seed(0)
    image = np.zeros((9, 9, 3), np.uint8)
    rotate, shear = RandomRotateShear([-10, 30], [0, 0]), RandomRotateShear([0, 0], [-20, 5])
    rotations = [rotate.get_transform(image).matrix for _ in range(400)]
    shears = [shear.get_transform(image).matrix for _ in range(400)]
    for values, low, high in (
        ([math.atan2(m[0, 1], m[0, 0]) for m in rotations], -10, 30),
        ([math.atan(m[0, 1]) for m in shears], -20, 5),
        ([math.atan(m[1, 0]) for m in shears], -20, 5),
    ):
        counts, _ = np.histogram(np.degrees(values), 4, (low, high))
        assert counts.sum() == 400 and counts.min() > 70


def test_a_shear_of_45_degrees_is_refused():
    with pytest.raises(ValueError, match="shear=.*between -45 and 45"):
        RandomRotateShear(shear=[-45, 0])
