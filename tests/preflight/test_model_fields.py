"""Model fields that must agree: contradictions are refused, and valid models pass."""

import copy
from dataclasses import replace
from pathlib import Path

import detectron2.model_zoo
import pytest
import torch
from detectron2.config import LazyConfig, instantiate
from detectron2.structures import BoxMode
from omegaconf import OmegaConf

from d2ext.config.load import load_config
from d2ext.config.num_classes import check_num_classes
from d2ext.config.overrides import apply_overrides
from d2ext.data.validation.dataset_dicts import DatasetSummary
from d2ext.errors import UserError
from d2ext.preflight.model_fields import (
    check_annotations,
    check_levels,
    check_model_fields,
    check_proposals,
    detection_notes,
    needs_of,
    size_note,
)

ZOO = Path(detectron2.model_zoo.__file__).parent / "configs" / "common" / "models"
MODELS = [path.stem for path in sorted(ZOO.glob("*.py"))]


@pytest.fixture(scope="module")
def custom(repo):
    return load_config(repo / "configs/custom/mask_rcnn_lite0_fpn.py")


@pytest.fixture
def cfg(custom):
    """Return a copy of the config that a test may change."""
    return copy.deepcopy(custom)


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("proposal_generator.anchor_generator.sizes=[[8], [16], [32], [64]]", "num_anchors=6, but"),
        ("proposal_generator.anchor_generator.sizes=[8]", "num_anchors=6, but"),
        ("proposal_generator.anchor_generator.sizes=[[8], [16, 3]]", "2 levels, but .*strides"),
        ("proposal_generator.anchor_generator.sizes=[[8], [1], [2], [16, 3]]", "the same number"),
        ("proposal_generator.anchor_generator.aspect_ratios=[1]", "num_anchors=6, but .*make 2"),
        ("proposal_generator.anchor_generator.strides=[8, 16]", "in_features.*4 levels, .*has 2"),
        ("proposal_generator.head.num_anchors=3", "num_anchors=3, but .*make 6"),
        ("proposal_generator.head.in_channels=256", "in_channels=256, but .*out_channels=96"),
        ("backbone.out_channels=128", "but model.backbone.out_channels=128"),
        ("roi_heads.box_head.input_shape.channels=8", "box_head.*=8, but .*out_channels=96"),
        ("roi_heads.mask_head.input_shape.channels=8", "mask_head.*=8, but .*out_channels=96"),
        ("roi_heads.box_pooler.output_size=14", "height=7, but .*output_size=14"),
        ("roi_heads.mask_head.input_shape.width=7", "width=7, but .*output_size=14"),
        ("roi_heads.box_predictor.input_shape.channels=8", "=8, but .*fc_dims.1.=256"),
        ("roi_heads.box_in_features=[p2, p3]", "box_in_features.*2 levels, but .*scales.*has 4"),
        ("roi_heads.mask_pooler.scales=[0.25]", "mask_in_features.*4 levels"),
        ("backbone.in_features=[res2, res6]", "res6 is missing from .*out_features"),
        ("pixel_mean=[1, 2, 3, 4]", "image format RGB .*3 channels, but model.pixel_mean"),
        ("pixel_std=[1, 2]", "model.pixel_std=.1, 2. has 2 channels"),
        ("pixel_std=[0, 0, 0]", r"model.pixel_std=\[0, 0, 0\]: .*give positive numbers"),
        ("pixel_std=[1, 1, -1]", "give positive numbers"),
        ("pixel_std=[1, .nan, 1]", "give positive numbers"),
        ("proposal_generator.pre_nms_topk=[100]", r"pre_nms_topk=\[100\]: give two numbers"),
        ("proposal_generator.post_nms_topk=[]", r"post_nms_topk=\[\]: give two numbers"),
        ("input_format=RGBA", "RGBA .* has 4"),
        ("input_format=XYZ", "'XYZ' is not an image format; give RGB"),
    ],
)
def test_contradictory_fields_are_named_with_their_values(cfg, override, words):
    apply_overrides(cfg, [f"model.{override}"])
    with pytest.raises(UserError, match=words):
        check_model_fields(cfg)


def test_gray_images_need_three_means(cfg):
    """Three means turn the one channel into three; with one mean, the backbone does not fit."""
    apply_overrides(cfg, ["model.input_format=L"])
    check_model_fields(cfg)
    apply_overrides(cfg, ["model.pixel_mean=[127.5]", "model.pixel_std=[127.5]"])
    with pytest.raises(UserError, match="bottom_up takes 3 channels, but .* has 1; .*=RGB"):
        check_model_fields(cfg)


@pytest.mark.parametrize("field", ["model.input_format", "dataloader.train.mapper.image_format"])
def test_the_suggested_fix_for_gray_images_works(cfg, field):
    means = ["model.pixel_mean=[127.5]", "model.pixel_std=[127.5]"]
    apply_overrides(cfg, [f"{field}=L", *means])
    with pytest.raises(UserError, match=f"set {field}=RGB .*three values each"):
        check_model_fields(cfg)
    means = [mean.replace("127.5", "127.5, 127.5, 127.5") for mean in means]
    apply_overrides(cfg, [f"{field}=RGB", *means])
    check_model_fields(cfg)


def test_the_channels_of_a_stem_must_match_the_input(repo):
    cfg = load_config(repo / "configs/custom/mask_rcnn_r50_fpn.py")
    apply_overrides(cfg, ["model.backbone.bottom_up.stem.in_channels=4"])
    with pytest.raises(UserError, match="bottom_up takes 4 channels, but .* has 3; set .*=3") as e:
        check_model_fields(cfg)
    apply_overrides(cfg, [str(e.value).rpartition("set ")[2]])
    check_model_fields(cfg)


def test_a_different_color_order_is_a_note(cfg):
    assert check_model_fields(cfg) == []
    apply_overrides(cfg, ["dataloader.val.mapper.image_format=BGR"])
    (note,) = check_model_fields(cfg)
    assert "dataloader.val.mapper.image_format=BGR" in note and "model.input_format=RGB" in note


@pytest.mark.parametrize("name", MODELS)
def test_models_of_detectron2_pass(custom, name):
    cfg = copy.deepcopy(custom)
    cfg.model = LazyConfig.load(str(ZOO / f"{name}.py")).model
    for split in ("train", "val"):
        cfg.dataloader[split].mapper.image_format = "BGR"
    check_model_fields(cfg)


@pytest.mark.parametrize("name", ["mask_rcnn_fpn", "mask_rcnn_c4", "retinanet", "cascade_rcnn"])
def test_levels_of_models_of_detectron2_pass(name):
    model = LazyConfig.load(str(ZOO / f"{name}.py")).model
    check_levels(model, instantiate(model))


def test_levels_that_the_backbone_lacks_are_an_error(cfg):
    cfg.model.roi_heads.num_classes = 1
    model = instantiate(cfg.model)
    check_levels(cfg.model, model)
    for override, words in [
        ("proposal_generator.in_features=[p2, p3, p4, p5]", "strides=.8, 16.* strides .4, 8"),
        ("proposal_generator.in_features=[p3, p4, p5, p9]", "no level p9; choose from p2, p3, p4"),
        ("roi_heads.box_pooler.scales=[0.5, 0.25, 0.125, 0.0625]", "give 1/4, 1/8, 1/16, 1/32"),
    ]:
        changed = copy.deepcopy(cfg)
        apply_overrides(changed, [f"model.{override}"])
        with pytest.raises(UserError, match=words):
            check_levels(changed.model, model)


POINTS = [{"keypoints": [1, 2, 2] * 17, "category_id": 0}]


def _check(cfg, annotations, classes=("person", "dog"), **more):
    return list(check_annotations(cfg, "x", [{"annotations": annotations, **more}], classes))


def test_heads_without_matching_data_are_an_error(cfg):
    cfg.dataloader.train.mapper.use_instance_mask = False
    with pytest.raises(UserError, match="mask_head needs masks, .*use_instance_mask=False"):
        _check(cfg, POINTS)
    del cfg.model.roi_heads.mask_head
    assert _check(cfg, POINTS) == ["x: 1 object has keypoints, which are not trained on"]
    cfg.model.sem_seg_head = {"num_classes": 3}
    with pytest.raises(UserError, match="sem_seg_head needs .* no sem_seg_file_name"):
        _check(cfg, POINTS)
    _check(cfg, POINTS, sem_seg_file_name="a.png")
    cfg.dataloader.train.mapper.precomputed_proposal_topk = 100
    with pytest.raises(UserError, match="topk needs .*; give .* dataloader.val.dataset.proposal"):
        check_proposals(cfg, "val", "x", [{}])
    check_proposals(cfg, "val", "x", [{"proposal_boxes": []}])
    apply_overrides(cfg, ["+dataloader.val.dataset.proposal_files=[a.pkl]"])
    check_proposals(cfg, "val", "x", [{}])


def test_boxes_train_a_model_without_masks(cfg):
    box = [{"category_id": 0}]
    with pytest.raises(UserError, match="1 of 1 objects have no outline"):
        _check(cfg, box)
    del cfg.model.roi_heads.mask_head
    assert cfg.dataloader.train.mapper.use_instance_mask
    assert _check(cfg, box) == []
    outline = {"segmentation": [[1, 1, 2, 2, 3, 1]], "category_id": 0}
    with pytest.raises(UserError, match="1 of 2 objects have no outline"):
        _check(cfg, [*box, outline])  # Detectron2's mapper wants all or none
    cfg.dataloader.train.mapper.use_instance_mask = False
    assert _check(cfg, [*box, outline]) == []


@pytest.fixture
def keypoint_cfg(cfg):
    """Return a config with a keypoint head and without masks."""
    del cfg.model.roi_heads.mask_head
    cfg.model.roi_heads.keypoint_head = {"num_keypoints": 17}
    cfg.dataloader.train.mapper.update(use_instance_mask=False, use_keypoint=True)
    cfg.dataloader.train.mapper.keypoint_hflip_indices = [1, 0, *range(2, 17)]
    return cfg


def test_keypoints_of_the_head_and_the_data_must_match(keypoint_cfg):
    cfg = keypoint_cfg
    assert _check(cfg, POINTS) == []
    with pytest.raises(UserError, match="keypoint_head needs keypoints, but dataset 'x' has none"):
        _check(cfg, [{"category_id": 0}])
    dog = {"keypoints": [1, 2, 2] * 20, "category_id": 1}
    with pytest.raises(UserError, match="'person' has 17, 'dog' has 20; choose .*data.classes"):
        _check(cfg, [*POINTS, dog])
    _check(cfg, [*POINTS, {**dog, "iscrowd": 1}])
    with pytest.raises(UserError, match="num_keypoints=17, but .*'x' has 20 .*; set it to 20"):
        _check(cfg, [dog])
    cfg.dataloader.train.mapper.use_keypoint = False
    with pytest.raises(UserError, match="needs keypoints, but .*use_keypoint=False; set it to T"):
        _check(cfg, POINTS)


def test_objects_without_keypoints_need_a_mapper_that_fills_them_in(keypoint_cfg):
    cfg = keypoint_cfg
    partly = [*POINTS, {"category_id": 1}]
    assert _check(cfg, partly) == []
    cfg.dataloader.train.mapper["_target_"] = "detectron2.data.DatasetMapper"
    with pytest.raises(
        UserError, match="1 of 2 objects have no keypoints .such as 'dog'.*'person'"
    ):
        _check(cfg, partly)


def test_flips_need_the_mirrored_keypoints(keypoint_cfg):
    cfg = keypoint_cfg
    mapper = cfg.dataloader.train.mapper
    for indices, words in [(None, "is not set"), ([1, 0], "has 2 entries")]:
        mapper.keypoint_hflip_indices = indices
        with pytest.raises(UserError, match=f"hflip_indices {words}, but .*17.*remove RandomFlip"):
            _check(cfg, POINTS)
    mapper.keypoint_hflip_indices = list(range(17))
    (note,) = _check(cfg, POINTS)
    assert "are known to be mirror images of each other" in note and "datasets.x.flip_map" in note
    mapper.keypoint_hflip_indices = None
    mapper.augmentations = [a for a in mapper.augmentations if "horizontal" not in a]
    assert _check(cfg, POINTS) == []


def test_needs_of_a_model_from_a_yacs_config(cfg):
    mapper = cfg.dataloader.train.mapper
    values = dict(MASK_ON=False, KEYPOINT_ON=True, META_ARCHITECTURE="GeneralizedRCNN")
    values["ROI_KEYPOINT_HEAD"] = dict(NUM_KEYPOINTS=4)
    cfg.model = OmegaConf.create({"config": {"MODEL": {**values, "LOAD_PROPOSALS": True}}})
    mapper.update(use_instance_mask=True, use_keypoint=True, keypoint_hflip_indices=[0] * 17)
    with pytest.raises(UserError, match="MODEL.ROI_KEYPOINT_HEAD.NUM_KEYPOINTS=4, but .*set it to"):
        _check(cfg, POINTS)
    needs = needs_of(cfg)
    assert needs.masks is None and needs.stuff is None
    assert needs.keypoints == "model.config.MODEL.KEYPOINT_ON"
    assert needs.proposals == "model.config.MODEL.LOAD_PROPOSALS"
    cfg.model.config.MODEL.update(META_ARCHITECTURE="PanopticFPN", MASK_ON=True)
    assert needs_of(cfg).stuff == "model.config.MODEL.META_ARCHITECTURE"
    assert needs_of(cfg).masks == "model.config.MODEL.MASK_ON"


def test_needs_of_other_architectures_are_those_of_their_mapper(cfg):
    cfg.model = OmegaConf.create({"transformer": {}})
    assert needs_of(cfg).masks == "dataloader.train.mapper.use_instance_mask"
    cfg.model = OmegaConf.create({"head_in_features": ["p3"]})  # such as RetinaNet
    assert needs_of(cfg).masks is None
    cfg.dataloader.train.mapper.recompute_boxes = True
    assert needs_of(cfg).masks == "dataloader.train.mapper.recompute_boxes"
    cfg.model = OmegaConf.create({"roi_heads": {"num_classes": 1}, "proposal_generator": None})
    assert needs_of(cfg).proposals == "model.proposal_generator=null"


def test_a_class_agnostic_mask_head_may_have_one_class(cfg):
    apply_overrides(cfg, ["model.roi_heads.mask_head.num_classes=1"])
    check_num_classes(cfg.model, ["cat", "dog"])
    apply_overrides(cfg, ["model.roi_heads.mask_head.num_classes=3"])
    with pytest.raises(UserError, match="mask_head.num_classes=3, but the data has 2"):
        check_num_classes(cfg.model, ["cat", "dog"])


def test_more_objects_than_detections_give_notes(cfg):
    few = DatasetSummary("a", 1, 9, {}, 0, {}, most=100, most_of_a_class=100, problems=[])
    many = replace(few, name="b", most=251, most_of_a_class=101)
    assert list(detection_notes(cfg, {"a": few}, ["a"])) == []
    model, metric = detection_notes(cfg, {"a": few, "b": many}, ["a", "b"])
    assert "b has up to 251 objects" in model and "returns at most 100" in model
    assert "model.roi_heads.box_predictor.test_topk_per_image=300" in model
    assert '"evaluators.coco.max_detections=[1, 10, 200]"' in metric
    assert len(list(detection_notes(cfg, {"b": many}, []))) == 1  # not evaluated
    overrides = [note.rpartition("; set ")[2].strip('"') for note in (model, metric)]
    apply_overrides(cfg, overrides)
    assert list(detection_notes(cfg, {"b": many}, ["b"])) == []


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("retinanet", "model.max_detections_per_image=200"),
        ("cascade_rcnn", r"model.roi_heads.box_predictors[2].test_topk_per_image=200"),
    ],
)
def test_the_note_names_the_limit_of_each_model_type(cfg, name, words):
    cfg.model = LazyConfig.load(str(ZOO / f"{name}.py")).model
    many = DatasetSummary("b", 1, 9, {}, 0, {}, most=101, most_of_a_class=50, problems=[])
    (note,) = detection_notes(cfg, {"b": many}, [])
    assert words in note


def test_images_smaller_than_a_feature_cell_are_a_note(cfg):
    assert "images of 60 x 90 pixels" in size_note(cfg.model, {"image": torch.zeros(3, 60, 90)})
    assert size_note(cfg.model, {"image": torch.zeros(3, 64, 90)}) is None
    assert size_note(OmegaConf.create(), {"image": torch.zeros(3, 1, 1)}) is None


def test_pasted_objects_need_masks(cfg):
    """Also for a model that is trained on boxes only, whose data need no masks."""
    cfg.model.roi_heads.mask_head = None
    cfg.dataloader.train.copy_paste = {
        "_target_": "d2ext.data.loading.augment.copy_paste.CopyPaste"
    }
    box = {"bbox": [0, 0, 5, 5], "bbox_mode": BoxMode.XYXY_ABS, "category_id": 0}
    polygon = {**box, "segmentation": [[0, 0, 5, 0, 5, 5]]}

    def check(*annotations):
        records = [{"file_name": "a.jpg", "height": 9, "width": 9, "annotations": annotations}]
        return list(check_annotations(cfg, "mine", records, ["a"]))

    assert check(polygon, polygon) == []
    cfg.dataloader.train.mapper.use_instance_mask = False
    with pytest.raises(UserError, match="copy_paste needs masks, but .*use_instance_mask=False"):
        check(polygon)
    cfg.dataloader.train.mapper = {"_target_": "theirs.Mapper"}
    with pytest.raises(UserError, match="copy_paste needs masks, but 1 of 2 objects of dataset"):
        check(polygon, box)
    cfg.dataloader.train.copy_paste = None
    assert check(polygon, box) == []


@pytest.mark.parametrize(("vertical", "count"), [(True, 1), (False, 0)])
def test_vertical_flips_of_keypoints_get_a_note(cfg, vertical, count):
    kind = "vertical: true, horizontal: false" if vertical else "horizontal: true"
    mapper = "dataloader.train.mapper"
    flip = f"{{_target_: detectron2.data.transforms.RandomFlip, {kind}}}"
    overrides = [f"{mapper}.augmentations[1]={flip}", f"{mapper}.use_keypoint=True"]
    apply_overrides(cfg, [*overrides, f"+{mapper}.keypoint_hflip_indices=[1, 0]"])
    cfg.model.roi_heads.keypoint_head = {"num_keypoints": 2}
    annotation = {"bbox": [0, 0, 5, 5], "bbox_mode": BoxMode.XYXY_ABS, "category_id": 0}
    annotation |= {"segmentation": [[0, 0, 5, 0, 5, 5]], "keypoints": [1, 1, 2, 3, 3, 2]}
    records = [{"file_name": "a.jpg", "height": 9, "width": 9, "annotations": [annotation]}]
    notes = list(check_annotations(cfg, "mine", records, ["a"]))
    assert sum("vertical flips mirror images" in note for note in notes) == count
