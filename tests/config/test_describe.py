"""Descriptions of the keys of all recipes, and of a custom config."""

import shutil

import pytest

from d2ext.config.describe import keys, starting_point
from d2ext.config.load import load_config
from tests.conftest import LITE0, REPO

RECIPES = sorted(
    str(path.relative_to(REPO))
    for path in REPO.glob("configs/*/*.py")
    if path.parent.name != "common"
)


def described(config, *overrides):
    """Return the description of each key."""
    cfg = load_config(config, overrides)
    return {key.name: key for key in keys(cfg, starting_point(config))}


@pytest.mark.parametrize("recipe", RECIPES)
def test_every_key_has_type_and_meaning(repo, recipe):
    """Only for third-party callables without documented arguments may it refer to the callable."""
    for key in described(repo / recipe).values():
        assert key.kind and len(key.meaning) > 3, key
        refers = key.meaning.startswith("argument of ")
        assert not (refers and " d2ext." in key.meaning), key
        assert key.kind != "any" or refers, key


def test_values_and_defaults(repo):
    """Defaults come from configs/common if the recipe uses it, otherwise from the signature."""
    found = described(repo / LITE0, "optimizer.lr=1e-3")

    def both(name):
        return found[name].value, found[name].default

    assert both("train.max_epochs") == ("22", "12")
    assert both("train.seed") == ("0", "0")
    assert both("optimizer.lr") == ("0.001", "0.0001")  # configs/common/optim.py
    assert both("optimizer.amsgrad") == ("False", "False")  # left out by the recipe
    assert both("dataloader.train.mapper.recompute_boxes") == ("True", "False")
    assert both("dataloader.train.mapper.cache") == ("False", "False")
    assert both("model.roi_heads.num_classes") == ("1", "None")
    # The second augmentation differs from the one in configs/common, whose values do not apply.
    assert both("dataloader.train.mapper.augmentations[1].crop_size") == ("[320, 320]", None)
    assert found["dataloader.train.mapper.augmentations[1]._target_"].default.endswith("RandomFlip")


def test_partial_objects_are_shown_with_their_arguments(repo):
    found = described(repo / "configs/vitdet/mask_rcnn_vitdet_b_100ep_coco.py")
    function = "detectron2.modeling.backbone.vit.get_vit_lr_decay_rate"
    shown = f"partial({function}, num_layers=12, lr_decay_rate=0.7)"
    assert found["optimizer.params.lr_factor_func"].value == shown


def test_types(repo):
    """Types come from check.py, otherwise from a comment, the annotation or the value."""
    found = described(repo / "configs/custom/mask_rcnn_lite0_fpn.py")
    for name, kind in {
        "train.max_epochs": "int or float or null, above 0",
        "train.bad_images": "stop or skip",
        "train.dist.backend": "nccl or gloo or null",
        "train.auto_scale_lr.rule": "linear or sqrt or null",
        "data.classes": "list or null",
        "dataloader.train.total_batch_size": "int, 1 or more",
        "dataloader.train.seed": "int",
        "dataloader.train.dataset.names": "str or Sequence[str]",
        "optimizer.params.weight_decay": "float or null",
        "train.ddp.broadcast_buffers": "bool",
        "optimizer._target_": "function",
    }.items():
        assert found[name].kind == kind
    assert found["data.classes"].meaning.endswith("all classes of the training file")


def test_defaults_of_a_custom_config_and_a_saved_one(tmp_path):
    """A config that imports a recipe has its defaults; a config.yaml has those of all recipes."""
    shutil.copytree(REPO / "configs", tmp_path / "configs")
    mine = tmp_path / "configs" / "balloon" / "mine.py"
    names = "data, dataloader, datasets, evaluators, lr_multiplier, model, optimizer, train"
    mine.write_text(f"from .mask_rcnn_lite0_fpn_balloon import {names}\ntrain.max_epochs = 30\n")
    found = described(mine)
    assert (found["train.max_epochs"].value, found["train.max_epochs"].default) == ("30", "12")
    assert found["model.backbone.out_channels"].default == "96"
    from detectron2.config import LazyConfig

    LazyConfig.save(load_config(mine), str(tmp_path / "config.yaml"))
    found = described(tmp_path / "config.yaml")
    assert (found["train.max_epochs"].value, found["train.max_epochs"].default) == ("30", "12")
    assert found["model.backbone.out_channels"].default is None


def test_a_callable_without_a_docstring_is_named(repo, tmp_path, monkeypatch):
    """The meaning of its arguments refers to its documentation."""
    (tmp_path / "silent_optimizer.py").write_text("def silent(params, lr, bounds=None): pass\n")
    monkeypatch.syspath_prepend(tmp_path)
    found = described(repo / LITE0, "optimizer._target_=silent_optimizer.silent")
    words = "argument of silent_optimizer.silent; see its documentation"
    assert found["optimizer.bounds"] == ("optimizer.bounds", "any", "None", "None", words)
