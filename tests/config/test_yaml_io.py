"""The text of config.yaml: what Detectron2 would write, or a reason why it cannot be read."""

import functools
import threading
from pathlib import Path

import detectron2
import pytest
from detectron2.config import LazyConfig, instantiate
from detectron2.layers import ShapeSpec
from omegaconf import OmegaConf
from torch import nn

from d2ext.config.load import execute_config, load_config
from d2ext.config.yaml_io import parse_saved, saved_text

ZOO = Path(detectron2.__file__).parent / "model_zoo" / "configs"

RECIPES = [
    "configs/balloon/mask_rcnn_lite0_fpn_balloon.py",
    "configs/mask_rcnn/mask_rcnn_r50_caffe_fpn_1x_coco.py",
    "configs/cityscapes/mask_rcnn_r50_fpn_1x_cityscapes.py",
]


@pytest.mark.parametrize("recipe", RECIPES)
def test_saved_text_is_what_detectron2_writes(repo, tmp_path, recipe):
    cfg = load_config(repo / recipe)
    LazyConfig.save(cfg, str(tmp_path / "theirs.yaml"))
    assert saved_text(cfg) == ((tmp_path / "theirs.yaml").read_text(), None)


def test_objects_that_cannot_be_saved_are_named(repo, tmp_path):
    recipe = tmp_path / "mine.py"
    balloon = repo / RECIPES[0]
    recipe.write_text(
        f"from detectron2.config import LazyConfig\n"
        f"globals().update(LazyConfig.load({str(balloon)!r}))\n"
        "def mine(**arguments):\n"
        "    return arguments\n"
        "class Mine:\n"
        "    pass\n"
        'model["_target_"] = mine\n'
        'optimizer["_target_"] = Mine\n'
    )
    for section, name in (("model", "mine"), ("optimizer", "Mine")):
        cfg = load_config(balloon)
        cfg[section] = load_config(recipe)[section]
        text, problem = saved_text(cfg)
        assert name in text and name in problem

    cfg = load_config(balloon)
    cfg.train.lock = threading.Lock()
    text, problem = saved_text(cfg)
    assert "lock: !object 'lock'" in text and problem == "train.lock (lock)"


@pytest.mark.parametrize(
    "name",
    [
        "COCO-InstanceSegmentation/mask_rcnn_R_50_C4_1x.py",
        "COCO-InstanceSegmentation/mask_rcnn_regnety_4gf_dds_fpn_1x.py",
        "common/models/mask_rcnn_vitdet.py",
    ],
)
def test_functions_and_classes_of_detectron2s_configs_are_saved(name):
    backbone = execute_config(ZOO / name).model.backbone
    if "net" in backbone:
        backbone.net.update(depth=1, window_block_indexes=[])
    text, problem = saved_text(backbone)
    assert problem is None
    saved = parse_saved(text)
    assert str(instantiate(saved)) == str(instantiate(backbone))
    assert saved_text(saved) == (text, None)


def test_the_schedule_of_vitdet_is_saved(repo):
    cfg = load_config(repo / "configs/vitdet/mask_rcnn_vitdet_b_100ep_coco.py")
    text, problem = saved_text(cfg)
    assert problem is None
    rate = parse_saved(text).optimizer.params.lr_factor_func
    made, expected = instantiate(rate), cfg.optimizer.params.lr_factor_func
    assert (made.func, made.keywords) == (expected.func, expected.keywords)


def _saved(**arguments):
    call = {"a": {"_target_": "builtins.dict", **arguments}}
    call = OmegaConf.create(call, flags={"allow_objects": True})
    text, problem = saved_text(call)
    return problem or instantiate(parse_saved(text).a)


def test_partial_functions_keep_their_arguments():
    norm = functools.partial(nn.LayerNorm, eps=1e-6, shape=ShapeSpec(channels=3), sizes=[1, 2])
    saved = _saved(norms=[norm, functools.partial(nn.BatchNorm2d)])["norms"]
    assert (saved[0].func, saved[0].keywords) == (norm.func, norm.keywords)
    assert type(saved[0].keywords["sizes"]) is list
    assert saved[1].func is nn.BatchNorm2d
    nested = _saved(make=functools.partial(dict, norm=functools.partial(nn.LayerNorm, eps=1)))
    assert nested["make"].keywords["norm"].keywords == {"eps": 1}


@pytest.mark.parametrize(
    ("value", "key"),
    [
        (lambda x: x, "a.value"),
        ([nn.ReLU, lambda x: x], "a.value.1"),
        (functools.partial(lambda x: x, x=1), "a.value"),
        (functools.partial(nn.LayerNorm, 3), "a.value"),
        ({"norm": nn.LayerNorm}, "a.value.norm"),  # not instantiated by Detectron2
    ],
)
def test_objects_without_a_name_are_reported_with_their_key(value, key):
    assert _saved(value=value).startswith(f"{key} (")


def test_a_saved_function_is_imported_only_when_it_is_built(tmp_path, monkeypatch):
    (tmp_path / "imported_late.py").write_text("raise RuntimeError('ran')")
    monkeypatch.syspath_prepend(tmp_path)
    file = tmp_path / "config.yaml"
    call = "{_target_: detectron2.utils.registry.locate, name: imported_late.f}"
    file.write_text(f"a: {{_target_: builtins.dict, f: {call}}}")
    cfg = execute_config(file)
    with pytest.raises(Exception, match="ran"):
        instantiate(cfg.a)
