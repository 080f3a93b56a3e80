"""Test the command line of tools/convert_dataset.py."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.balloons import write_balloons


@pytest.fixture
def train(tmp_path: Path) -> Path:
    """Return a folder of two photos with their VIA annotations."""
    write_balloons(tmp_path / "balloon", num_train=2, num_val=1)
    return tmp_path / "balloon" / "train"


def run(repo: Path, *args: object, python: tuple = ()) -> subprocess.CompletedProcess:
    """Run the tool in a new process."""
    tool = [sys.executable, *python, str(repo / "tools" / "convert_dataset.py")]
    return subprocess.run([*tool, *map(str, args)], capture_output=True, text=True)


def test_a_round_trip_keeps_all_objects(repo: Path, tmp_path: Path, train: Path) -> None:
    via = train / "via_region_data.json"
    made = []
    for name in ("a.json", "b.json"):
        args = ("via", via, "--images", train, "--output", tmp_path / name, "--classes", "balloon")
        done = run(repo, *args)
        assert done.returncode == 0, done.stderr
        assert "2 images" in done.stdout and "classes: balloon" in done.stdout
        made.append((tmp_path / name).read_bytes())
    assert made[0] == made[1]
    count = len(json.loads(made[0])["annotations"])
    done = run(
        repo, "coco", tmp_path / "a.json", "--to", "labelme", "--output", tmp_path / "l",
        "--images", train,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    again = ("labelme", tmp_path / "l", "--images", train, "--output", tmp_path / "c.json")
    assert f"{count} objects" in run(repo, *again).stdout


def test_an_ambiguous_class_attribute_is_a_one_line_error(
    repo: Path, tmp_path: Path, train: Path
) -> None:
    via = train / "via_region_data.json"
    content = json.loads(via.read_text())
    regions = [r for e in content.values() for r in e["regions"].values()]
    for i, region in enumerate(regions):
        region["region_attributes"] = {"color": f"c{i % 2}", "shape": f"s{i % 3}"}
    via.write_text(json.dumps(content))
    args = ("via", via, "--images", train, "--output", tmp_path / "out.json")
    done = run(repo, *args)
    assert done.returncode == 2 and not (tmp_path / "out.json").exists()
    assert done.stderr.startswith("error: ") and len(done.stderr.splitlines()) == 1
    assert "'color', 'shape'" in done.stderr and "--class-attribute" in done.stderr
    done = run(repo, *args, "--class-attribute", "color")
    assert done.returncode == 0 and "classes: c0, c1" in done.stdout


def test_help_and_work_import_no_torch(repo: Path, tmp_path: Path, train: Path) -> None:
    via = train / "via_region_data.json"
    work = ("via", via, "--images", train, "--output", tmp_path / "o.json", "--classes", "b")
    for args in (("--help",), work):
        done = run(repo, *args, python=("-Ximporttime",))
        assert done.returncode == 0
        modules = {x.rsplit("|", 1)[1].strip() for x in done.stderr.splitlines() if "|" in x}
        assert "argparse" in modules
        assert not modules & {"torch", "detectron2", "cv2", "hotcoco", "shapely"}
