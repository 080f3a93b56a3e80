"""RetinaNet's and FCOS's running mean does not depend on the number of micro-batches."""

import pytest
import torch
from detectron2.modeling.meta_arch.dense_detector import DenseDetector

from d2ext.engine.losses import LossNormalizer


class Counter(DenseDetector):
    """Return the normalizer of a batch with a given number of matched anchors."""

    def __init__(self):
        torch.nn.Module.__init__(self)

    def forward(self, matched):
        """Update the running mean as RetinaNet does."""
        return self._ema_update("loss_normalizer", matched, 100)


def test_micro_batches_of_a_step_start_from_the_same_mean():
    detector = Counter()
    normalizer = LossNormalizer(detector)
    assert [detector(10), detector(30)] == pytest.approx([91, 93])
    normalizer.after_step()
    assert normalizer.value == pytest.approx(92)
    assert [detector(10), detector(30)] == pytest.approx([83.8, 85.8])


def test_a_resumed_normalizer_continues():
    whole, resumed = Counter(), Counter()
    first = LossNormalizer(whole)
    whole(10)
    first.after_step()
    LossNormalizer(resumed, first.value)
    assert resumed(20) == whole(20)


def test_an_evaluation_and_a_failed_step_change_nothing():
    detector = Counter()
    normalizer = LossNormalizer(detector, 50.0)
    detector.eval()
    detector(10)
    normalizer.after_step()
    assert normalizer.value == 50


@pytest.mark.parametrize("value", [None, 50.0])
def test_a_validation_loss_divides_by_an_image_s_share_and_changes_nothing(value):
    detector, average = Counter(), Counter()
    normalizer = LossNormalizer(detector, value)
    detector(10)
    with normalizer.for_images(detector, 2):
        assert detector(10) == pytest.approx(91.0 if value is None else 23.5)
    with normalizer.for_images(average, 2):
        assert average(10) == pytest.approx(91.0 if value is None else 23.5)
    assert normalizer.value == value
    normalizer.after_step()
    assert normalizer.value == pytest.approx(91.0 if value is None else 46.0)
