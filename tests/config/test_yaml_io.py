"""The text of config.yaml: what Detectron2 would write, or a reason why it cannot be read."""

import threading

import pytest
import yaml
from detectron2.config import LazyConfig
from torch import nn

from d2ext.config.load import load_config
from d2ext.config.yaml_io import parse_saved, saved_text

RECIPES = [
    "configs/balloon/mask_rcnn_lite0_fpn_balloon.py",
    "configs/mask_rcnn/mask_rcnn_r50_caffe_fpn_1x_coco.py",
    "configs/cityscapes/mask_rcnn_r50_fpn_1x_cityscapes.py",
    "configs/vitdet/mask_rcnn_vitdet_b_100ep_coco.py",
]


@pytest.mark.parametrize("recipe", RECIPES)
def test_saved_text_is_what_detectron2_writes(repo, tmp_path, recipe):
    cfg = load_config(repo / recipe)
    LazyConfig.save(cfg, str(tmp_path / "theirs.yaml"))
    assert saved_text(cfg) == ((tmp_path / "theirs.yaml").read_text(), None)


def test_functions_classes_and_partials_are_read_again(repo):
    cfg = load_config(repo / RECIPES[-1])
    cfg.model.backbone.net.act_layer = nn.GELU
    again = parse_saved(saved_text(cfg)[0])
    net, given = again.model.backbone.net, cfg.model.backbone.net
    assert net.act_layer is nn.GELU
    assert (net.norm_layer.func, net.norm_layer.keywords) == (nn.LayerNorm, {"eps": 1e-6})
    rate = again.optimizer.params.lr_factor_func
    assert rate("backbone.net.blocks.3.x") == pytest.approx(0.7**9)
    assert given.norm_layer.keywords == net.norm_layer.keywords


@pytest.mark.parametrize("name", ["os.system", "subprocess.Popen", "torch.no_such_function"])
def test_other_functions_are_not_read(name):
    with pytest.raises(yaml.YAMLError, match=name):
        parse_saved(f"a: !!python/name:{name} ''")
    with pytest.raises(yaml.YAMLError):
        parse_saved(f"a: !!python/object/apply:{name} ['true']")


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
        assert name in text and problem == f"{section}._target_ ({name})"

    cfg = load_config(balloon)
    cfg.train.lock = threading.Lock()
    text, problem = saved_text(cfg)
    assert "lock: !object 'lock'" in text and problem == "train.lock (lock)"
    cfg.train.pop("lock")
    cfg.model.roi_heads.mask_head.conv_norm = lambda channels: None
    assert saved_text(cfg)[1].startswith("model.roi_heads.mask_head.conv_norm (")
