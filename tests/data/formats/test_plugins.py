"""Formats of installed packages, and those that a process registers itself."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from d2ext import Format, register_format
from d2ext.data.formats.format import ReadOption, formats
from d2ext.errors import UserError
from tests.conftest import REPO

PLUGIN = """
import json
from d2ext import Format

def read(source, image_root, classes=None):
    records = []
    for i, (name, boxes) in enumerate(json.load(open(source))["acme"].items(), start=1):
        objects = [{"bbox": box, "bbox_mode": 0, "category_id": 0} for box in boxes]
        record = dict(file_name=f"{image_root}/{name}", image_id=i, height=120, width=160)
        records.append({**record, "annotations": objects})
    return records, classes or ["thing"]

FORMAT = Format(
    name="acme",
    title="Acme ({acme})",
    detect=lambda head: isinstance(head.value, dict) and "acme" in head.value,
    read=read,
    source="Acme's boxes: the JSON",
    in_training=True,
)
"""


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a folder on PYTHONPATH into which the distribution acme-formats 1.0 is installed."""
    site = tmp_path / "site"
    install(site, "acme-formats", {"acme": "plug:FORMAT"}, plug=PLUGIN)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(REPO), str(site)]))
    (tmp_path / "imgs").mkdir()
    boxes = {}
    for i in range(2):
        boxes[f"{i}.jpg"] = [[10, 20, 60 + i, 80]]
        Image.new("RGB", (160, 120), (90, 40 * i, 30)).save(tmp_path / "imgs" / f"{i}.jpg")
    (tmp_path / "acme.json").write_text(json.dumps({"acme": boxes}))
    return site


def install(site: Path, name: str, entries: dict[str, str], **modules: str) -> None:
    """Write modules and the metadata of a distribution, as pip leaves them."""
    info = site / f"{name.replace('-', '_')}-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    lines = [f"{entry} = {value}" for entry, value in entries.items()]
    (info / "entry_points.txt").write_text("\n".join(["[d2ext.formats]", *lines]))
    for module, text in modules.items():
        (site / f"{module}.py").write_text(text)


def tool(name: str, *arguments: str) -> subprocess.CompletedProcess:
    """Run a tool in a new process, which finds the packages of PYTHONPATH."""
    command = [sys.executable, REPO / "tools" / f"{name}.py", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=300)


def test_an_installed_format_is_converted(package: Path) -> None:
    done = tool("convert_dataset", "acme", "acme.json", "--images", "imgs", "--output", "out.json")
    assert done.returncode == 0, done.stderr
    assert done.stdout == "out.json: 2 images, 2 objects, classes: thing\n"
    assert json.loads(Path("out.json").read_text())["annotations"][0]["bbox"] == [10, 20, 50, 60]
    assert "Acme's boxes: the JSON" in tool("convert_dataset", "--help").stdout


def test_other_commands_name_an_installed_format(package: Path) -> None:
    done = tool("check_dataset", "acme.json", "--images", "imgs")
    assert done.returncode == 2
    words = r"an annotation file in the format Acme \({acme}\); convert it with .* acme acme.json"
    assert re.search(words, done.stderr), done.stderr


@pytest.mark.nightly
@pytest.mark.slow
def test_two_processes_train_on_an_installed_format(package: Path, tmp_path: Path) -> None:
    done = tool(
        "train_net",
        *("--config-file", str(REPO / "configs/custom/faster_rcnn_lite0_fpn.py")),
        *("--num-gpus", "2", "--work-dir", "run"),
        *("data.train.json=acme.json", "data.train.images=imgs"),
        *("data.val.json=acme.json", "data.val.images=imgs", "train.device=cpu"),
        *("train.max_iter=2", "train.reference_batch_size=2", "train.init_checkpoint="),
        *("dataloader.train.num_workers=1", "dataloader.val.num_workers=0"),
        "dataloader.train.mapper.augmentations[0].short_edge_length=96",
        "dataloader.val.mapper.augmentations[0].short_edge_length=96",
    )
    assert done.returncode == 0, done.stderr
    assert re.search(r"custom_train +2 +2 +thing 2", done.stdout), done.stdout
    results = json.loads(Path("run/results.json").read_text())["last"]["results"]
    assert "custom_val/coco/bbox/AP" in results

    # Another version of the package reads the same file in another way: nothing is remembered.
    (package / "plug.py").write_text(PLUGIN.replace("boxes]", "boxes * 2]"))
    done = tool(
        "train_net",
        *("--config-file", str(REPO / "configs/custom/faster_rcnn_lite0_fpn.py"), "--dry-run"),
        *("--no-validate", "data.train.json=acme.json", "data.train.images=imgs"),
        *("train.max_iter=2", "train.reference_batch_size=2", "train.init_checkpoint="),
    )
    assert re.search(r"custom_train +2 +4 +thing 4", done.stdout), done.stdout + done.stderr


def test_broken_packages_are_named_and_break_nothing(package: Path) -> None:
    install(package, "broken-formats", {"b": "broken:FORMAT"}, broken="import no_such_module")
    install(package, "no-format", {"n": "json:dumps"})
    install(package, "twice", {"t": "twice:FORMAT"}, twice=PLUGIN.replace("Acme", "Twice"))
    raising = "lambda head: head.value.no_such_attribute"
    text = re.sub("detect=.*", f"detect={raising},", PLUGIN.replace('"acme",', '"raising",'))
    install(package, "raising-formats", {"r": "raising:FORMAT"}, raising=text)
    done = tool("convert_dataset", "acme", "acme.json", "--images", "imgs", "--output", "out.json")
    assert done.returncode == 0, done.stderr
    warned = done.stderr.splitlines()
    assert len(warned) == 3, warned
    for words in (
        "'b' of the installed package broken-formats 1.0 is ignored .*d2ext.formats = broken:FORMAT"
        ".*: ModuleNotFoundError: No module named 'no_such_module'",
        "'n' of the installed package no-format 1.0 is ignored .*is not a d2ext.Format",
        "'t' of the installed package twice 1.0 is ignored .*name 'acme' is used by Acme",
    ):
        assert any(re.search(words, line) for line in warned), warned
    Path("other.json").write_text('{"boxes": []}')
    done = tool("check_dataset", "other.json", "--images", "imgs")
    assert "format 'raising' cannot detect files: AttributeError" in done.stderr, done.stderr


def test_importing_d2ext_does_not_look_for_packages(package: Path) -> None:
    install(package, "broken-formats", {"b": "broken:FORMAT"}, broken="print('imported')")
    code = "import sys, d2ext, d2ext.data.formats; assert 'plug' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


TOY = Format(name="toy", title="Toys", detect=lambda head: False, read=lambda *_: ([], []))


@pytest.fixture
def free_names() -> Iterator[None]:
    """Forget the formats that a test registers."""
    before = set(formats())
    yield
    for name in set(formats()) - before:
        del formats()[name]


def test_a_registered_format_stays(free_names: None) -> None:
    register_format(TOY)
    register_format(TOY)
    assert formats()["toy"] is TOY


@pytest.mark.parametrize(
    ("form", "words"),
    [
        (replace(TOY, name="coco"), "'coco' is used by COCO"),
        (replace(TOY, write={"yolo": lambda *_: {}}), "'toy' writes 'yolo', like another"),
        (
            replace(TOY, options={"root": ReadOption("--images", "a folder")}),
            "'toy' has the option 'images', which every format has",
        ),
        ("toy", "'toy' is not a d2ext.Format"),
    ],
)
def test_a_format_that_does_not_fit_is_refused(free_names: None, form: Format, words: str) -> None:
    with pytest.raises(UserError, match=words):
        register_format(form)
    assert "toy" not in formats()
