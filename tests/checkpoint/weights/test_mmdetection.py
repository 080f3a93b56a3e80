"""MMDetection's checkpoints: names, metadata, safety, and conversion in both directions."""

import logging
import os
import re
from datetime import datetime
from pathlib import PurePosixPath

import numpy as np
import pytest
import torch
from detectron2.config import instantiate
from detectron2.layers import ShapeSpec
from detectron2.modeling.anchor_generator import DefaultAnchorGenerator
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.modeling.roi_heads import FastRCNNOutputLayers
from torch import nn

from d2ext import get_config
from d2ext.checkpoint.weights.initial import load_weights
from d2ext.checkpoint.weights.mmdetection import (
    describe,
    expected_input,
    fitting_recipes,
    from_mmdetection,
    to_mmdetection,
)
from d2ext.checkpoint.weights.weight_files import read_classes, read_weights
from d2ext.cli import run_command
from d2ext.errors import UserError
from tests.mmdetection import oracle

CLASSES = ("person", "kite")
MODELS = {
    "faster_rcnn_r50_caffe_fpn_1x": "Faster R-CNN with ResNet-50 and FPN",
    "mask_rcnn_r50_fpn_1x": "Mask R-CNN with ResNet-50 and FPN",
    "mask_rcnn_x101_32x4d_fpn_1x": "Mask R-CNN with ResNeXt-101 32x4d and FPN",
    "cascade_mask_rcnn_r50_fpn_1x": "Cascade Mask R-CNN with ResNet-50 and FPN",
    "scnet_r50_fpn_1x": "SCNet with ResNet-50 and FPN",
}


def _empty(name):
    """Return tensors without values, with the names, shapes and types of a recorded model."""
    return {
        key: torch.empty(shape, dtype=getattr(torch, dtype), device="meta")
        for key, (shape, dtype) in oracle.shapes(name).items()
    }


class Model(nn.Module):
    """The first tensors and the box head of a model of Detectron2."""

    def __init__(self, classes=2):
        super().__init__()
        self.backbone = nn.Module()
        self.backbone.bottom_up = nn.Sequential()
        self.backbone.bottom_up.add_module("stem", nn.Module())
        self.backbone.bottom_up.stem.conv1 = nn.Linear(2, 2)
        self.roi_heads = nn.Module()
        self.roi_heads.box_predictor = FastRCNNOutputLayers(
            ShapeSpec(channels=4),
            box2box_transform=Box2BoxTransform((10, 10, 5, 5)),
            num_classes=classes,
        )
        for parameter in self.parameters():
            nn.init.normal_(parameter)


def _state():
    """Return a checkpoint's tensors for `Model`, under MMDetection's names."""
    torch.manual_seed(1)
    classes = len(CLASSES)
    sizes = {
        "backbone.conv1.weight": (2, 2),
        "backbone.conv1.bias": (2,),
        "backbone.layer1.0.conv1.weight": (1,),
        "neck.lateral_convs.0.conv.weight": (1,),
        "neck.lateral_convs.1.conv.weight": (1,),
        "neck.lateral_convs.2.conv.weight": (1,),
        "neck.lateral_convs.3.conv.weight": (1,),
        "roi_head.bbox_head.fc_cls.weight": (classes + 1, 4),
        "roi_head.bbox_head.fc_cls.bias": (classes + 1,),
        "roi_head.bbox_head.fc_reg.weight": (4 * classes, 4),
        "roi_head.bbox_head.fc_reg.bias": (4 * classes,),
    }
    return {name: torch.randn(size) for name, size in sizes.items()}


def _loaded(path, **options):
    model = Model()
    load_weights(model, str(path), **options)
    return model.state_dict()


@pytest.mark.parametrize("name", MODELS)
def test_names_and_shapes_of_a_model_survive_both_directions(name):
    theirs = _empty(name)
    ours = from_mmdetection(theirs)
    assert len(ours) == len(theirs) and not ours.keys() & theirs.keys()
    without_counts = {n: t for n, t in ours.items() if not n.endswith("num_batches_tracked")}
    again, unknown = to_mmdetection(without_counts)
    assert not unknown
    assert list(again) == list(theirs)
    assert all(again[n].shape == t.shape and again[n].dtype == t.dtype for n, t in theirs.items())


@pytest.mark.parametrize(
    "recipe",
    ["mask_rcnn/mask_rcnn_x101_64x4d_fpn_1x_coco.py", "retinanet/retinanet_r50_fpn_1x_coco.py"],
)
def test_all_tensors_of_our_models_have_a_name_in_mmdetection(recipe):
    cfg = get_config(recipe)
    heads = cfg.model if "retinanet" in recipe else cfg.model.roi_heads
    heads.num_classes = 80
    with torch.device("meta"):
        ours = instantiate(cfg.model).state_dict()
    theirs, unknown = to_mmdetection(ours)
    assert unknown == []
    again = from_mmdetection(theirs)
    assert ours.keys() == {n for n in again if not n.endswith("num_batches_tracked")}
    if "retinanet" in recipe:
        assert theirs["neck.lateral_convs.0.conv.weight"].shape == (256, 512, 1, 1)
        assert theirs["neck.fpn_convs.3.conv.weight"].shape == (256, 2048, 3, 3)  # P6, from C5
        assert theirs["neck.fpn_convs.4.conv.bias"].shape == (256,)
        assert theirs["bbox_head.cls_convs.3.conv.weight"].shape == (256, 256, 3, 3)
        assert theirs["bbox_head.retina_cls.weight"].shape == (720, 256, 3, 3)
        assert theirs["bbox_head.retina_reg.bias"].shape == (36,)


def test_c4_and_dc5_models_have_no_fpn():
    names = {
        "backbone.layer4.0.downsample.1.running_var": "backbone.res5.0.shortcut.norm.running_var",
        "roi_head.shared_head.layer4.2.bn3.bias": "roi_heads.res5.2.conv3.norm.bias",
        "roi_head.mask_head.upsample.weight": "roi_heads.mask_head.deconv.weight",
    }
    found = from_mmdetection({name: torch.zeros(1) for name in names})
    assert list(found) == list(names.values())


@pytest.mark.parametrize("sizes", [[32], [32, 64, 128, 256, 512], [32, 40.3, 50.8]])
@pytest.mark.parametrize("layers", ["rpn_head.rpn_", "bbox_head.retina_"])
def test_anchors_are_reordered(layers, sizes):
    """In MMDetection, the ratio varies slowest; in Detectron2, the size does."""
    ratios = [0.5, 1.0, 2.0]
    shapes = [(size, ratio) for ratio in ratios for size in sizes]
    theirs = {
        f"{layers}cls.bias": torch.tensor([float(size) for size, _ in shapes]).repeat_interleave(2),
        f"{layers}reg.bias": torch.tensor([shape for shape in shapes for _ in (1, 2)]).flatten(),
    }
    scores, deltas = from_mmdetection(theirs).values()
    anchors = DefaultAnchorGenerator(sizes=[sizes], aspect_ratios=[ratios], strides=[16])
    (cell,) = anchors.cell_anchors
    widths, heights = (cell[:, 2:] - cell[:, :2]).T
    assert torch.allclose(scores.view(-1, 2)[:, 0], (widths * heights).sqrt())
    assert torch.allclose(deltas.view(-1, 4)[:, :2].T[0], (widths * heights).sqrt())
    assert torch.allclose(deltas.view(-1, 4)[:, :2].T[1], heights / widths)
    back, _ = to_mmdetection(from_mmdetection(theirs))
    assert all(torch.equal(back[name], tensor) for name, tensor in theirs.items())


@pytest.mark.parametrize("name", MODELS)
def test_the_recipes_of_a_checkpoint_are_named(name):
    tensors = _empty(name)
    assert describe(tensors)[0] == MODELS[name]
    text = fitting_recipes(tensors, caffe=None)
    assert f"its model is {MODELS[name]}, as in " in text and f"{name}_coco.py" in text
    style = fitting_recipes(tensors, caffe=False)
    assert "caffe" not in style


def test_the_recipes_of_a_cornernet_checkpoint_are_named():
    text = fitting_recipes(_empty("cornernet_hourglass104"), caffe=None)
    assert text.startswith("its model is CornerNet with Hourglass-104, as in ")
    assert "cornernet_hourglass104_mstest_32x3_210e_coco.py" in text


def test_resnet_34_has_two_convolutions_in_each_of_its_blocks():
    tensors = {
        name: tensor
        for name, tensor in _empty("faster_rcnn_r50_caffe_fpn_1x").items()
        if ".conv3." not in name
    }
    assert describe(tensors)[0] == "Faster R-CNN with ResNet-34 and FPN"
    assert "for which d2ext has no recipe" in fitting_recipes(tensors, caffe=False)


def test_a_mismatch_names_the_recipe_that_fits(tmp_path):
    """The names and shapes of a few tensors are enough."""
    state = _state() | {
        "backbone.layer1.0.conv2.weight": torch.zeros(256, 4, 1, 1),
        "backbone.layer1.0.conv3.weight": torch.zeros(1),
        "neck.fpn_convs.0.conv.weight": torch.zeros(1),
        **{f"backbone.layer3.{i}.conv1.weight": torch.zeros(1) for i in range(23)},
    }
    torch.save({"meta": {}, "state_dict": state}, tmp_path / "mm.pth")
    model = Model()
    model.backbone.bottom_up.stem.conv1 = nn.Linear(3, 3)
    with pytest.raises(UserError) as e:
        load_weights(model, str(tmp_path / "mm.pth"))
    assert (
        "it is from MMDetection, and its model is Faster R-CNN with ResNeXt-101 64x4d and FPN, as"
        " in faster_rcnn/faster_rcnn_x101_64x4d_fpn_1x_coco.py"
    ) in str(e.value)
    with pytest.raises(UserError, match="4 of the model's parameters .*faster_rcnn_x101_64x4d"):
        load_weights(Model(classes=3), str(tmp_path / "mm.pth"), whole=True)


def test_both_versions_have_class_names_and_an_input(tmp_path):
    cases = {
        "3.x": {"dataset_meta": {"classes": CLASSES}, "cfg": "a = dict(style='caffe', depth=50)"},
        "3.0.0rc": {"dataset_meta": {"CLASSES": CLASSES}, "mmdet_version": "3.0.0rc1"},
        "2.x": {"CLASSES": list(CLASSES), "config": "b = {'style': 'caffe'}"},
        "one class": {"CLASSES": "balloon", "mmdet_version": "2.28.0"},
        "none": {"CLASSES": None, "epoch": 12},
    }
    for version, meta in cases.items():
        torch.save({"meta": meta, "state_dict": _state()}, tmp_path / "mm.pth")
        found = read_weights(tmp_path / "mm.pth")
        classes = {"one class": ("balloon",), "none": ()}.get(version, CLASSES)
        assert found.classes == read_classes(tmp_path / "mm.pth") == classes
        known = {"stride_in_1x1": True} if {"cfg", "config"} & meta.keys() else {}
        assert found.expects == known


CAFFE = {
    "input_format": "BGR",
    "pixel_mean": [103.53, 116.28, 123.675],
    "pixel_std": [1.0, 1.0, 1.0],
    "stride_in_1x1": True,
}


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (
            "model = dict(backbone=dict(depth=50, style='caffe'), data_preprocessor=dict("
            "type='DetDataPreprocessor', mean=[103.53, 116.28, 123.675], std=[1.0, 1.0, 1.0]))",
            CAFFE,
        ),
        (
            "img_norm_cfg = dict(mean=[103.53, 116.28, 123.675], std=[1.0, 1.0, 1.0],"
            " to_rgb=False)\nmodel = dict(backbone=dict(style='caffe', norm_cfg=dict(x=f(1))))",
            CAFFE,
        ),
        (
            "p = [dict(type='Normalize', mean=[1, 2, 3], std=[4, 5, 6])]",
            {"input_format": "RGB", "pixel_mean": [1, 2, 3], "pixel_std": [4, 5, 6]},
        ),
        ("a = dict(mean=[1, 2, 3], std=[4, 5, 6])\nb = dict(mean=[0, 0, 0], std=[1, 1, 1])", {}),
        ("a = dict(style='caffe')\nb = dict(style='pytorch')", {}),
        ("not a config", {}),
        ("__import__('os').system('touch ran')", {}),
    ],
)
def test_the_config_in_a_checkpoint_says_which_input_it_expects(tmp_path, config, expected):
    assert expected_input(config) == expected
    assert not (tmp_path / "ran").exists()


def test_an_unknown_input_is_reported(tmp_path, caplog):
    class Normalized(Model):
        input_format = "BGR"
        pixel_mean = torch.tensor([103.53, 116.28, 123.675])

    torch.save({"meta": {}, "state_dict": _state()}, tmp_path / "mm.pth")
    load_weights(Normalized(), str(tmp_path / "mm.pth"))
    assert (
        "does not say which input its model expects: compare model.input_format=BGR" in caplog.text
    )
    caplog.clear()
    config = "a = dict(mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375], to_rgb=True)"
    torch.save({"meta": {"config": config}, "state_dict": _state()}, tmp_path / "mm.pth")
    load_weights(Normalized(), str(tmp_path / "mm.pth"))
    assert (
        "mm.pth expects a different input from the model's: model.input_format=RGB" in caplog.text
    )
    assert "does not say" not in caplog.text


class ConfigDict(dict):
    """Foreign class: a dict with attributes."""

    def __init__(self, *args, **kwargs):
        assert not LOADING, "a foreign class was called"
        super().__init__(*args, **kwargs)
        self.attribute = 1


class History(list):
    """Foreign class: a list with a state of its own."""

    def __getstate__(self):
        return ("a", {"b": np.ones(3)})

    def __setstate__(self, state):
        raise AssertionError("a foreign class was restored")


class Command:
    """Foreign class: its pickle runs a command."""

    def __reduce__(self):
        return os.system, ("touch ran",)


LOADING: list[bool] = []
FOREIGN = {
    "config": ConfigDict(lr=0.1, path=PurePosixPath("a")),
    "time": datetime(2024, 1, 1),
    "number": np.int64(3),
    "history": History([1, np.float32(2)]),
    "array": np.arange(3),
    "types": {int, ConfigDict},
    "function": os.getcwd,
    "command": Command(),
}


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "old"])
@pytest.mark.parametrize("left", [set(), {"command"}], ids=["with a command", "without"])
def test_foreign_objects_are_ignored_and_never_run(tmp_path, caplog, zipped, left):
    caplog.set_level(logging.INFO)
    objects = {key: value for key, value in FOREIGN.items() if key not in left}
    meta = {**objects, "dataset_meta": ConfigDict(), "CLASSES": CLASSES}
    content = {"meta": meta, "state_dict": _state(), "message_hub": {"log": History([Command()])}}
    content["optimizer"] = {"state": {0: {"exp_avg": torch.ones(3)}}, "param_groups": [meta]}
    if left:
        del content["message_hub"]
    torch.save(content, tmp_path / "mm.pth", _use_new_zipfile_serialization=zipped)
    LOADING.append(True)
    try:
        found = read_weights(tmp_path / "mm.pth")
        state = _loaded(tmp_path / "mm.pth")
        assert read_classes(tmp_path / "mm.pth") == CLASSES
    finally:
        LOADING.clear()
    assert not (tmp_path / "ran").exists()  # also the current directory
    assert found.classes == CLASSES
    assert all(torch.equal(found.tensors[name], tensor) for name, tensor in _state().items())
    assert torch.equal(
        state["backbone.bottom_up.stem.conv1.weight"], _state()["backbone.conv1.weight"]
    )
    assert "Ignored what is not a tensor in" in caplog.text and "ConfigDict" in caplog.text
    assert ("posix.system" in caplog.text) == ("command" not in left)


def test_a_file_without_tensors_but_with_a_command_is_refused(tmp_path):
    torch.save({"meta": {}, "state_dict": Command()}, tmp_path / "mm.pth")
    with pytest.raises(UserError, match="it holds posix.system, and d2ext does not run code"):
        _loaded(tmp_path / "mm.pth")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("meta", "more"),
    [
        ({"mmdet_version": "1.2.0+abc"}, {}),
        ({}, {"bbox_head.fc_cls.weight": torch.zeros(3, 4)}),
        ({}, {"bbox_head.2.fc_reg.bias": torch.zeros(4)}),
    ],
)
def test_checkpoints_of_1x_are_refused(tmp_path, meta, more):
    torch.save({"meta": meta, "state_dict": _state() | more}, tmp_path / "mm.pth")
    with pytest.raises(UserError, match=r"it is from MMDetection 1\..*upgrade_model_version.py"):
        _loaded(tmp_path / "mm.pth")


def test_the_averaged_weights_are_under_the_name_that_mmengine_gives_them(tmp_path):
    """EMA exchanges the two sets of weights when it saves a checkpoint."""
    raw = {f"module.{name}": tensor + 1 for name, tensor in _state().items()}
    raw["steps"] = torch.tensor(3)
    content = {"meta": {}, "state_dict": _state(), "ema_state_dict": raw}
    name, source = "backbone.bottom_up.stem.conv1.weight", "backbone.conv1.weight"
    torch.save(content, tmp_path / "mm.pth")
    assert torch.equal(_loaded(tmp_path / "mm.pth")[name], _state()[source])
    del content["state_dict"]
    torch.save(content, tmp_path / "mm.pth")
    assert torch.equal(_loaded(tmp_path / "mm.pth")[name], _state()[source] + 1)


def test_rows_follow_the_class_names(tmp_path):
    content = {"meta": {"CLASSES": CLASSES}, "state_dict": _state()}
    torch.save(content, tmp_path / "mm.pth")
    bias = _state()["roi_head.bbox_head.fc_cls.bias"]
    name = "roi_heads.box_predictor.cls_score.bias"
    state = _loaded(tmp_path / "mm.pth", classes=["kite", "dog"])
    assert state[name][0] == bias[1] and state[name][2] == bias[2]
    assert state[name][1] not in bias
    # Evaluation needs all classes, in any order.
    state = _loaded(tmp_path / "mm.pth", classes=CLASSES[::-1], whole=True)
    assert torch.equal(state[name], bias[[1, 0, 2]])
    state = _loaded(tmp_path / "mm.pth", classes=["kite", "dog"], whole=True)
    assert torch.equal(state[name], bias)


def test_the_last_of_three_mask_heads_fits_detectron2s_cascade(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    heads = {
        f"roi_head.mask_head.{i}.{layer}.weight": torch.full((2, 2), float(i))
        for i in range(3)
        for layer in ("upsample", "conv_logits")
    }
    torch.save({"meta": {}, "state_dict": _state() | heads}, tmp_path / "mm.pth")
    assert run_command(["convert-weights", "mmdet", "mm.pth", "ours.pth"]) is None
    for file in ("mm.pth", "ours.pth"):
        caplog.clear()
        model = Model()
        model.roi_heads.mask_head = nn.Module()
        model.roi_heads.mask_head.deconv = nn.Linear(2, 2, bias=False)
        load_weights(model, str(tmp_path / file))
        assert (model.roi_heads.mask_head.deconv.weight == 2).all()
        unused = re.search(r"Unused tensors of the file: (.*)", caplog.text)[1]
        assert "roi_heads.mask_head.0 (2 tensors), roi_heads.mask_head.1 (2 tensors)" in unused
        model.roi_heads.mask_head = nn.ModuleList([nn.Module() for _ in range(3)])
        for head in model.roi_heads.mask_head:
            head.deconv = nn.Linear(2, 2, bias=False)
        load_weights(model, str(tmp_path / file))
        values = [head.deconv.weight.unique().tolist() for head in model.roi_heads.mask_head]
        assert values == [[0], [1], [2]]


def test_the_command_converts_both_ways(tmp_path, capsys):
    state = _state() | {
        "backbone.bn1.bias": torch.randn(2).half(),
        "backbone.bn1.running_var": torch.rand(2),
        "backbone.bn1.num_batches_tracked": torch.tensor(7),
        "semantic_head.conv.weight": torch.zeros(1),
    }
    meta = {"dataset_meta": {"classes": CLASSES}, "cfg": "a = dict(style='caffe')"}
    torch.save({"meta": meta, "state_dict": state}, tmp_path / "mm.pth")
    run_command(["convert-weights", "mmdet", "mm.pth", "ours.pth"])
    assert re.match(
        r"wrote ours.pth: 13 tensors, the names of 2 classes; left out, without a counterpart:"
        r" semantic_head.conv \(1 tensor\); d2ext has no recipe for its model; it expects"
        r" stride_in_1x1=True\n",
        capsys.readouterr().out,
    )
    ours = torch.load(tmp_path / "ours.pth", weights_only=True)
    assert ours["classes"] == list(CLASSES)
    run_command(["convert-weights", "ours.pth", "back.pth", "--to", "mmdet"])
    back = torch.load(tmp_path / "back.pth", weights_only=True)
    assert back["meta"]["dataset_meta"]["classes"] == back["meta"]["CLASSES"] == CLASSES
    del state["semantic_head.conv.weight"]
    state["backbone.bn1.num_batches_tracked"] = torch.tensor(0)
    assert list(back["state_dict"]) == list(state)
    for name, tensor in back["state_dict"].items():
        assert tensor.dtype == state[name].dtype and torch.equal(tensor, state[name])


def test_the_averaged_weights_of_a_run_are_converted(tmp_path):
    ours = Model().state_dict()
    ours["backbone.bottom_up.stem.conv1.norm.weight"] = torch.ones(2)
    ours["backbone.bottom_up.stem.conv1.norm.bias"] = torch.ones(2)  # of the model zoo
    ours["backbone.fpn_lateral2.bias"] = torch.ones(2)
    ours["backbone.fpn_lateral2.weight"] = torch.ones(2)
    average = {name: tensor + 1 for name, tensor in ours.items()}
    content = {"model": ours, "ema": average, "iterations_done": 3, "classes": list(CLASSES)}
    torch.save(content, tmp_path / "run.pth")
    run_command(["convert-weights", "run.pth", "mm.pth", "--to", "mmdet"])
    theirs = torch.load(tmp_path / "mm.pth", weights_only=True)["state_dict"]
    assert torch.equal(theirs["backbone.bn1.bias"], torch.full((2,), 2.0))
    assert torch.equal(theirs["backbone.bn1.running_mean"], torch.zeros(2))
    assert torch.equal(theirs["backbone.bn1.running_var"], torch.ones(2))
    assert theirs["backbone.bn1.num_batches_tracked"] == 0
    bias = average["roi_heads.box_predictor.cls_score.bias"]
    assert torch.equal(theirs["roi_head.bbox_head.fc_cls.bias"], bias)


def test_a_single_mask_head_of_a_cascade_serves_all_stages():
    ours = {
        "backbone.fpn_lateral2.weight": torch.zeros(1),
        "roi_heads.box_predictor.0.cls_score.weight": torch.zeros(1),
        "roi_heads.mask_head.deconv.weight": torch.ones(1),
    }
    theirs, unknown = to_mmdetection(ours)
    assert not unknown
    assert [name for name in theirs if "mask" in name] == [
        f"roi_head.mask_head.{stage}.upsample.weight" for stage in range(3)
    ]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["mmdet", "none.pth", "new.pth"], "none.pth: no such file"),
        (["mmdet", "ours.pth", "new.pth"], "ours.pth is not a checkpoint of MMDetection"),
        (
            ["mmdet", "swin.pth", "new.pth"],
            "no tensors of a model that d2ext knows",
        ),
        (["mmdet", "mm.pth", "ours.pth"], "ours.pth already exists; give another file name"),
        (
            ["mmdet", "text.pth", "new.pth"],
            "text.pth cannot be read: it is a text file",
        ),
        (["mm.pth", "new.pth", "--to", "mmdet"], "mm.pth has MMDetection's names already"),
        (
            ["resnet.pth", "new.pth", "--to", "mmdet"],
            "no tensors under Detectron2's names",
        ),
    ],
)
def test_files_that_cannot_be_converted_are_one_line_errors(tmp_path, words, message):
    torch.save({"meta": {}, "state_dict": _state()}, tmp_path / "mm.pth")
    torch.save({"meta": {}, "state_dict": {"backbone.a.b": torch.ones(1)}}, tmp_path / "swin.pth")
    torch.save({"model": Model().state_dict()}, tmp_path / "ours.pth")
    torch.save({"conv1.weight": torch.ones(1)}, tmp_path / "resnet.pth")
    (tmp_path / "text.pth").write_text("text")
    with pytest.raises(UserError, match=re.escape(message)) as e:
        run_command(["convert-weights", *words])
    assert "\n" not in str(e.value)
    assert not (tmp_path / "new.pth").exists()


def test_the_direction_must_be_given(capsys):
    for words in (["a.pth", "b.pth"], ["mmdet", "a", "b", "--to", "mmdet"], ["a"], ["x", "a", "b"]):
        with pytest.raises(SystemExit):
            run_command(["convert-weights", *words])
        assert "give mmdet FILE OUT or FILE OUT --to mmdet" in capsys.readouterr().err
