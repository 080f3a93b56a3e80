"""Matching by MMDetection's rule."""

import numpy as np
import pytest
import torch

from d2ext.modeling.matcher import MaxIoUMatcher


def _expected(iou, negative, positive, min_positive):
    """Assign as MMDetection's facts say; -2 is ignored, -1 background."""
    assigned = np.full(iou.shape[1], -2)
    best = iou.max(0)
    assigned[best < negative] = -1
    assigned[best >= positive] = iou.argmax(0)[best >= positive]
    for i, row in enumerate(iou):
        if row.max() >= min_positive:
            assigned[row == row.max()] = i
    return assigned


@pytest.mark.parametrize(
    ("negative", "positive", "min_positive"), [(0.3, 0.7, 0.3), (0.5, 0.5, 0.5), (0.4, 0.5, 0.0)]
)
def test_boxes_and_objects_are_matched(negative, positive, min_positive):
    generator = np.random.default_rng(0)
    matcher = MaxIoUMatcher(negative, positive, min_positive)
    for _ in range(20):
        # Few different values, so that objects share best boxes, and some are far from all boxes.
        iou = (generator.integers(0, 10, (5, 12)) * generator.integers(0, 2, (5, 1)) / 10.0).astype(
            np.float32
        )
        expected = _expected(iou, negative, positive, min_positive)
        matches, labels = matcher(torch.from_numpy(iou))
        assert labels.tolist() == [{-2: -1, -1: 0}.get(a, 1) for a in expected]
        positives = expected >= 0
        assert (matches.numpy()[positives] == expected[positives]).all()


def test_an_object_far_from_all_boxes_gets_none():
    matches, labels = MaxIoUMatcher(0.3, 0.7, 0.3)(torch.tensor([[0.2, 0.1], [0.0, 0.6]]))
    assert labels.tolist() == [0, 1] and matches[1] == 1


def test_without_objects_all_boxes_are_background():
    matches, labels = MaxIoUMatcher(0.3, 0.7, 0.3)(torch.zeros(0, 3))
    assert labels.tolist() == [0, 0, 0] and matches.shape == (3,)
