"""Detections of two models are paired and compared."""

import numpy as np
import pycocotools.mask as mask_util
import pytest

from d2ext.evaluation.instances import Detections
from d2ext.export.verify import compare


def detections(rows, masks=None):
    """Return the columns of (image, label, x, y, width, height, score)."""
    table = np.array(rows, float).reshape(-1, 7)
    image, label = table[:, :2].astype(np.int64).T
    return Detections(image, label, table[:, 2:6], table[:, 6], masks)


def mask(x):
    inside = np.zeros((40, 40), np.uint8, order="F")
    inside[10:20, x : x + 10] = 1
    return mask_util.encode(inside)


def test_equal_detections_do_not_differ():
    one = detections([(0, 0, 5, 5, 10, 10, 0.9), (1, 0, 5, 5, 10, 10, 0.8)], [mask(5), mask(9)])
    found = compare(one, one)
    assert (found.objects, found.alone) == (2, 0)
    assert found.boxes.tolist() == found.scores.tolist() == found.masks.tolist() == [0, 0]


def test_objects_are_paired_within_image_and_class():
    ours = [(0, 0, 5, 5, 10, 10, 0.9), (0, 1, 5, 5, 10, 10, 0.8), (3, 0, 5, 5, 10, 10, 0.7)]
    theirs = [(0, 1, 5, 5, 10, 12, 0.7), (0, 0, 5, 6, 10, 10, 0.9), (2, 0, 5, 5, 10, 10, 0.7)]
    found = compare(detections(ours), detections(theirs))
    assert (found.objects, found.alone) == (3, 2)
    assert sorted(found.boxes) == [1, 2] and sorted(found.scores) == pytest.approx([0, 0.1])
    assert found.masks is None


def test_the_nearest_box_is_taken_once():
    ours = [(0, 0, 0, 0, 10, 10, 0.9), (0, 0, 2, 0, 10, 10, 0.8)]
    theirs = [(0, 0, 2.5, 0, 10, 10, 0.8), (0, 0, 0.25, 0, 10, 10, 0.9)]
    found = compare(detections(ours), detections(theirs))
    assert found.alone == 0 and sorted(found.boxes) == [0.25, 0.5]
    far = compare(detections(ours), detections([(0, 0, 20, 0, 10, 10, 0.9)]))
    assert far.alone == 3 and len(far.boxes) == 0


def test_masks_differ_by_one_minus_their_iou():
    box = [(0, 0, 5, 5, 10, 10, 0.9)]
    found = compare(detections(box, [mask(5)]), detections(box, [mask(10)]))
    assert found.masks.tolist() == pytest.approx([1 - 50 / 150])


def test_no_detections():
    none = detections([])
    for ours, theirs in ((none, none), (none, detections([(0, 0, 1, 1, 2, 2, 0.5)]))):
        found = compare(ours, theirs)
        assert found.objects == 0 and found.alone == len(theirs.scores) and not len(found.boxes)
