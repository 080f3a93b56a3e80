"""MMDetection's SCNet checkpoint in our model gives the same numbers."""

import numpy as np
import pytest
import torch
from detectron2.modeling.poolers import ROIPooler
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage

from d2ext import get_config
from d2ext.errors import UserError
from d2ext.evaluation.tta import with_tta
from d2ext.modeling import scnet
from tests.mmdetection import oracle

RECIPES = {
    "scnet_r50_fpn_1x": "scnet/scnet_r50_fpn_1x_coco.py",
    "scnet_x101_64x4d_fpn_8xb1_20e": "scnet/scnet_x101_64x4d_fpn_8x1_20e_coco.py",
}
NAMES = [pytest.param(n, marks=pytest.mark.nightly if "x101" in n else ()) for n in RECIPES]
STAGES = range(3)


@pytest.fixture(scope="module", params=NAMES)
def name(request):
    return request.param


@pytest.fixture(scope="module")
def model(name, tmp_path_factory):
    config = get_config(RECIPES[name], oracle.REDUCED).model
    return oracle.loaded(config, name, tmp_path_factory.mktemp("weights"))


def test_the_recipe_has_mmdetection_s_tensors(name, model):
    oracle.assert_names_and_shapes(name, model)


@torch.no_grad()
def test_heads_are_equal_on_the_same_boxes(name, model):
    model.eval()
    heads = model.roi_heads
    features = model.backbone(model.preprocess_image(oracle.batch(name)).tensor)
    logits, semantic = heads.semantic_head(features)
    classes, context = heads.context_head(features)
    known = {**features, "semantic": semantic, "context": context}
    levels = [known[key] for key in heads.box_in_features]
    differences = {
        "semantic_logits": oracle.assert_map(name, "semantic_logits", [logits]),
        "semantic_feat": oracle.assert_map(name, "semantic_feat", [semantic]),
        "glbctx_logits": oracle.assert_array(name, "glbctx_logits", classes),
        "glbctx_feat": oracle.assert_array(name, "glbctx_feat", context),
    }
    for stage in STAGES:
        rois = torch.from_numpy(oracle.outputs(name)[f"roi_rois_stage{stage}"])
        boxes = [Boxes(rois[rois[:, 0] == i, 1:]) for i in (0, 1)]
        pooled = heads.box_pooler(levels, boxes)
        scores, deltas = heads.box_predictor[stage](heads.box_head[stage](pooled))
        for key, mine in ((f"roi_cls_stage{stage}", scores), (f"roi_reg_stage{stage}", deltas)):
            differences[key] = oracle.assert_array(name, key, mine)
    data = oracle.inputs(name)
    rois, labels = (torch.from_numpy(data[key]) for key in ("rois", "roi_labels"))
    boxes = [Boxes(rois[rois[:, 0] == i, 1:]) for i in (0, 1)]
    shared = heads.box_head[-1](heads.box_pooler(levels, boxes))
    differences["roi_relayed"] = oracle.assert_map(name, "roi_relayed", [heads.relay_head(shared)])
    masks = heads.mask_head.layers(heads._mask_features(known, boxes))
    own = masks[torch.arange(len(labels)), labels]
    differences["roi_mask"] = oracle.assert_array(name, "roi_mask", own)
    oracle.report(name, **differences)


@pytest.mark.slow
@torch.no_grad()
def test_detections_are_equal(name, model):
    model.eval()
    found = [result["instances"] for result in model(oracle.batch(name))]
    shrunk = oracle.batch(name, [1])[0] | {"height": 294, "width": 362}
    rescaled = [result["instances"] for result in model([shrunk])]
    oracle.report(
        name,
        detections=oracle.assert_detections(name, "det_", found),
        rescaled=oracle.assert_detections(name, "det_rescaled_", rescaled),
    )


def test_losses_and_gradients_are_equal(name, model, monkeypatch):
    model.train()
    oracle.without_chance(monkeypatch)
    recorded = {k: v for k, v in oracle.losses(name).items() if "loss" in k}
    data = oracle.inputs(name)
    labels = np.stack([data["semantic0"], data["semantic1"]]).astype(np.int64)
    with EventStorage():
        images = model.preprocess_image(oracle.batch(name))
        features = model.backbone(images.tensor)
        objects = [oracle.ground_truth(name, i, "bitmap") for i in (0, 1)]
        _, found = model.proposal_generator(images, features, objects)
        proposals = [oracle.proposals(name, i) for i in (0, 1)]
        _, heads = model.roi_heads(images, features, proposals, objects, torch.from_numpy(labels))
    losses = {
        "loss_rpn_cls": found["loss_rpn_cls"],
        "loss_rpn_bbox": found["loss_rpn_loc"],
        "loss_semantic_seg": heads["loss_semantic"],
        "loss_glbctx": heads["loss_context"],
        "loss_mask": heads["loss_mask"],
    }
    for stage in STAGES:
        losses[f"s{stage}.loss_cls"] = heads[f"loss_cls_stage{stage}"]
        losses[f"s{stage}.loss_bbox"] = heads[f"loss_box_reg_stage{stage}"]
    model.zero_grad()
    sum(losses.values()).backward()
    oracle.report(
        name,
        losses=oracle.assert_losses(losses, recorded),
        gradients=oracle.assert_gradients(name, model),
    )


@torch.no_grad()
def test_augmentation_by_the_photo_itself_changes_nothing(name, model, monkeypatch):
    model.eval()
    monkeypatch.setattr(model.roi_heads.box_predictor[-1], "test_topk_per_image", 5)
    photo = oracle.batch(name, [0])[0]["image"][:, :128, :160]
    sample = {"image": photo, "height": 128, "width": 160}
    augmented = with_tta(model, {"min_sizes": [128], "max_size": 160, "flip": False})
    mine, theirs = (each([dict(sample)])[0]["instances"] for each in (augmented, model))
    assert len(mine) == 5 and torch.equal(mine.pred_classes, theirs.pred_classes)
    assert torch.allclose(mine.pred_boxes.tensor, theirs.pred_boxes.tensor, atol=1e-3)
    assert torch.allclose(mine.scores, theirs.scores)
    assert theirs.pred_masks.any()
    assert (mine.pred_masks != theirs.pred_masks).float().mean() < 1e-3


@pytest.mark.parametrize("label", [182, 183, 200, 255, None])
def test_labels_that_the_model_lacks_are_an_error(name, model, label):
    model.train()
    (sample,) = oracle.batch(name, [0])
    sample |= {"instances": oracle.ground_truth(name, 0, "bitmap"), "file_name": "a.jpg"}
    if label is not None:
        sample["sem_seg"] = torch.full(sample["image"].shape[1:], label)
    if label in (182, 255):
        with EventStorage():
            assert model([sample])["loss_semantic"].isfinite()
        return
    words = "a.jpg has no label map" if label is None else f"map of a.jpg has the label {label}"
    with pytest.raises(UserError, match=f"{words}.*; (add|give) "):
        model([sample])


def _semantic(part, features):
    logits, embedded = part(features)
    labels = torch.arange(64).view(1, 8, 8).repeat(1, 8, 8) % 7
    return part.loss(logits, labels) + embedded.square().mean()


def _context(part, features):
    logits, vectors = part(features)
    objects = Instances((64, 64), gt_classes=torch.tensor([0, 2]))
    return part.loss(logits, [objects]) + vectors.square().mean()


def _pooled(part, features):
    boxes = Boxes(torch.tensor([[3.0, 5.0, 40.0, 33.0], [0.0, 0.0, 63.0, 50.0]]))
    inputs = [features["p3"], features["p4"], features["p2"], features["p4"].mean(dim=(2, 3))]
    return part(inputs, [boxes]).square().mean()


def _pooler(scales, size):
    return ROIPooler(size, scales=scales, sampling_ratio=0, pooler_type="ROIAlignV2")


# Each new part with 4 channels, and a loss of its outputs for features of a 64 x 64 image.
PARTS = {
    "semantic": (
        lambda: scnet.SemanticHead(["p2", "p3", "p4"], "p3", channels=4, num_labels=7),
        _semantic,
    ),
    "context": (lambda: scnet.GlobalContextHead("p4", num_classes=3, channels=4), _context),
    "relay": (
        lambda: scnet.FeatureRelayHead(in_channels=4, channels=4, size=3),
        lambda part, features: part(features["p4"].mean(dim=(2, 3))).square().mean(),
    ),
    "mask": (
        lambda: scnet.SCNetMaskHead(num_classes=3, channels=4, num_pairs=2),
        lambda part, features: part.layers(features["p4"]).square().mean(),
    ),
    "pooler": (
        lambda: scnet.ContextPooler(_pooler([1 / 8, 1 / 16], 4), _pooler([1 / 4], 8)),
        _pooled,
    ),
}


@pytest.mark.parametrize("part", PARTS)
def test_gradients_of_new_parts_are_those_of_double_precision(part):
    build, loss_of = PARTS[part]
    torch.manual_seed(0)
    module = build()
    features = {f"p{i}": torch.randn(1, 4, 64 >> i, 64 >> i) for i in (2, 3, 4)}
    found = []
    for kind in (torch.float32, torch.float64):
        module = module.to(kind)
        inputs = {key: x.to(kind).requires_grad_() for key, x in features.items()}
        loss = loss_of(module, inputs)
        sources = [*inputs.values(), *module.parameters()]
        found.append(torch.autograd.grad(loss, sources, allow_unused=True))
    assert sum(gradient is not None for gradient in found[1]) > len(list(module.parameters()))
    for single, double in zip(*found, strict=True):
        if double is not None:
            assert single.isfinite().all() and double.abs().max() > 0
            assert torch.allclose(single.double(), double, rtol=1e-3, atol=1e-6)
