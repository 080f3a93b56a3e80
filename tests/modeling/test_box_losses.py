"""IoU losses of decoded boxes, compared with their formulas."""

import math

import pytest
import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling.box_regression import Box2BoxTransform

from d2ext.modeling.box_losses import (
    IoULossOutputLayers,
    bounded_iou_loss,
    ciou_loss,
    iou_loss,
)

BOX = torch.tensor([[0.0, 0.0, 10.0, 10.0]])


def test_iou_loss_is_the_negative_logarithm():
    targets = torch.tensor([[0.0, 0.0, 10.0, 5.0], [20.0, 20.0, 30.0, 30.0]])
    loss = iou_loss(BOX.expand(2, 4), targets)
    assert loss.tolist() == pytest.approx([-math.log(0.5), -math.log(1e-6)])


def test_bounded_iou_loss_has_a_term_for_each_coordinate():
    # The center is 2 pixels to the right, and the height is a half.
    loss = bounded_iou_loss(BOX, torch.tensor([[2.0, 2.5, 12.0, 7.5]]))
    x, height = 1 - 6 / 14, 0.5
    assert loss[0].tolist() == pytest.approx([x - 0.1, 0, 0, height - 0.1], abs=1e-3)


@pytest.mark.parametrize(("height", "counts"), [(6.0, True), (4.0, False)])
def test_ciou_loss_counts_the_aspect_ratio_over_an_iou_of_a_half(height, counts):
    loss = ciou_loss(BOX, torch.tensor([[0.0, 0.0, 10.0, height]]))
    iou, distance = height / 10, (5 - height / 2) ** 2 / 200
    ratio = 4 / math.pi**2 * (math.atan(10 / height) - math.pi / 4) ** 2
    weight = ratio / (1 - iou + ratio) if counts else 0
    assert loss.item() == pytest.approx(1 - iou + distance + weight * ratio, abs=1e-5)


@pytest.mark.parametrize("agnostic", [False, True])
def test_the_predictor_takes_the_own_class_of_positive_boxes(agnostic):
    predictor = IoULossOutputLayers(
        ShapeSpec(channels=4),
        box2box_transform=Box2BoxTransform(weights=(10, 10, 5, 5)),
        num_classes=2,
        cls_agnostic_bbox_reg=agnostic,
        box_reg_loss_type="iou",
    )
    deltas = torch.zeros(3, 4 if agnostic else 8)
    deltas[0, -4] = 5.0  # half a width to the right, of class 1
    classes = torch.tensor([1, 2, 2])  # 2 is background
    loss = predictor.box_reg_loss(BOX.expand(3, 4), BOX.expand(3, 4), deltas, classes)
    assert loss.item() == pytest.approx(-math.log(1 / 3) / 3, rel=1e-5)
