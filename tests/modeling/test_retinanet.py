"""RetinaNet by MMDetection's rules, computed again here with plain formulas.

The rules: P6 = conv(C5), P7 = conv(P6) without a ReLU. Anchors have sizes 4 x stride x 2^(i/3) and
ratios height/width of 0.5, 1, 2. An anchor is positive if its IoU with an object is 0.5 or more, or
the largest of all anchors with that object; background below 0.4. The focal loss and the L1 loss
are divided by the sum of each image's number of positives, at least 1. Boxes are clipped to the
image before non-maximum suppression.
"""

import pytest
import torch
from detectron2.config import instantiate
from detectron2.structures import Boxes, Instances, pairwise_iou
from detectron2.utils.events import EventStorage
from torch.nn import functional as F

from d2ext import get_config
from d2ext.modeling.rpn import valid_anchors
from tests.detectron2_style.tiny_models import shrink_retinanet

RECIPE = "common/models/retinanet_fpn_pytorch.py"


@pytest.fixture(scope="module")
def model():
    config = get_config(RECIPE).model
    shrink_retinanet(config)
    torch.manual_seed(0)
    return instantiate(config)


def test_p7_has_no_relu_before_it(model):
    block = model.backbone.top_block
    c5 = torch.randn(1, 64, 8, 8)
    p6, p7 = block(c5)
    assert torch.equal(p6, block.p6(c5)) and (p6 < 0).any()
    assert torch.equal(p7, block.p7(p6)) and not torch.equal(p7, block.p7(p6.relu()))


def test_anchors_have_three_sizes_and_three_ratios():
    generator = instantiate(get_config(RECIPE).model.anchor_generator)
    for stride, cell in zip((8, 16, 32, 64, 128), generator.cell_anchors, strict=True):
        expected = []
        for size in (4 * stride * 2 ** (i / 3) for i in range(3)):
            for ratio in (0.5, 1, 2):
                w, h = size / ratio**0.5, size * ratio**0.5
                expected.append([-w / 2, -h / 2, w / 2, h / 2])
        assert torch.allclose(cell, torch.tensor(expected))


def test_losses_are_divided_by_the_number_of_positives(model):
    torch.manual_seed(1)
    sizes = [(64, 64), (96, 128)]  # the batch has 96 x 128 pixels
    objects = [
        Instances(
            sizes[0],
            gt_boxes=Boxes([[4.0, 4.0, 30.0, 40.0], [50.0, 50.0, 62.0, 62.0]]),
            gt_classes=torch.tensor([0, 1]),
        ),
        Instances(sizes[1], gt_boxes=Boxes(torch.zeros(0, 4)), gt_classes=torch.zeros(0).long()),
    ]
    features = [torch.randn(2, 16, -(-96 // s), -(-128 // s)) for s in (8, 16, 32, 64, 128)]
    with EventStorage(), torch.no_grad():
        predictions = model.head(features)
        found = model.forward_training(None, features, predictions, objects)
        again = model.forward_training(None, features, predictions, objects)
    assert found == again  # there is no running mean

    anchors = Boxes.cat(model.anchor_generator(features))
    logits, deltas = (
        torch.cat([x.unflatten(1, (9, -1)).permute(0, 3, 4, 1, 2).flatten(1, 3) for x in levels], 1)
        for levels in predictions
    )
    focal, l1, positives = 0.0, 0.0, 0
    for i, image in enumerate(objects):
        valid = valid_anchors(anchors, image.image_size, -1).nonzero()[:, 0]
        iou = pairwise_iou(image.gt_boxes, anchors[valid])
        own = torch.full((len(valid),), -1)
        ignored = torch.zeros(len(valid), dtype=torch.bool)
        for j, row in enumerate(iou):
            best = row >= iou.max(0).values
            ignored |= best & (row >= 0.4) & (row < 0.5)
            own[best & (row >= 0.5)] = j
        for j, row in enumerate(iou):
            own[row == row.max()] = j
        ignored &= own < 0
        targets = torch.zeros(len(valid), 2)
        positive = own >= 0
        targets[positive, image.gt_classes[own[positive]]] = 1
        p = logits[i, valid].sigmoid()
        right = torch.where(targets == 1, p, 1 - p)
        weight = torch.where(targets == 1, 0.25, 0.75)
        focal += (-weight * (1 - right) ** 2 * right.log())[~ignored].sum()
        boxes = anchors.tensor[valid][positive]
        wanted = model.box2box_transform.get_deltas(boxes, image.gt_boxes.tensor[own[positive]])
        l1 += F.l1_loss(deltas[i, valid][positive], wanted, reduction="sum")
        positives += max(int(positive.sum()), 1)
    assert positives > 2
    assert found["loss_cls"].item() == pytest.approx(focal.item() / positives, rel=1e-4)
    assert found["loss_box_reg"].item() == pytest.approx(l1.item() / positives, rel=1e-4)


def test_boxes_are_clipped_before_non_maximum_suppression(model):
    # Inside of the image, the boxes are the same; outside, they differ.
    anchors = [Boxes([[0.0, 0.0, 10.0, 10.0], [0.0, -40.0, 10.0, 10.0], [30.0, 30.0, 40.0, 40.0]])]
    scores = [torch.tensor([[0.9, 0.0], [0.8, 0.0], [0.7, 0.0]])]
    found = model.inference_single_image(anchors, scores, [torch.zeros(3, 4)], (20, 20))
    assert found.pred_boxes.tensor.tolist() == [[0, 0, 10, 10]]  # the third one is outside
