"""PISA's samples, weights and losses are MMDetection's; NMS-match and ranks are checked alone."""

import numpy as np
import pytest
import torch
from detectron2 import model_zoo
from detectron2.config import instantiate
from detectron2.structures import Boxes, Instances, Keypoints, pairwise_iou
from detectron2.utils.events import EventStorage

from d2ext import get_config
from d2ext.modeling import pisa
from tests.mmdetection import oracle

RECIPES = {
    "pisa_faster_rcnn_r50_fpn_1x": "pisa/pisa_faster_rcnn_r50_fpn_1x_coco.py",
    "pisa_faster_rcnn_x101_32x4d_fpn_1x": "pisa/pisa_faster_rcnn_x101_32x4d_fpn_1x_coco.py",
}
X101 = "pisa_faster_rcnn_x101_32x4d_fpn_1x"
# Prefix of the recorded arrays, images of the batch, and samples of an image.
CASES = [
    ("train_", [0, 1], 64),
    ("train_empty_second_", [0, 2], 64),
    ("train_empty_only_", [2], 64),
    ("train_num512_", [0, 1], 512),
]


@pytest.fixture(
    scope="module",
    params=[pytest.param(n, marks=pytest.mark.nightly if n == X101 else ()) for n in RECIPES],
)
def name(request):
    return request.param


@pytest.fixture(scope="module")
def model(name, tmp_path_factory):
    config = get_config(RECIPES[name], oracle.REDUCED).model
    return oracle.loaded(config, name, tmp_path_factory.mktemp("weights"))


def test_the_recipe_has_mmdetection_s_tensors(name, model):
    oracle.assert_names_and_shapes(name, model)


@pytest.mark.slow
@torch.no_grad()
def test_detections_are_equal(name, model):
    model.eval()
    found = [result["instances"] for result in model(oracle.batch(name))]
    oracle.report(name, detections=oracle.assert_detections(name, "det_", found))


@pytest.mark.parametrize(("prefix", "images", "number"), CASES, ids=[c[0] for c in CASES])
def test_samples_losses_and_gradients_are_equal(name, model, monkeypatch, prefix, images, number):
    """Images without objects, and images that keep all their negatives, are included."""
    model.train()
    monkeypatch.setattr(model.roi_heads, "batch_size_per_image", number)
    oracle.without_chance(monkeypatch)
    for function in ("subsample_labels", "add_ground_truth_to_proposals"):
        monkeypatch.setattr(pisa, function, getattr(oracle.roi_heads, function))
    monkeypatch.setattr(torch, "randperm", lambda n, **_: torch.arange(n))
    out = oracle.outputs(name)
    proposals, objects = [], []
    for i, image in enumerate(images):
        objects.append(oracle.ground_truth(name, image))
        found = Instances(objects[-1].image_size)
        found.proposal_boxes = Boxes(torch.from_numpy(out[f"{prefix}proposals{i}"]))
        scores = torch.from_numpy(out[f"{prefix}proposal_scores{i}"])
        found.objectness_logits = torch.logit(scores)
        proposals.append(found)
    with EventStorage():
        with torch.no_grad():
            features = model.backbone(model.preprocess_image(oracle.batch(name, images)).tensor)
        samples = model.roi_heads.sample_by_importance(features, proposals, objects)
        _, losses = model.roi_heads(None, features, proposals, objects)
    worst = []
    for i, found in enumerate(samples):
        boxes = out[f"{prefix}roi_stage0_boxes{i}"]
        assert np.array_equal(found.proposal_boxes.tensor.numpy(), boxes)
        positives = len(out[f"{prefix}roi_stage0_pos{i}"])
        weights = found.get("classification_weight")[positives:]
        worst.append(oracle.assert_array(name, f"{prefix}roi_stage0_neg_weight{i}", weights))
    recorded = dict(zip(out[f"{prefix}loss_names"], out[f"{prefix}loss_values"], strict=True))
    names = {"loss_cls": "loss_cls", "loss_box_reg": "loss_bbox", "loss_carl": "loss_carl"}
    compared = {key: recorded[key] for key in names.values() if recorded[key] != 0}
    for mine, theirs in names.items():
        assert theirs in compared or float(losses[mine].detach()) == 0, mine
    found = {names[key]: loss for key, loss in losses.items() if names[key] in compared}
    model.zero_grad()
    sum(losses.values()).backward()
    oracle.report(
        f"{name} {prefix}",
        weights=max(worst),
        losses=oracle.assert_losses(found, compared),
        gradients=oracle.assert_gradients(name, model, prefix, part="roi_head."),
    )


def test_nms_match_groups_boxes_as_nms_does():
    """The first box of each group is what NMS keeps; ranks count the better boxes of the group."""
    generator = torch.Generator().manual_seed(0)
    corners = torch.rand(200, 2, generator=generator) * 50
    boxes = torch.cat([corners, corners + 10 + torch.rand(200, 2, generator=generator) * 20], 1)
    scores = torch.rand(200, generator=generator)
    ranks = pisa.nms_match_ranks(boxes, scores, 0.5)
    overlaps = pairwise_iou(Boxes(boxes), Boxes(boxes))
    free, expected = set(range(200)), {}
    for first in scores.argsort(descending=True).tolist():
        if first in free:
            group = [i for i in free if i == first or overlaps[first, i] >= 0.5]
            group.sort(key=lambda i: -scores[i])
            expected |= {i: rank for rank, i in enumerate(group)}
            free -= set(group)
    assert ranks.tolist() == [expected[i] for i in range(200)]


def test_gradients_are_finite_and_those_of_double_precision():
    generator = torch.Generator().manual_seed(0)
    layers = pisa.PISAOutputLayers(
        8,
        box2box_transform=_transform(),
        num_classes=3,
        smooth_l1_beta=1.0,
    )
    samples = _samples(generator)
    features = torch.randn(len(samples[0]) * 2, 8, generator=generator)
    gradients = []
    for kind in (torch.float32, torch.float64):
        layers = layers.to(kind)
        inputs = features.to(kind).requires_grad_()
        with EventStorage():
            losses = layers.losses(layers(inputs), [_as(s, kind) for s in samples])
        gradients.append(torch.autograd.grad(sum(losses.values()), inputs)[0])
    assert gradients[0].isfinite().all()
    assert torch.allclose(gradients[0].double(), gradients[1], rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("margin", [5.0, 90.0])
def test_losses_are_finite_if_the_positives_have_none(margin):
    """The cross entropy of a class whose logit is larger by 90 is exactly 0 in float32."""
    samples = _samples(torch.Generator().manual_seed(0))
    classes = torch.cat([s.gt_classes for s in samples])
    logits = torch.zeros(len(classes), 4)
    positives = classes < 3
    logits[positives, classes[positives]] = margin
    logits.requires_grad_()
    layers = pisa.PISAOutputLayers(8, box2box_transform=_transform(), num_classes=3)
    with EventStorage():
        losses = layers.losses((logits, torch.zeros(len(classes), 12)), samples)
    (gradient,) = torch.autograd.grad(sum(losses.values()), logits)
    assert gradient.isfinite().all() and all(loss.isfinite() for loss in losses.values())
    entropy = torch.nn.functional.cross_entropy(logits, classes)  # the sum stays the same
    assert float(losses["loss_cls"].detach()) == pytest.approx(float(entropy.detach()), rel=1e-5)


@pytest.fixture(scope="module")
def heads_with_keypoints():
    cfg = get_config(RECIPES["pisa_faster_rcnn_r50_fpn_1x"], ["model.roi_heads.num_classes=1"])
    theirs = model_zoo.get_config("common/models/keypoint_rcnn_fpn.py").model.roi_heads
    for part in ("in_features", "pooler", "head"):
        cfg.model.roi_heads[f"keypoint_{part}"] = theirs[f"keypoint_{part}"]
    return instantiate(cfg.model.roi_heads)


def _scene():
    """Return random features of an image of 64 x 64 pixels, proposals, and an object."""
    generator = torch.Generator().manual_seed(0)
    features = {
        f"p{i}": torch.randn(1, 256, 64 >> i, 64 >> i, generator=generator) for i in range(2, 6)
    }
    box = torch.tensor([[10.0, 10.0, 40.0, 40.0]])
    shifts = torch.arange(-4, 5)[:, None] * torch.tensor([1.0, 0.5, 1.0, 0.5])
    proposals = Instances((64, 64), proposal_boxes=Boxes(torch.cat([box + shifts, box / 4])))
    proposals.objectness_logits = torch.zeros(len(proposals))
    objects = Instances((64, 64), gt_boxes=Boxes(box), gt_classes=torch.tensor([0]))
    points = torch.tensor([[[20.0 + i, 25.0, 2.0] for i in range(17)]])
    objects.gt_keypoints = Keypoints(points)
    return features, [proposals], [objects]


def test_a_keypoint_head_is_trained(heads_with_keypoints):
    features, proposals, objects = _scene()
    with EventStorage():
        _, losses = heads_with_keypoints.train()(None, features, proposals, objects)
    assert losses["loss_keypoint"].isfinite() and losses["loss_keypoint"] > 0
    assert losses.keys() > {"loss_cls", "loss_box_reg", "loss_carl"}


def test_positives_may_fill_the_batch(heads_with_keypoints, monkeypatch):
    """No negative is chosen then."""
    features, proposals, objects = _scene()
    heads = heads_with_keypoints.train()
    monkeypatch.setattr(heads, "positive_fraction", 1.0)
    monkeypatch.setattr(heads, "batch_size_per_image", 4)
    (samples,) = heads.sample_by_importance(features, proposals, objects)
    assert samples.gt_classes.tolist() == [0] * 4


def _transform():
    from detectron2.modeling.box_regression import Box2BoxTransform

    return Box2BoxTransform(weights=(10.0, 10.0, 5.0, 5.0))


def _samples(generator):
    found = []
    for _ in range(2):
        corners = torch.rand(20, 2, generator=generator) * 40
        sides = 10 + torch.rand(20, 2, generator=generator) * 20
        boxes = torch.cat([corners, corners + sides], 1)
        samples = Instances((100, 100), proposal_boxes=Boxes(boxes), gt_boxes=Boxes(boxes + 1.5))
        samples.gt_classes = torch.arange(20) % 4
        samples.set("classification_weight", torch.ones(20))
        samples.set("object_index", torch.arange(20) // 5)
        found.append(samples)
    return found


def _as(samples, kind):
    found = Instances(samples.image_size)
    for key in ("proposal_boxes", "gt_boxes"):
        found.set(key, Boxes(samples.get(key).tensor.to(kind)))
    found.gt_classes = samples.gt_classes
    found.set("object_index", samples.get("object_index"))
    found.set("classification_weight", samples.get("classification_weight").to(kind))
    return found
