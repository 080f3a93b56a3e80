"""Quarter turns move every pixel, box and point to the same place."""

import numpy as np
import pytest

from d2ext.data.loading.augment.quarter_turn import QuarterTurnTransform, RandomQuarterTurn


@pytest.mark.parametrize("turns", range(4))
@pytest.mark.parametrize("shape", [(5, 7), (1, 1), (1, 4)])
def test_pixels_points_and_boxes_agree(turns, shape):
    height, width = shape
    image = np.arange(height * width * 3).reshape(height, width, 3).astype(np.uint8)
    turn = QuarterTurnTransform(turns, height, width)
    made, labels = turn.apply_image(image), turn.apply_segmentation(image[..., 0])
    assert made.shape == ((width, height, 3) if turns % 2 else image.shape)
    for row, column in np.ndindex(height, width):
        ((x, y),) = turn.apply_coords(np.array([[column + 0.5, row + 0.5]]))
        assert np.array_equal(made[int(y), int(x)], image[row, column])
        assert labels[int(y), int(x)] == image[row, column, 0]
        (box,) = turn.apply_box(np.array([[column, row, column + 1, row + 1]]))
        assert box.tolist() == [x - 0.5, y - 0.5, x + 0.5, y + 0.5]


def test_one_turn_is_counterclockwise():
    """The right end of a row is at the top after one turn."""
    row = np.array([[[1], [2], [3]]], np.uint8)
    assert QuarterTurnTransform(1, 1, 3).apply_image(row)[:, 0, 0].tolist() == [3, 2, 1]


def test_turns_are_drawn_equally_often():
    np.random.seed(0)
    image = np.zeros((2, 3, 3), np.uint8)
    turns = [RandomQuarterTurn().get_transform(image).turns for _ in range(400)]
    assert min(np.bincount(turns, minlength=4)) > 70 and max(turns) == 3
