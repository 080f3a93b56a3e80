"""Check the names that `import d2ext` offers, its cost, and the examples in the docs."""

import ast
import doctest
import inspect
import json
import re
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

import d2ext
from d2ext.data.formats.coco import to_coco
from d2ext.data.formats.format import formats
from d2ext.data.formats.via import read_via
from tests.conftest import LITE0, REPO, checkout_env

PAGE = REPO / "docs" / "python_api.md"


def test_public_names_are_those_of_their_modules():
    from d2ext import Dataset, Predictor, load_config
    from d2ext.config import load
    from d2ext.data.datasets import declare
    from d2ext.predict import predictor

    assert Dataset is declare.Dataset
    assert Predictor is predictor.Predictor
    assert load_config is load.load_config
    assert d2ext.__all__ == sorted(d2ext.__all__)
    assert load_config(REPO / LITE0, ["train.max_iter=3"]).train.max_iter == 3
    with pytest.raises(AttributeError, match="module 'd2ext' has no attribute 'Datasets'"):
        d2ext.Datasets  # noqa: B018
    with pytest.raises(ImportError, match="cannot import name 'Datasets'"):
        from d2ext import Datasets  # noqa: F401


def test_type_checkers_see_the_names_where_they_are():
    body = ast.parse(Path(d2ext.__file__).read_text()).body
    block = next(node for node in body if isinstance(node, ast.If))
    seen = {alias.asname: (node.module, alias.name) for node in block.body for alias in node.names}
    assert seen == {name: (module, name) for name, module in d2ext._MODULES.items()}
    assert sorted(seen) == d2ext.__all__


def test_the_import_is_fast_and_needs_no_torch():
    code = (
        "import sys, d2ext\n"
        "assert [m for m in sys.modules if m.startswith('d2ext')] == ['d2ext']\n"
        "from d2ext import Dataset, UserError, get_config, load_config\n"
        "assert not {'torch', 'detectron2', 'cv2'} & set(sys.modules)"
    )
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, env=checkout_env(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def data(tiny_root, tmp_path_factory):
    """Return a folder with photos, their annotations, and a run that trained on them."""
    folder = tmp_path_factory.mktemp("api")
    for split in ("train", "val"):
        source = tiny_root / "balloon" / split
        photos = shutil.copytree(source, folder / "photos", dirs_exist_ok=True)
        records = read_via(source / "via_region_data.json", photos, ["balloon"])
        (folder / f"{split}.json").write_text(json.dumps(to_coco(records, ["balloon"], photos)))
    shutil.copy(next((folder / "photos").glob("*.jpg")), folder / "photo.jpg")
    data = ["data.train.json=train.json", "data.train.images=photos"]
    data += ["data.val.json=val.json", "data.val.images=photos"]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        cfg = d2ext.get_config("custom/mask_rcnn_lite0_fpn.py", [*data, "train.max_iter=1"])
        d2ext.train(cfg, "runs/trained", validate=False)
    return folder


@pytest.fixture
def folder(data, tmp_path, monkeypatch):
    """Make a copy of `data` the current folder; forget formats that an example registers."""
    shutil.copytree(data, tmp_path / "work")
    monkeypatch.chdir(tmp_path / "work")
    before = set(formats())
    yield
    for name in set(formats()) - before:
        del formats()[name]


@pytest.mark.parametrize("name", d2ext.__all__)
def test_the_example_of_a_docstring(folder, name):
    """Every public name has one; the values that it shows are those that it gives."""
    docstring = inspect.getdoc(getattr(d2ext, name))
    match = re.search(r"^Examples:\n((?:    .*\n?|\n)+)", docstring, re.MULTILINE)
    assert match, f"the docstring of d2ext.{name} has no Examples:"
    code = textwrap.dedent(match[1])
    namespace = {"__name__": "example"}
    examples = doctest.DocTestParser().get_examples(code)
    if not examples:
        exec(code, namespace)
    for example in examples:
        if example.want:
            assert repr(eval(example.source, namespace)) == example.want.strip()
        else:
            exec(example.source, namespace)


def test_the_code_of_the_page(folder):
    """All blocks, one after the other, with fewer iterations."""
    blocks = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    assert "train.max_epochs=24" in blocks[0]
    namespace = {"__name__": "page"}
    for block in blocks:
        exec(block.replace("train.max_epochs=24", "train.max_iter=2"), namespace)
    assert namespace["run"].trainer.iter == 2 and namespace["picture"].ndim == 3
