"""Training of the RPN by MMDetection's rules; tests/mmdetection compares its losses with them."""

import copy

import pytest
import torch
from detectron2.config import instantiate
from detectron2.structures import Boxes, ImageList, Instances
from detectron2.utils.events import EventStorage

from d2ext import get_config
from d2ext.modeling.cpu.fast_layers import use_fast_layers
from d2ext.modeling.rpn import valid_anchors
from tests.detectron2_style.tiny_models import shrink_rcnn

SIZES = [(60, 70), (96, 128)]


@pytest.fixture(scope="module")
def rpn():
    model = get_config("common/models/cascade_mask_rcnn_fpn_pytorch.py").model
    shrink_rcnn(model)
    torch.manual_seed(0)
    return instantiate(model.proposal_generator).train()


@pytest.fixture(scope="module")
def batch():
    """Return images, features and objects of a batch of two sizes; the second image has none."""
    torch.manual_seed(1)
    features = {
        f"p{i}": torch.randn(2, 16, 96 // 2**i + (96 % 2**i > 0), 128 // 2**i) for i in range(2, 7)
    }
    images = ImageList(torch.zeros(2, 3, 96, 128), SIZES)
    objects = [
        Instances(SIZES[0], gt_boxes=Boxes([[5.0, 5.0, 30.0, 40.0], [48.0, 40.0, 70.0, 60.0]])),
        Instances(SIZES[1], gt_boxes=Boxes(torch.zeros(0, 4))),
    ]
    return images, features, objects


def test_anchors_in_the_padding_are_invalid():
    # The image is padded to 64 x 96 pixels; the batch may be larger.
    centers = [[0, 0], [95, 63], [96, 0], [0, 64]]
    anchors = Boxes(torch.tensor([[x - 8.0, y - 8.0, x + 8.0, y + 8.0] for x, y in centers]))
    assert valid_anchors(anchors, (60, 70), -1).tolist() == [True, True, False, False]
    inside = Boxes([[0.0, 0.0, 69.0, 59.0], [0.0, 0.0, 70.0, 59.0], [-1.0, 0.0, 9.0, 9.0]])
    assert valid_anchors(inside, (60, 70), 0).tolist() == [True, False, False]
    assert valid_anchors(inside, (60, 70), 1).tolist() == [True, True, True]


def test_only_valid_anchors_are_sampled_and_an_object_has_its_best_valid_one(rpn, batch):
    _, features, objects = batch
    anchors = rpn.anchor_generator([features[name] for name in rpn.in_features])
    labels, boxes = rpn.label_and_sample_anchors(anchors, objects)
    every = Boxes.cat(anchors)
    for found, size in zip(labels, SIZES, strict=True):
        assert (found >= 0).any()
        assert valid_anchors(every, size, 0)[found >= 0].all()
    assert (labels[1] <= 0).all()
    matched = boxes[0][labels[0] == 1]
    # The second object lies in the corner, so that its best anchor is outside of the image.
    assert {tuple(box) for box in matched.tolist()} == {(5, 5, 30, 40), (48, 40, 70, 60)}


def test_losses_are_averages_over_the_samples(rpn, batch):
    _, features, objects = batch
    levels = [features[name] for name in rpn.in_features]
    anchors = rpn.anchor_generator(levels)
    torch.manual_seed(0)
    labels, boxes = rpn.label_and_sample_anchors(anchors, objects)
    logits = [torch.zeros(2, len(x)) for x in anchors]
    deltas = [torch.zeros(2, len(x), 4) for x in anchors]
    with EventStorage():
        found = rpn.losses(anchors, logits, labels, deltas, boxes)
        few = [torch.where(torch.arange(len(x)) < len(x) // 2, x, -1) for x in labels]
        halved = rpn.losses(anchors, logits, few, deltas, boxes)
    log2 = pytest.approx(0.693147, rel=1e-5)
    assert found["loss_rpn_cls"].item() == log2 and halved["loss_rpn_cls"].item() == log2


def test_the_fast_layer_has_the_same_losses(rpn, batch):
    fast = torch.nn.ModuleList([copy.deepcopy(rpn)])
    use_fast_layers(fast)
    assert type(fast[0]) is not type(rpn)
    found = []
    for module in (rpn, fast[0]):
        torch.manual_seed(0)
        with EventStorage():
            found.append(module(*batch)[1])
    assert found[0].keys() == found[1].keys()
    for name, loss in found[0].items():
        assert torch.allclose(loss, found[1][name], rtol=1e-5), name
