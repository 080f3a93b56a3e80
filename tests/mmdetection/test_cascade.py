"""MMDetection's Cascade Mask R-CNN checkpoint gives the same numbers in our models.

These are built from the recipe, and from MMDetection's config.
"""

import pytest
import torch
from detectron2.structures import Boxes
from detectron2.utils.events import EventStorage

from d2ext import get_config
from tests.mmdetection import oracle

NAME = "cascade_mask_rcnn_r50_fpn_1x"
LEVELS = ["p2", "p3", "p4", "p5", "p6"]
STAGES = range(3)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    recipe = "cascade_rcnn/cascade_mask_rcnn_r50_fpn_1x_coco.py"
    config = get_config(recipe, oracle.REDUCED).model
    return oracle.loaded(config, NAME, tmp_path_factory.mktemp("weights"))


@torch.no_grad()
def test_maps_and_proposals_are_equal(model):
    model.eval()
    images = model.preprocess_image(oracle.batch(NAME))
    features = model.backbone(images.tensor)
    pyramid = [features[level] for level in LEVELS]
    logits, deltas = model.proposal_generator.rpn_head(pyramid)
    oracle.report(
        NAME,
        backbone=oracle.assert_map(
            NAME, "backbone", list(model.backbone.bottom_up(images.tensor).values())
        ),
        fpn=oracle.assert_map(NAME, "fpn", pyramid),
        rpn_logits=oracle.assert_map(NAME, "rpn_logits", logits),
        rpn_deltas=oracle.assert_map(NAME, "rpn_deltas", deltas),
    )
    proposals, _ = model.proposal_generator(images, features, None)
    oracle.report(NAME, proposals=oracle.assert_proposals(NAME, proposals))


@torch.no_grad()
def test_stages_are_equal_on_the_same_boxes(model):
    model.eval()
    heads, data = model.roi_heads, oracle.inputs(NAME)
    features = model.backbone(model.preprocess_image(oracle.batch(NAME)).tensor)
    pyramid = [features[level] for level in heads.box_in_features]
    labels = torch.from_numpy(data["roi_labels"])
    given = torch.from_numpy(data["rois"])
    for stage in STAGES:
        rois = torch.from_numpy(oracle.outputs(NAME)[f"roi_rois_stage{stage}"])
        boxes = [Boxes(rois[rois[:, 0] == i, 1:]) for i in (0, 1)]
        pooled = heads.box_pooler(pyramid, boxes)
        scores, deltas = heads.box_predictor[stage](heads.box_head[stage](pooled))
        boxes = [Boxes(given[given[:, 0] == i, 1:]) for i in (0, 1)]
        masks = heads.mask_head[stage].layers(heads.mask_pooler(pyramid, boxes))
        own = masks[torch.arange(len(labels)), labels]
        differences = {
            f"roi_cls_stage{stage}": scores,
            f"roi_reg_stage{stage}": deltas,
            f"roi_mask_stage{stage}": own,
        }
        oracle.report(NAME, **{k: oracle.assert_array(NAME, k, v) for k, v in differences.items()})


@pytest.mark.slow
def test_detections_are_equal(model):
    _check_detections(model)


def test_losses_of_all_stages_are_equal(model, monkeypatch):
    _check_losses(model, monkeypatch)


@pytest.mark.slow
def test_an_imported_config_gives_equal_detections_and_losses(tmp_path, monkeypatch):
    imported = oracle.imported(NAME, tmp_path)
    _check_detections(imported)
    _check_losses(imported, monkeypatch)


@torch.no_grad()
def _check_detections(model):
    model.eval()
    found = [result["instances"] for result in model(oracle.batch(NAME))]
    shrunk = oracle.batch(NAME, [1])[0] | {"height": 294, "width": 362}
    rescaled = [result["instances"] for result in model([shrunk])]
    oracle.report(
        NAME,
        detections=oracle.assert_detections(NAME, "det_", found),
        rescaled=oracle.assert_detections(NAME, "det_rescaled_", rescaled),
    )


def _check_losses(model, monkeypatch):
    model.train()
    oracle.without_chance(monkeypatch)
    recorded = {k: v for k, v in oracle.losses(NAME).items() if "loss" in k}
    with EventStorage(), torch.no_grad():
        images = model.preprocess_image(oracle.batch(NAME))
        features = model.backbone(images.tensor)
        objects = [oracle.ground_truth(NAME, i, "bitmap") for i in (0, 1)]
        _, found = model.proposal_generator(images, features, objects)
        proposals = [oracle.proposals(NAME, i) for i in (0, 1)]
        _, heads = model.roi_heads(images, features, proposals, objects)
        objects = [oracle.ground_truth(NAME, i, "polygon") for i in (0, 1)]
        _, polygons = model.roi_heads(images, features, proposals, objects)
    losses = {
        "loss_rpn_cls": found["loss_rpn_cls"],
        "loss_rpn_bbox": found["loss_rpn_loc"],
    }
    for stage in STAGES:
        losses[f"s{stage}.loss_cls"] = heads[f"loss_cls_stage{stage}"]
        losses[f"s{stage}.loss_bbox"] = heads[f"loss_box_reg_stage{stage}"]
        losses[f"s{stage}.loss_mask"] = heads[f"loss_mask_stage{stage}"]
    oracle.report(NAME, losses=oracle.assert_losses(losses, recorded))
    theirs = dict(enumerate(oracle.outputs(NAME)["train_loss_mask_polygon"].tolist()))
    mine = {stage: polygons[f"loss_mask_stage{stage}"] for stage in STAGES}
    oracle.report(NAME, loss_mask_polygon=oracle.assert_losses(mine, theirs))
