"""Loading of config files, and the errors of broken ones."""

import builtins
import os
import subprocess
import sys
from pathlib import Path

import pytest

from d2ext.config.load import load_config
from d2ext.errors import UserError
from tests.conftest import REPO

RECIPE = "configs/balloon/mask_rcnn_lite0_fpn_balloon.py"
COCO = "configs/mask_rcnn/mask_rcnn_r50_fpn_1x_coco.py"


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
        ("import sys\nsys.exit(3)\n", ["c.py:2", "SystemExit"]),
        ("\nraise ValueError('first\\nsecond')\n", ["c.py:2: ValueError: first"]),
        ("\nraise ValueError\n", ["c.py:2: ValueError"]),
        ("return\n", ["c.py:1", "SyntaxError"]),
        ("\neval('1 +')\n", ["c.py:2", "SyntaxError"]),
        ("def f():\n    return 1 / 0\nf()\n", ["c.py:2", "ZeroDivisionError"]),
        ("# caf\xe9\n".encode("latin-1"), ["c.py: UnicodeDecodeError"]),
        ("from .other import x\n", ["other.py:2", "ZeroDivisionError"]),
        ("from .syntax import x\n", ["syntax.py:3", "SyntaxError"]),
        ("from .latin import x\n", ["latin.py: UnicodeDecodeError"]),
        ("\nfrom .empty import x\n", ["c.py:2", "KeyError: 'x'"]),
        (
            "from detectron2.config import LazyConfig\nLazyConfig.load_rel('broken.yaml')\n",
            ["broken.yaml:2"],
        ),
    ],
)
def test_a_broken_config_names_file_and_line(tmp_path, content, words):
    original = builtins.__import__
    (tmp_path / "c.py").write_bytes(content if isinstance(content, bytes) else content.encode())
    (tmp_path / "other.py").write_text("\nx = 1 / 0\n")
    (tmp_path / "syntax.py").write_text("\n\nx = (\n")
    (tmp_path / "latin.py").write_bytes("# caf\xe9\n".encode("latin-1"))
    (tmp_path / "empty.py").touch()
    (tmp_path / "broken.yaml").write_text("train:\n  a: b: c\n")
    with pytest.raises(UserError) as e:
        load_config(tmp_path / "c.py")
    assert all(word in str(e.value) for word in words), str(e.value)
    assert "\n" not in str(e.value)
    # Detectron2 does not restore `__import__` when a config raises an error.
    assert builtins.__import__ is original


def test_a_missing_config_suggests_the_closest_name(repo):
    with pytest.raises(UserError, match="did you mean .*mask_rcnn_lite[01]_fpn_balloon.py"):
        load_config(repo / RECIPE.replace("lite0", "lite"))
    with pytest.raises(UserError, match="nor does the folder"):
        load_config("no/such/folder/c.py")


def test_both_lengths_in_a_file_are_refused(tmp_path, repo):
    text = "\n".join(
        [
            "model = dataloader = optimizer = lr_multiplier = datasets = evaluators = dict()",
            "train = dict(max_epochs=1, max_iter=2)",
        ]
    )
    (tmp_path / "c.py").write_text(text)
    with pytest.raises(UserError, match="both train.max_epochs and train.max_iter"):
        load_config(tmp_path / "c.py")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", ["c.yaml has no section model"]),
        (b"- model\n", ["c.yaml has no section model"]),
        (b"model\n", ["c.yaml has no section model"]),
        (b"5\n", ["c.yaml", "'int'"]),
        (b"train:\n  seed: 0\n  a: b: c\n", ["c.yaml:3", "not allowed here"]),
        ("train: caf\xe9\n".encode("latin-1"), ["c.yaml: UnicodeDecodeError"]),
        (b"train: null\nmodel: 5\n", ["no section model", "train"]),
        (b"x: !!python/object/apply:sys.exit [3]\n", ["c.yaml:1", "apply:sys.exit"]),
    ],
)
def test_a_broken_yaml_names_file_and_line(tmp_path, content, words):
    (tmp_path / "c.yaml").write_bytes(content)
    with pytest.raises(UserError) as e:
        load_config(tmp_path / "c.yaml")
    assert all(word in str(e.value) for word in words), str(e.value)
    assert "\n" not in str(e.value)


def test_a_folder_is_not_a_config(repo):
    with pytest.raises(UserError, match="configs/balloon is a folder"):
        load_config(repo / "configs" / "balloon")


def test_a_config_loads_from_its_own_folder(repo, monkeypatch):
    monkeypatch.chdir((repo / RECIPE).parent)
    assert load_config((repo / RECIPE).name).train.max_epochs == 22


def test_errors_name_files_relative_to_the_current_folder(tmp_path, monkeypatch):
    (tmp_path / "c.py").write_text("x = 1 / 0")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"^c\.py:1: ZeroDivisionError"):
        load_config("c.py")


@pytest.mark.parametrize("dist", ["null", "5", "[1]", "{prot: 1}"])
def test_dist_params_accepts_only_the_fields_of_dist(tmp_path, dist):
    sections = "model dataloader optimizer lr_multiplier train datasets evaluators".split()
    text = "".join(f"{name}: {{}}\n" for name in sections)
    (tmp_path / "c.yaml").write_text(f"{text}dist_params: {dist}\n")
    with pytest.raises(UserError, match="c.yaml: dist_params=.*backend, port, url"):
        load_config(tmp_path / "c.yaml")


def test_an_empty_data_root_means_the_default(repo, monkeypatch):
    monkeypatch.setenv("DETECTRON2_DATASETS", "")
    assert load_config(repo / COCO).data.root == "datasets"
    monkeypatch.setenv("DETECTRON2_DATASETS", "/data")
    assert load_config(repo / COCO).data.root == "/data"


@pytest.mark.parametrize("name", [path.name for path in (REPO / "configs/balloon").glob("*.py")])
def test_balloon_recipes_use_the_photos_of_their_checkout(name, monkeypatch):
    """The current directory and $DETECTRON2_DATASETS do not matter."""
    monkeypatch.setenv("DETECTRON2_DATASETS", "/data")
    recipe = REPO / "configs/balloon" / name
    cfg = load_config(recipe)
    assert cfg.data.root == str(REPO / "examples")
    assert all(Path(dataset.json_file).is_file() for dataset in cfg.datasets.values())
    elsewhere = load_config(recipe, ["data.root=/data"]).datasets.balloon_val
    assert elsewhere.json_file == "/data/balloon/val/via_region_data.json"


def test_prepare_data_treats_an_empty_data_root_as_unset(repo, tmp_path):
    done = subprocess.run(
        [sys.executable, str(repo / "tools" / "prepare_data.py"), "balloon"],
        env={**os.environ, "DETECTRON2_DATASETS": ""},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0 and "61 + 13 images" in done.stdout, done.stderr
    assert (tmp_path / "datasets/balloon/train/via_region_data.json").is_file()


def test_dist_params_of_mmdetection(repo, tmp_path):
    """In overrides and configs, they set train.dist."""
    cfg = load_config(repo / RECIPE, ["dist_params.port=29501"])
    assert cfg.train.dist.port == 29501
    folder = tmp_path / "balloon"
    folder.mkdir()
    (tmp_path / "common").symlink_to(repo / "configs" / "common")
    text = (repo / RECIPE).read_text() + "\ndist_params = dict(backend='nccl', port=29500)\n"
    (folder / "c.py").write_text(text)
    cfg = load_config(folder / "c.py")
    assert (cfg.train.dist.backend, cfg.train.dist.port) == ("nccl", 29500)
    assert "dist_params" not in cfg
