"""The text of config.yaml: what Detectron2 would write, or a reason why it cannot be read."""

import threading

import pytest
from detectron2.config import LazyConfig

from d2ext.config.load import load_config
from d2ext.config.yaml_io import saved_text

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
    assert "lock: !object 'lock'" in text and "!object" in problem
