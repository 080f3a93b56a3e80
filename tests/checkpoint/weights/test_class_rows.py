"""Rows of pre-trained heads: those of classes with the same name are kept."""

import logging

import pytest
import torch
from detectron2.data.datasets.builtin_meta import COCO_CATEGORIES
from detectron2.layers import ShapeSpec
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.modeling.meta_arch.fcos import FCOSHead
from detectron2.modeling.meta_arch.retinanet import RetinaNetHead
from detectron2.modeling.roi_heads import FastRCNNOutputLayers, MaskRCNNConvUpsampleHead
from torch import nn

from d2ext.checkpoint.weights.initial import load_weights

COCO = [c["name"] for c in COCO_CATEGORIES if c["isthing"]]
ANCHORS = 3


class Detector(nn.Module):
    """One head of each kind, over a backbone that every file has."""

    def __init__(self, classes: int, agnostic: bool = False):
        super().__init__()
        self.backbone = nn.Linear(2, 2)
        self.box_predictor = FastRCNNOutputLayers(
            ShapeSpec(channels=4),
            box2box_transform=Box2BoxTransform((10, 10, 5, 5)),
            num_classes=classes,
            cls_agnostic_bbox_reg=agnostic,
        )
        self.mask_head = MaskRCNNConvUpsampleHead(
            ShapeSpec(channels=4), num_classes=1 if agnostic else classes, conv_dims=[4]
        )
        shapes = [ShapeSpec(channels=4)]
        self.retinanet = RetinaNetHead(
            input_shape=shapes, num_classes=classes, num_anchors=ANCHORS, conv_dims=[4]
        )
        self.fcos = FCOSHead(input_shape=shapes, num_classes=classes, conv_dims=[4])
        for parameter in self.parameters():  # biases are often equal otherwise
            nn.init.normal_(parameter)


@pytest.fixture
def load(tmp_path):
    """Return a function that loads a model's weights from a file with these other entries."""

    def loaded(model, theirs, new, **more):
        torch.save({"model": theirs.state_dict(), **more}, tmp_path / "w.pth")
        load_weights(model, str(tmp_path / "w.pth"), classes=new)
        return {name: tensor.clone() for name, tensor in model.state_dict().items()}

    return loaded


def _check(mine, before, theirs, old, new):
    """Check every row of every head against the file or the initial weights."""
    heads = ["box_predictor.cls_score", "box_predictor.bbox_pred", "mask_head.predictor"]
    heads += ["retinanet.cls_score", "fcos.cls_score"]
    for name in [f"{head}.{leaf}" for head in heads for leaf in ("weight", "bias")]:
        values = 4 if "bbox_pred" in name else 1
        anchors = ANCHORS if name.startswith("retinanet") else 1
        background = int(name.startswith("box_predictor.cls_score"))
        for anchor in range(anchors):
            for i, label in enumerate([*new, "background"][: len(new) + background]):
                j = [*old, "background"].index(label) if label in (*old, "background") else None
                start = (anchor * (len(new) + background) + i) * values
                row = mine[name][start : start + values]
                if j is None:
                    assert torch.equal(row, before[name][start : start + values]), name
                else:
                    k = (anchor * (len(old) + background) + j) * values
                    assert torch.equal(row, theirs[name][k : k + values]), (name, label)


def test_person_keeps_its_rows_of_the_model_zoo(load, caplog):
    caplog.set_level(logging.INFO, logger="d2ext")
    theirs, model, new = Detector(80), Detector(2), ["person", "balloon"]
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    mine = load(model, theirs, new, __author__="Detectron2 Model Zoo")
    _check(mine, before, theirs.state_dict(), COCO, new)
    assert torch.equal(mine["retinanet.bbox_pred.weight"], theirs.retinanet.bbox_pred.weight)
    assert (
        "Kept the rows of the classes person; randomly initialized those of balloon in"
        " box_predictor.cls_score, box_predictor.bbox_pred, mask_head.predictor,"
        " retinanet.cls_score, fcos.cls_score" in caplog.text
    )
    assert "Different shape" not in caplog.text and "Randomly initialized" not in caplog.text


@pytest.mark.parametrize("new", [["dog", "cat", "cow"], ["dog", "bird"], ["bird", "cat"]])
def test_rows_follow_the_names_in_a_checkpoint_of_d2ext(load, new):
    old = ["cat", "dog"]
    theirs, model = Detector(len(old)), Detector(len(new))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    _check(load(model, theirs, new, classes=old), before, theirs.state_dict(), old, new)


def test_rows_are_kept_in_any_memory_layout(load):
    old, new = ["cat", "dog"], ["dog", "cow"]
    theirs, model = (Detector(2).to(memory_format=torch.channels_last) for _ in range(2))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    _check(load(model, theirs, new, classes=old), before, theirs.state_dict(), old, new)


def test_class_agnostic_tensors_are_loaded_as_they_are(load):
    theirs, model = Detector(80, agnostic=True), Detector(2, agnostic=True)
    mine = load(model, theirs, ["person", "balloon"], __author__="Detectron2 Model Zoo")
    for name in ("box_predictor.bbox_pred.weight", "mask_head.predictor.weight"):
        assert torch.equal(mine[name], theirs.state_dict()[name])
    person = theirs.box_predictor.cls_score.weight[0]
    assert torch.equal(mine["box_predictor.cls_score.weight"][0], person)


@pytest.mark.parametrize(
    ("count", "more"),
    [
        (80, {}),  # the classes are unknown
        (8, {"__author__": "Detectron2 Model Zoo"}),  # Cityscapes
        (80, {"classes": [f"kind {i}" for i in range(80)]}),
    ],
)
def test_rows_of_unknown_or_other_classes_are_not_kept(load, caplog, count, more):
    caplog.set_level(logging.INFO, logger="d2ext")
    model = Detector(2)
    before = model.box_predictor.cls_score.weight.clone()
    mine = load(model, Detector(count), ["person", "balloon"], **more)
    assert torch.equal(mine["box_predictor.cls_score.weight"], before)
    words = f"Different shape in the file: fcos.cls_score.bias is [{count}], here [2], "
    assert words in caplog.text and "Kept the rows" not in caplog.text


def test_the_same_number_of_unrelated_classes_keeps_all_rows(load):
    """Renaming a class is not a reason to forget it."""
    theirs = Detector(1)
    mine = load(Detector(1), theirs, ["balloon"], classes=["ballon"])
    assert torch.equal(mine["fcos.cls_score.weight"], theirs.fcos.cls_score.weight)
