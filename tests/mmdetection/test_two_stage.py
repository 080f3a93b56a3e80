"""MMDetection's Faster and Mask R-CNN checkpoints give the same numbers in our models.

These are built from recipes, and from configs of MMDetection.
"""

import pytest
import torch
from detectron2.structures import Boxes
from detectron2.utils.events import EventStorage

from d2ext import get_config
from tests.mmdetection import oracle

LEVELS = ["p2", "p3", "p4", "p5", "p6"]
RECIPES = {
    "faster_rcnn_r50_caffe_fpn_1x": "faster_rcnn/faster_rcnn_r50_caffe_fpn_1x_coco.py",
    "mask_rcnn_r50_caffe_fpn_ms_poly_1x": "mask_rcnn/mask_rcnn_r50_caffe_fpn_ms_poly_1x_coco.py",
    "mask_rcnn_r50_fpn_1x": "mask_rcnn/mask_rcnn_r50_fpn_1x_coco.py",
    "mask_rcnn_x101_32x4d_fpn_1x": "mask_rcnn/mask_rcnn_x101_32x4d_fpn_1x_coco.py",
}
SLOW = {"mask_rcnn_x101_32x4d_fpn_1x"}


@pytest.fixture(
    scope="module",
    params=[pytest.param(n, marks=pytest.mark.slow if n in SLOW else ()) for n in RECIPES],
)
def name(request):
    return request.param


@pytest.fixture(scope="module")
def model(name, tmp_path_factory):
    """Return a recipe's model with the checkpoint of MMDetection's config of the same name."""
    config = get_config(RECIPES[name], oracle.REDUCED).model
    return oracle.loaded(config, name, tmp_path_factory.mktemp("weights"))


@pytest.fixture(
    scope="module",
    params=[
        "mask_rcnn_r50_fpn_1x",
        pytest.param("mask_rcnn_r50_caffe_fpn_ms_poly_1x", marks=pytest.mark.slow),
    ],
)
def imported(request, tmp_path_factory):
    """Return the name of a config of MMDetection, and its imported model with its checkpoint."""
    return request.param, oracle.imported(request.param, tmp_path_factory.mktemp("imported"))


@torch.no_grad()
def test_maps_logits_and_deltas_are_equal(name, model):
    model.eval()
    images = model.preprocess_image(oracle.batch(name))
    bottom_up = model.backbone.bottom_up(images.tensor)
    features = model.backbone(images.tensor)
    logits, deltas = model.proposal_generator.rpn_head([features[level] for level in LEVELS])
    oracle.report(
        name,
        input=oracle.assert_map(name, "input", [images.tensor]),
        backbone=oracle.assert_map(name, "backbone", list(bottom_up.values())),
        fpn=oracle.assert_map(name, "fpn", [features[level] for level in LEVELS]),
        rpn_logits=oracle.assert_map(name, "rpn_logits", logits),
        rpn_deltas=oracle.assert_map(name, "rpn_deltas", deltas),
    )
    proposals, _ = model.proposal_generator(images, features, None)
    oracle.report(name, proposals=oracle.assert_proposals(name, proposals))


@torch.no_grad()
def test_heads_are_equal_on_the_same_boxes(name, model):
    model.eval()
    heads = model.roi_heads
    features = model.backbone(model.preprocess_image(oracle.batch(name)).tensor)
    pyramid = [features[level] for level in heads.box_in_features]
    data = oracle.inputs(name)
    rois, labels = (torch.from_numpy(data[key]) for key in ("rois", "roi_labels"))
    boxes = [Boxes(rois[rois[:, 0] == i, 1:]) for i in (0, 1)]  # sorted by image
    pooled = heads.box_pooler(pyramid, boxes)
    scores, deltas = heads.box_predictor(heads.box_head(pooled))
    oracle.report(
        name,
        roi_feat=oracle.assert_map(name, "roi_feat", [pooled]),
        roi_cls=oracle.assert_array(name, "roi_cls", scores),
        roi_reg=oracle.assert_array(name, "roi_reg", deltas),
    )
    if model.roi_heads.mask_on:
        masks = heads.mask_head.layers(heads.mask_pooler(pyramid, boxes))
        own = masks[torch.arange(len(labels)), labels]
        oracle.report(name, roi_mask=oracle.assert_array(name, "roi_mask", own))


@torch.no_grad()
def test_detections_are_equal(name, model):
    _check_detections(name, model)
    shrunk = oracle.batch(name, [1])[0] | {"height": 294, "width": 362}
    rescaled = [result["instances"] for result in model([shrunk])]
    oracle.report(name, rescaled=oracle.assert_detections(name, "det_rescaled_", rescaled))


def test_losses_are_equal(name, model, monkeypatch):
    _check_losses(name, model, monkeypatch)


def test_an_imported_config_gives_equal_detections(imported):
    _check_detections(*imported)


def test_an_imported_config_gives_equal_losses(imported, monkeypatch):
    _check_losses(*imported, monkeypatch)


@torch.no_grad()
def _check_detections(name, model):
    model.eval()
    found = [result["instances"] for result in model(oracle.batch(name))]
    oracle.report(name, detections=oracle.assert_detections(name, "det_", found))


def _check_losses(name, model, monkeypatch):
    model.train()
    oracle.without_chance(monkeypatch)
    with_masks = model.roi_heads.mask_on
    recorded = oracle.losses(name)
    polygons = "train_loss_mask_bitmap" in oracle.outputs(name)
    first, other = ("polygon", "bitmap") if polygons else ("bitmap", "polygon")
    masks = first if with_masks else ""
    with EventStorage(), torch.no_grad():
        images = model.preprocess_image(oracle.batch(name))
        features = model.backbone(images.tensor)
        objects = [oracle.ground_truth(name, i, masks) for i in (0, 1)]
        own, found = model.proposal_generator(images, features, objects)
        for i, mine in enumerate(own):
            theirs = oracle.proposals(name, i)  # followed by jittered copies of the objects
            boxes = theirs.proposal_boxes.tensor[: len(mine)]
            assert torch.allclose(mine.proposal_boxes.tensor, boxes, atol=0.01)
        proposals = [oracle.proposals(name, i) for i in (0, 1)]
        _, heads = model.roi_heads(images, features, proposals, objects)
        names = {
            "loss_rpn_cls": "loss_rpn_cls",
            "loss_rpn_loc": "loss_rpn_bbox",
            "loss_cls": "loss_cls",
            "loss_box_reg": "loss_bbox",
            "loss_mask": "loss_mask",
        }
        losses = {names[key]: loss for key, loss in (found | heads).items()}
        recorded = {key: value for key, value in recorded.items() if key.startswith("loss")}
        oracle.report(name, losses=oracle.assert_losses(losses, recorded))
        if with_masks:
            objects = [oracle.ground_truth(name, i, other) for i in (0, 1)]
            _, heads = model.roi_heads(images, features, proposals, objects)
            value = float(oracle.outputs(name)[f"train_loss_mask_{other}"].sum())
            difference = oracle.assert_losses(
                {"loss_mask": heads["loss_mask"]}, {"loss_mask": value}
            )
            oracle.report(name, **{f"loss_mask_{other}": difference})
