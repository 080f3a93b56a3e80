"""Class counts of models: where they are found, which follow the data, and which are refused."""

from pathlib import Path

import detectron2.model_zoo
import pytest
import yaml
from detectron2 import model_zoo
from detectron2.config import LazyCall as L
from detectron2.config import LazyConfig, get_cfg, instantiate
from detectron2.modeling import build_model
from detectron2.modeling.meta_arch import PanopticFPN, SemanticSegmentor
from detectron2.modeling.meta_arch.fcos import FCOSHead
from omegaconf import OmegaConf
from torch import nn

from d2ext import get_config
from d2ext.config.model_kind import meta_architecture, returns_masks
from d2ext.config.num_classes import (
    check_num_classes,
    class_counts_to_follow,
    class_fields,
    follow_classes,
    with_num_classes,
)
from d2ext.errors import UserError

ZOO = Path(detectron2.model_zoo.__file__).parent / "configs"
COCO = {  # common model: class count of the dataset that it is made for
    "cascade_rcnn": 80,
    "fcos": 80,
    "keypoint_rcnn_fpn": 1,
    "mask_rcnn_c4": 80,
    "mask_rcnn_fpn": 80,
    "mask_rcnn_vitdet": 80,
    "panoptic_fpn": 80,
    "retinanet": 80,
}
CLASSES = ["cat", "dog", "cow"]


def lazy(name):
    return LazyConfig.load(str(ZOO / "common" / "models" / f"{name}.py")).model


def yacs(name, **more):
    """Return a yacs file of Detectron2 as the `model` of a config; `more` are keys of MODEL."""
    cfg = get_cfg()
    cfg.merge_from_file(model_zoo.get_config_file(name))
    keys = yaml.safe_load(cfg.dump())
    keys["MODEL"] |= more
    return OmegaConf.create({"_target_": "detectron2.modeling.build_model", "config": keys})


class Detr(nn.Module):
    """Stand for a DETR-like model, which keeps its class count in several places."""


def detr(num_classes, in_criterion="${..num_classes}"):
    criterion = dict(num_classes=in_criterion, matcher=dict(num_classes="${...num_classes}"))
    heads = [dict(num_classes="${...num_classes}"), dict(num_classes=num_classes)]
    backbone = dict(num_classes=1000)
    model = L(Detr)(num_classes=num_classes, criterion=criterion, heads=heads, backbone=backbone)
    return OmegaConf.create({"model": model, "stuff": 53}, flags={"allow_objects": True}).model


def test_every_common_model_is_in_this_test():
    assert {path.stem for path in (ZOO / "common" / "models").glob("*.py")} == set(COCO)


@pytest.mark.parametrize("name", COCO)
def test_all_class_counts_of_a_model_follow_the_data(name):
    model = lazy(name)
    lines = follow_classes(model, COCO[name])
    assert lines == [f"model.{_home(name)}num_classes={COCO[name]} now follows the data"]
    assert {value for _, value in class_fields(model, "model")} == {None}
    changed = with_num_classes(model, 3)
    counts = dict(class_fields(changed, "model"))
    assert len(counts) >= 2 and set(counts.values()) == {3}
    check_num_classes(changed, CLASSES)
    if "sem_seg_head" in model:
        assert changed.sem_seg_head.num_classes == 54  # stuff


def _home(name):
    return "" if name in ("fcos", "retinanet") else "roi_heads."


def test_a_head_is_built_with_the_datas_class_count():
    model = lazy("fcos")
    follow_classes(model, 80)
    head = instantiate(with_num_classes(model, 3).head)
    assert isinstance(head, FCOSHead) and head.cls_score.out_channels == 3


def test_counts_in_criterion_matcher_and_lists_follow_but_not_in_the_backbone():
    model = detr(80)
    assert follow_classes(model, 80) == [
        "model.num_classes=80 now follows the data",
        "model.heads.1.num_classes=80 now follows the data",
    ]
    model = with_num_classes(model, 3)
    assert model.criterion.num_classes == model.criterion.matcher.num_classes == 3
    assert [head.num_classes for head in model.heads] == [3, 3]
    assert model.backbone.num_classes == 1000


def test_a_count_that_refers_to_a_field_outside_of_the_model_follows():
    model = detr(80)
    model.criterion.num_classes = "${stuff}"
    assert ("model.criterion.num_classes", 53) in class_counts_to_follow(model, 53)
    assert follow_classes(model, 53) == ["model.criterion.num_classes=53 now follows the data"]
    assert with_num_classes(model, 3).criterion.num_classes == 3


def test_other_counts_do_not_follow():
    model = detr(81)
    assert class_counts_to_follow(model, 80) == [] == follow_classes(model, 80)
    assert model.num_classes == 81


def test_detr_may_count_more_than_the_datas_classes_but_not_fewer():
    check_num_classes(detr(3), CLASSES)
    check_num_classes(detr(4), CLASSES)  # with "no object"
    with pytest.raises(UserError, match="model.num_classes=2, but the data has 3 classes"):
        check_num_classes(detr(2), CLASSES)
    with pytest.raises(UserError, match="model.num_classes=4, but the data has 3 classes"):
        model = detr(4)
        del model.criterion
        check_num_classes(model, CLASSES)


@pytest.mark.parametrize(
    ("name", "read"),
    [
        ("COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_1x.yaml", "ROI_HEADS"),
        ("COCO-Detection/retinanet_R_50_FPN_1x.yaml", "RETINANET"),
        ("COCO-PanopticSegmentation/panoptic_fpn_R_50_1x.yaml", "ROI_HEADS"),
    ],
)
def test_yacs_class_counts_follow_the_data(name, read):
    model = yacs(name)
    check_num_classes(model, [str(i) for i in range(80)])
    with pytest.raises(UserError, match=f"model.config.MODEL.{read}.NUM_CLASSES=80, but the data"):
        check_num_classes(model, CLASSES)
    field = f"model.config.MODEL.{read}.NUM_CLASSES"
    assert follow_classes(model, 80) == [f"{field}=80 now follows the data"]
    keys = with_num_classes(model, 3).config.MODEL
    assert keys[read].NUM_CLASSES == 3 and keys.SEM_SEG_HEAD.NUM_CLASSES == 54


def test_a_yacs_model_is_built_with_the_datas_class_count():
    model = yacs("COCO-Detection/retinanet_R_50_FPN_1x.yaml", DEVICE="cpu")
    follow_classes(model, 80)
    cfg = get_cfg()
    keys = OmegaConf.to_container(with_num_classes(model, 3).config)
    cfg.merge_from_other_cfg(type(cfg)(keys))
    assert build_model(cfg).head.cls_score.out_channels == 9 * 3


def test_sections_that_a_projects_model_does_not_read_are_not_checked():
    model = yacs("COCO-Detection/faster_rcnn_R_50_FPN_1x.yaml", META_ARCHITECTURE="TensorMask")
    model.config.MODEL.TENSOR_MASK = {"NUM_CLASSES": 3}
    check_num_classes(model, CLASSES)
    with pytest.raises(UserError, match="but the data has 2"):
        check_num_classes(model, CLASSES[:2])


def test_counts_of_a_semantic_model_are_not_those_of_objects():
    for kind in (SemanticSegmentor, PanopticFPN):
        model = L(kind)(sem_seg_head=dict(num_classes=3))
        assert class_counts_to_follow(model, 3) == []
    check_num_classes(yacs("Misc/semantic_R_50_FPN_1x.yaml"), CLASSES)  # its 54 classes are stuff


@pytest.mark.parametrize(
    ("name", "masks"),
    [
        ("mask_rcnn_fpn", True),
        ("mask_rcnn_c4", True),
        ("keypoint_rcnn_fpn", False),
        ("retinanet", False),
        ("fcos", False),
        ("COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_1x.yaml", True),
        ("COCO-Detection/faster_rcnn_R_50_FPN_1x.yaml", False),
        ("COCO-Detection/retinanet_R_50_FPN_1x.yaml", False),
    ],
)
def test_whether_a_model_returns_masks_depends_on_its_kind_and_heads(name, masks):
    assert returns_masks(yacs(name) if "/" in name else lazy(name)) is masks


def test_models_of_unknown_kinds_may_return_masks():
    assert returns_masks(detr(80)) and meta_architecture(detr(80)) == "Detr"
    assert returns_masks(
        yacs("COCO-Detection/faster_rcnn_R_50_FPN_1x.yaml", META_ARCHITECTURE="MaskFormer")
    )


def test_each_mask_head_of_a_cascade_has_a_count():
    model = get_config("common/models/cascade_mask_rcnn_fpn_pytorch.py").model
    filled = with_num_classes(model, 3)
    masks = [f"roi_heads.mask_head.{i}.num_classes" for i in range(3)]
    assert [OmegaConf.select(filled, field) for field in masks] == [3, 3, 3]
    for head in filled.roi_heads.mask_head:
        head.num_classes = 1  # class-agnostic masks
    check_num_classes(filled, ["a", "b", "c"])
