"""Recipes by their names: loaded from anywhere, and copied to where nothing else is."""

import ast
import shlex
from pathlib import Path

import pytest

import d2ext
from d2ext.config.load import load_config
from d2ext.config.recipes import RECIPES, copy_recipe, find_config, recipes
from d2ext.config.yaml_io import saved_text
from d2ext.errors import UserError

LITE0 = "custom/mask_rcnn_lite0_fpn.py"
NAMES = [name for name, _ in recipes()]


def test_recipes_are_all_configs_but_their_parts(repo):
    files = {file.relative_to(repo / "configs") for file in (repo / "configs").rglob("*.py")}
    assert set(map(Path, NAMES)) == {file for file in files if file.parts[0] != "common"}
    assert all(text.endswith(".") for _, text in recipes())


@pytest.mark.parametrize("name", NAMES)
def test_a_copy_is_the_same_config(name, tmp_path):
    """In an empty folder with a blank; the rest of its text is that of the recipe."""
    folder = tmp_path / "my configs"
    folder.mkdir()
    copy = copy_recipe(name, folder)
    assert copy == folder / Path(name).name and list(folder.iterdir()) == [copy]
    mine, theirs = load_config(copy), d2ext.get_config(name)
    assert saved_text(mine) == saved_text(theirs)
    text, original = copy.read_text(), (RECIPES / name).read_text()
    assert "from ." not in text and f"CONFIG='{copy}'\n" in text
    imports = [n for n in ast.parse(original).body if isinstance(n, ast.ImportFrom) and n.level]
    tail = original.splitlines(keepends=True)[imports[-1].end_lineno :]
    assert text.endswith("".join(tail)) and len(tail) > 3


def test_the_text_of_a_copy(tmp_path, monkeypatch):
    copy = copy_recipe(LITE0, "mine.py")
    text = copy.read_text()
    assert "    CONFIG=mine.py\n" in text
    assert "import d2ext\n\n_custom = d2ext.get_config(" in text
    assert "data = _custom.data\ndataloader = _custom.dataloader\n" in text
    assert 'optimizer = d2ext.get_config("common/optim.py").AdamW\n' in text
    for destination, words in (
        ("mine.py", "mine.py already exists; give another file name"),
        ("mine", "mine is not a config file; give a name that ends with .py"),
        ("nowhere/mine.py", "cannot write nowhere/mine.py: No such file"),
        ("nowhere/", "the folder nowhere/ does not exist; create it"),
    ):
        with pytest.raises(UserError, match=words):
            copy_recipe(LITE0, destination)
    assert copy.read_text() == text


@pytest.mark.parametrize("name", ["a\\x.py", 'q"""x.py', "it's.py", 'a"', "a\\"])
def test_a_copy_with_a_name_that_python_would_escape(name):
    name = f"{name.removesuffix('.py')}.py"
    copy = copy_recipe(LITE0, name)
    command = ast.get_docstring(ast.parse(copy.read_text())).splitlines()[2].strip()
    assert shlex.split(command) == [f"CONFIG={name}"]
    assert load_config(copy) == d2ext.get_config(LITE0)


def test_two_configs_share_nothing():
    one, other = d2ext.get_config(LITE0), d2ext.get_config(LITE0)
    before = saved_text(other)
    one.optimizer.lr = 7
    one.dataloader.train.mapper.augmentations.clear()
    one.model.pixel_mean[0] = 7
    one.train.best.metric = "coco/bbox/AP"
    one.datasets.clear()
    assert saved_text(other) == before
    assert saved_text(d2ext.get_config(LITE0)) == before != saved_text(one)


def test_overrides_and_checks():
    cfg = d2ext.get_config(LITE0, ["optimizer.lr=1e-3", "train.max_iter=5"])
    assert (cfg.optimizer.lr, cfg.train.max_iter, cfg.train.max_epochs) == (1e-3, 5, None)
    assert d2ext.get_config(Path(LITE0)) == d2ext.get_config(LITE0)
    with pytest.raises(UserError, match="max_itr"):
        d2ext.get_config(LITE0, ["train.max_itr=5"])
    with pytest.raises(UserError, match="is a string; give a list"):
        d2ext.get_config(LITE0, "train.max_iter=5")


def test_parts_of_recipes():
    assert set(d2ext.get_config("common/optim.py")) == {"SGD", "AdamW", "Adam"}
    parts = d2ext.get_config("configs/common/data/custom", ["dataloader.train.num_workers=0"])
    assert set(parts) == {"data", "dataloader", "datasets"}
    assert parts.dataloader.train.num_workers == 0
    assert d2ext.get_config("common/data/custom.py").dataloader.train.num_workers == 4


@pytest.mark.parametrize(
    "name", ["custom/mask_rcnn_lite0_fp.py", "../setup.py", "/etc/hosts", "", "x" * 300]
)
def test_an_unknown_recipe_is_an_error(name):
    with pytest.raises(UserError, match="there is no recipe") as e:
        d2ext.get_config(name)
    assert ("did you mean 'custom/mask_rcnn_lite0_fpn.py'?" in str(e.value)) == ("lite" in name)


def test_a_config_extends_a_recipe_from_anywhere(tmp_path):
    """With relative imports as well, in a folder with a blank."""
    folder = tmp_path / "my configs"
    (folder / "parts").mkdir(parents=True)
    (folder / "parts" / "rate.py").write_text("rate = dict(lr=0.5)\n")
    (folder / "mine.py").write_text(
        "import d2ext\n\n"
        "from .parts.rate import rate\n\n"
        f"_cfg = d2ext.get_config({LITE0!r}, ['train.max_iter=3'])\n"
        + "".join(f"{name} = _cfg.{name}\n" for name in d2ext.get_config(LITE0))
        + "optimizer.lr = rate.lr\n"
    )
    cfg = d2ext.load_config(folder / "mine.py")
    assert (cfg.optimizer.lr, cfg.train.max_iter) == (0.5, 3)
    assert d2ext.get_config(LITE0).optimizer.lr == 5e-4


def test_what_a_config_argument_means(tmp_path, trained):
    recipe = str(RECIPES / LITE0)
    for name in (LITE0, LITE0.removesuffix(".py"), f"configs/{LITE0}", f"./configs/{LITE0}"):
        assert find_config(name) == recipe
    assert find_config(trained) == str(trained / "config.yaml")
    Path("custom").mkdir()
    Path(LITE0).touch()
    assert find_config(LITE0) == LITE0  # an existing file wins
    assert find_config(f"configs/{LITE0}") == recipe
    for name, words in (
        ("custom", "is a folder without a config.yaml"),
        ("custom/mask_rcnn_lite0_fpm.py", f"did you mean {LITE0}?"),
        ("custom/mask_rcnn_r50_fpm.py", "did you mean custom/mask_rcnn_lite0_fpn.py?"),
        ("faster_rcnn/faster_rcnn_r50_caffe_fpn_1x", "did you mean faster_rcnn/faster_rcnn_r50_"),
        ("zzz", "`d2ext recipes` lists the recipes"),
        ("x" * 300, "xxx does not exist"),
    ):
        with pytest.raises(UserError) as e:
            find_config(name)
        assert words in str(e.value)


def test_a_module_that_is_not_found():
    Path("mine.py").write_text("import my_stuf\n")
    with pytest.raises(UserError) as e:
        load_config("mine.py")
    assert str(e.value) == (
        "mine.py:1: ModuleNotFoundError: No module named 'my_stuf'; modules must be in the"
        " current folder, on PYTHONPATH, or installed"
    )
    Path("sub").mkdir()
    Path("mine.py").rename("sub/mine.py")
    Path("sub/my_stuf.py").touch()
    with pytest.raises(UserError) as e:
        load_config("sub/mine.py")
    found = f"; PYTHONPATH={Path('sub').absolute()} finds the one next to the config"
    assert str(e.value).endswith(f"or installed{found}")
