"""Config files: what loads, and what a broken one says."""

import builtins

import pytest

from d2ext.config.load import load_config
from d2ext.errors import UserError

RECIPE = "configs/balloon/mask_rcnn_lite0_fpn_balloon.py"


def test_a_recipe_loads_with_overrides(repo):
    cfg = load_config(repo / RECIPE, ["train.max_iter=3", "data.root=/elsewhere"])
    assert cfg.train.max_iter == 3
    assert cfg.datasets.balloon_train.json_file == "/elsewhere/balloon/train/via_region_data.json"


def test_a_saved_config_loads_again(repo, tmp_path):
    from detectron2.config import LazyConfig
    from omegaconf import OmegaConf

    cfg = load_config(repo / RECIPE)
    LazyConfig.save(cfg, str(tmp_path / "config.yaml"))
    again = load_config(tmp_path / "config.yaml", ["train.seed=7"])
    assert again.train.seed == 7
    again.train.seed = cfg.train.seed
    LazyConfig.save(again, str(tmp_path / "again.yaml"))
    assert (tmp_path / "again.yaml").read_text() == (tmp_path / "config.yaml").read_text()
    assert not list(tmp_path.glob("*.pkl"))
    assert OmegaConf.is_config(again.model)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("train = dict(", ["c.py:1", "SyntaxError"]),
        ("\n\nx = 1 / 0\n", ["c.py:3", "ZeroDivisionError"]),
        ("from .gone import model\n", ["c.py:1", "gone.py does not exist"]),
        ("from detectron2.nowhere import x\n", ["c.py:1", "detectron2.nowhere"]),
        ("model = dict()\n", ["no section", "dataloader", "train"]),
        ("MODEL = dict()\n", ["yacs"]),
    ],
)
def test_a_broken_config_names_file_and_line(tmp_path, content, words):
    original = builtins.__import__
    (tmp_path / "c.py").write_text(content)
    with pytest.raises(UserError) as e:
        load_config(tmp_path / "c.py")
    assert all(word in str(e.value) for word in words), str(e.value)
    # Detectron2 leaves its own import behind when a config raises.
    assert builtins.__import__ is original


def test_an_absent_config_names_the_nearest(repo):
    with pytest.raises(UserError, match="did you mean .*mask_rcnn_lite0_fpn_balloon.py"):
        load_config(repo / RECIPE.replace("lite0", "lite"))
    with pytest.raises(UserError, match="nor does the folder"):
        load_config("no/such/folder/c.py")


def test_both_lengths_in_a_file_are_refused(tmp_path, repo):
    text = "\n".join(
        [
            "model = dataloader = optimizer = lr_multiplier = datasets = dict()",
            "train = dict(max_epochs=1, max_iter=2)",
        ]
    )
    (tmp_path / "c.py").write_text(text)
    with pytest.raises(UserError, match="both train.max_epochs and train.max_iter"):
        load_config(tmp_path / "c.py")
