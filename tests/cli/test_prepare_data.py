"""Test the command line of tools/prepare_data.py."""

import os
import subprocess
import sys
from pathlib import Path

import pytest


def command(repo: Path, *args: object) -> list[str]:
    """Return the command line of the tool."""
    return [sys.executable, str(repo / "tools" / "prepare_data.py"), *map(str, args)]


def test_balloon_photos_are_copied_once_and_described(repo: Path, tmp_path: Path) -> None:
    environment = {**os.environ, "DETECTRON2_DATASETS": str(tmp_path)}
    for start in ("copied: ", ""):
        run = subprocess.run(
            command(repo, "balloon"), env=environment, capture_output=True, text=True, check=True
        )
        assert run.stdout.startswith(f"{start}{tmp_path}/balloon holds the balloon photos, reduced")
        assert "61 + 13 images" in run.stdout and len(run.stdout.splitlines()) == 1


def test_help_and_work_import_no_torch(repo: Path, tmp_path: Path) -> None:
    for args in (["--help"], ["balloon", "--root", tmp_path]):
        line = command(repo, *args)
        line.insert(1, "-Ximporttime")
        run = subprocess.run(line, capture_output=True, text=True, check=True)
        modules = {x.rsplit("|", 1)[1].strip() for x in run.stderr.splitlines() if "|" in x}
        assert "argparse" in modules
        assert not modules & {"torch", "detectron2", "cv2"}


def test_a_user_error_is_one_line_and_status_2(repo: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    run = subprocess.run(
        command(repo, "balloon", "--root", tmp_path / "file"), capture_output=True, text=True
    )
    assert run.returncode == 2
    assert run.stderr.startswith("error: ") and len(run.stderr.splitlines()) == 1


def test_a_full_disk_leaves_no_files(repo: Path, tmp_path: Path) -> None:
    # A file size limit makes the same call fail as a full disk.
    limited = ["sh", "-c", 'ulimit -f 16; exec "$@"', "sh"]
    run = subprocess.run(
        [*limited, *command(repo, "balloon", "--root", tmp_path)], capture_output=True, text=True
    )
    assert run.returncode == 2, run.stderr
    assert "error: cannot write" in run.stderr and len(run.stderr.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


def test_coco_and_cityscapes_are_checked_without_torch(repo: Path, tmp_path: Path) -> None:
    image_sets = tmp_path / "VOC2012" / "ImageSets" / "Main"
    image_sets.mkdir(parents=True)
    (image_sets / "trainval.txt").write_text("2008_000002")
    (tmp_path / "coco" / "annotations").mkdir(parents=True)
    (tmp_path / "coco" / "annotations" / "instances_train2017.json").write_text("{}")
    for name, words in (
        ("coco", f"{tmp_path}/coco/annotations lacks instances_val2017.json"),
        ("voc", f"{image_sets}/trainval.txt lists 1 photo, not 11,540 and lacks 1 annotation"),
        ("open_images", f"{tmp_path}/OpenImages lacks annotations/oidv6-train"),
        ("cityscapes", "Log in at https://www.cityscapes-dataset.com/downloads"),
    ):
        line = command(repo, name, "--root", tmp_path)
        line.insert(1, "-Ximporttime")
        run = subprocess.run(line, capture_output=True, text=True)
        errors = [x for x in run.stderr.splitlines() if not x.startswith("import time:")]
        assert (run.returncode, run.stdout) == (2, "")
        assert errors[0].startswith("error: ") and words in "".join(errors)
        modules = {x.rsplit("|", 1)[1].strip() for x in run.stderr.splitlines() if "|" in x}
        assert "argparse" in modules and not modules & {"torch", "detectron2"}


def test_label_maps_are_checked_only_if_asked_for(repo: Path, tmp_path: Path) -> None:
    for name in ("annotations/instances_train2017.json", "annotations/instances_val2017.json"):
        file = tmp_path / "coco" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("{}")
    maps = tmp_path / "coco" / "stuffthingmaps" / "val2017"
    maps.mkdir(parents=True)
    for i in (1, 2):
        (maps / f"{i}.png").write_text("")
    line = command(repo, "coco", "--root", tmp_path, "--parts", "annotations")
    run = subprocess.run(line, capture_output=True, text=True, check=True)
    assert "stuffthingmaps" not in run.stdout
    run = subprocess.run([*line, "--stuff"], capture_output=True, text=True)
    assert run.returncode == 2 and len(run.stderr.splitlines()) == 1
    assert f"{maps} holds 2 label maps, not 5,000; move it away or delete it" in run.stderr


def test_initial_weights_are_fetched_with_a_dataset(repo: Path, tmp_path: Path) -> None:
    recipe = repo / "configs" / "balloon" / "mask_rcnn_lite0_fpn_balloon.py"
    run = subprocess.run(
        command(repo, "balloon", "--root", tmp_path, "--weights", recipe),
        capture_output=True,
        text=True,
        check=True,
    )
    balloon, weights = run.stdout.splitlines()
    assert "61 + 13 images" in balloon
    assert weights.startswith("package://") and weights.endswith("57934424.pth (18.8 MB)")


def test_a_recipe_without_initial_weights_says_so(repo: Path, tmp_path: Path) -> None:
    recipe = repo / "configs" / "balloon" / "mask_rcnn_lite0_fpn_balloon.py"
    (tmp_path / "scratch.py").write_text(
        "from detectron2.config import LazyConfig\n"
        f"globals().update(LazyConfig.load({str(recipe)!r}))\n"
        "train.init_checkpoint = ''\n"
    )
    run = subprocess.run(
        command(repo, "--weights", tmp_path / "scratch.py"),
        capture_output=True,
        text=True,
        check=True,
    )
    assert run.stdout == f"{tmp_path}/scratch.py has no initial weights (train.init_checkpoint)\n"


@pytest.mark.parametrize(
    "args", [[], ["ballon"], ["balloon", "extra"], ["coco", "--parts", "val"], ["--weights"]]
)
def test_an_invalid_command_line_is_an_error(repo: Path, args: list[str]) -> None:
    run = subprocess.run(command(repo, *args), capture_output=True, text=True)
    assert run.returncode == 2
    assert "usage:" in run.stderr and "Traceback" not in run.stderr
