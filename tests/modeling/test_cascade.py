"""Cascade R-CNN by MMDetection's rules; tests/mmdetection compares its numbers with them."""

import pytest
import torch
from detectron2.config import instantiate
from detectron2.modeling.roi_heads.cascade_rcnn import CascadeROIHeads
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage

from d2ext import get_config
from tests.detectron2_style.tiny_models import shrink_rcnn

SIZE = (64, 64)
OBJECTS = [[4.0, 4.0, 30.0, 40.0], [30.0, 30.0, 60.0, 62.0]]


def _heads(**changes):
    model = get_config("common/models/cascade_rcnn_fpn_pytorch.py").model
    shrink_rcnn(model)
    model.roi_heads.update(changes)
    torch.manual_seed(0)
    return instantiate(model.roi_heads)


@pytest.fixture(scope="module")
def features():
    torch.manual_seed(1)
    return {f"p{i}": torch.randn(1, 16, 64 // 2**i, 64 // 2**i) for i in range(2, 7)}


def _proposals():
    boxes = torch.tensor(OBJECTS).repeat(8, 1) + torch.linspace(-3, 3, 16)[:, None]
    found = Instances(SIZE, proposal_boxes=Boxes(boxes), objectness_logits=torch.zeros(16))
    found.proposal_boxes.clip(SIZE)
    return [found]


def test_scores_from_probabilities_are_detectron2s(features):
    mine = _heads(average_logits=False)
    theirs = _heads(_target_=CascadeROIHeads)
    theirs.load_state_dict(mine.state_dict())
    results = []
    for heads in (mine, theirs, _heads()):
        with torch.no_grad():
            (found,), _ = heads.eval()(None, features, _proposals())
        results.append(found)
    assert torch.allclose(results[0].pred_boxes.tensor, results[1].pred_boxes.tensor, atol=1e-4)
    assert torch.allclose(results[0].scores, results[1].scores, atol=1e-6)
    assert not torch.allclose(results[0].scores, results[2].scores, atol=1e-6)


def test_each_stage_samples_again_and_has_its_weight(features):
    targets = [Instances(SIZE, gt_boxes=Boxes(OBJECTS), gt_classes=torch.tensor([0, 1]))]
    losses, sampled = [], []
    for weights in ([1, 0.5, 0.25], [1, 1, 1]):
        heads = _heads(stage_loss_weights=weights).train()
        torch.manual_seed(2)
        with EventStorage() as storage:
            samples, found = heads(None, features, _proposals(), targets)
        losses.append(found)
        counts = storage.latest()
        sampled.append([counts[f"stage{s}/roi_head/num_fg_samples"][0] for s in range(3)])
    assert sampled[0] == sampled[1] and min(sampled[0]) >= 1
    # The objects are among the samples of every stage.
    assert samples[0].is_object.any() and (samples[0].gt_classes[samples[0].is_object] < 2).all()
    for stage, weight in enumerate([1, 0.5, 0.25]):
        for name in ("loss_cls", "loss_box_reg"):
            key = f"{name}_stage{stage}"
            assert losses[0][key].item() == pytest.approx(weight * losses[1][key].item())


def test_an_image_without_objects_trains(features):
    targets = [Instances(SIZE, gt_boxes=Boxes(torch.zeros(0, 4)), gt_classes=torch.zeros(0).long())]
    with EventStorage():
        _, losses = _heads().train()(None, features, _proposals(), targets)
    assert all(torch.isfinite(loss) for loss in losses.values())
    assert losses["loss_box_reg_stage2"] == 0
