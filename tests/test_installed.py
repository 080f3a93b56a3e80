"""The wheel in a new environment, outside of the checkout: the work of a user, by its command."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

CUSTOM = "custom/mask_rcnn_lite0_fpn.py"
_TWO = ["--nproc-per-node=2"]
# A hook and a metric of the user's own, in a module beside the config.
MODULE = """from detectron2.engine import HookBase
from detectron2.utils import comm


class Note(HookBase):
    def after_train(self):
        with open(f"rank_{comm.get_rank()}.txt", "a") as file:
            print(self.trainer.iter, file=file)


class Count:
    def __call__(self, ground_truth, detections):
        return {"bbox/images": float(len(ground_truth.image_ids))}
"""
CONFIG = """
from detectron2.config import LazyCall as L

from my_parts import Count, Note

train.hooks = [L(Note)()]
evaluators.mine = L(Count)()
"""


@pytest.fixture
def d2ext(installed):
    """Runs the command of the wheel in the current folder, where the checkout is out of reach."""

    def run(*args):
        done = subprocess.run(
            [installed / "d2ext", *map(str, args)],
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    return run


@pytest.fixture
def data(tiny_root, tmp_path) -> list[str]:
    """Return overrides for your own photos that train in seconds."""
    places = []
    for split in ("train", "val"):
        shutil.copytree(tiny_root / "balloon" / split, tmp_path / split)
        json_file = f"data.{split}.json={split}/via_region_data.json"
        places += [json_file, f"data.{split}.images={split}"]
    return [
        *places,
        "data.classes=[balloon]",
        "train.reference_world_size=2",
        "train.reference_batch_size=2",
        "dataloader.train.num_workers=0",
        "dataloader.val.num_workers=0",
        "dataloader.train.mapper.augmentations[0].short_edge_length=96",
        "dataloader.val.mapper.augmentations[0].short_edge_length=96",
        # After a few steps, no score may reach the usual threshold.
        "model.roi_heads.box_predictor.test_score_thresh=0.0",
    ]


def test_the_wheel_is_what_runs(installed):
    code = "import d2ext; print(d2ext.__file__)"
    done = subprocess.run([installed / "python", "-c", code], capture_output=True, text=True)
    assert Path(done.stdout.strip()).is_relative_to(installed.parent)


def test_recipes_training_resume_and_prediction(d2ext, data):
    assert CUSTOM in d2ext("recipes")
    assert "train it with: d2ext train mine.py" in d2ext("copy", CUSTOM, "mine.py")
    Path("my_parts.py").write_text(MODULE)
    with open("mine.py", "a") as file:
        file.write(CONFIG)

    said = d2ext("train", "mine.py", "--num-gpus", 2, *data, "train.max_iter=3")
    assert "predict: d2ext predict work_dirs/mine IMAGES" in said
    results = json.loads(Path("work_dirs/mine/results.json").read_text())["last"]["results"]
    assert results["custom_val/mine/bbox/images"] == 2
    said = d2ext("train", "work_dirs/mine", "--resume", "train.max_iter=4")
    assert "continues at iteration 3" in said
    assert [Path(f"rank_{rank}.txt").read_text() for rank in (0, 1)] == ["3\n4\n", "3\n"]
    d2ext("evaluate", "work_dirs/mine")
    assert Path("work_dirs/mine/eval/results.json").is_file()
    d2ext("predict", "work_dirs/mine", "val", "--score-threshold", 0)
    found = json.loads(Path("work_dirs/predict/predictions.json").read_text())
    assert found and len(list(Path("work_dirs/predict/overlays").iterdir())) == 2


def test_a_recipe_as_it_is(d2ext, data):
    """Without a copy; its keys are described, and the balloon recipes find a data root."""
    d2ext("train", CUSTOM, "--no-validate", *data, "train.max_iter=1")
    assert Path("work_dirs/mask_rcnn_lite0_fpn/report.html").is_file()
    assert "default 0.0001" in d2ext("print-config", CUSTOM, "--docs")
    balloon = d2ext("print-config", "balloon/mask_rcnn_lite0_fpn_balloon.py")
    assert "root: '${oc.env:DETECTRON2_DATASETS,datasets}'" in balloon


def test_torchrun(installed, data):
    """Ranks of torchrun run the command as a module, as run.json says."""
    train = ["-m", "d2ext", "train", CUSTOM, "--no-validate", *data, "train.max_iter=1"]
    done = subprocess.run(
        [installed / "python", "-m", "torch.distributed.run", "--standalone", *_TWO, *train],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    info = json.loads(Path("work_dirs/mask_rcnn_lite0_fpn/run.json").read_text())
    start = f"torchrun --standalone {_TWO[0]} -m d2ext train {CUSTOM} "
    assert info["command"].startswith(start)


@pytest.mark.nightly
def test_a_job_without_slurm(d2ext, data, tmp_path, monkeypatch):
    """Its processes import the wheel and the user's modules, and no path is set for that."""
    monkeypatch.setenv("D2EXT_CACHE", str(tmp_path / "cache"))
    Path("my_parts.py").write_text(MODULE)
    job = ["--cluster", "local", "--wait", "train.hooks=[{_target_: my_parts.Note}]"]
    said = d2ext("submit", CUSTOM, *job, *data, "train.max_iter=1", "--num-gpus", 2)
    assert "report: work_dirs/mask_rcnn_lite0_fpn/report.html" in said
    assert Path("rank_1.txt").read_text() == "1\n"
    assert "finished" in d2ext("submit", "status")


TYPED = """from typing import assert_type

import d2ext

cfg = d2ext.get_config("custom/mask_rcnn_lite0_fpn.py")
run = d2ext.train(cfg, "runs/mine")
assert_type(run, d2ext.Run)
assert_type(run.results, dict[str, float | None])
assert_type(d2ext.Predictor.from_run(run.output_dir)("photo.jpg"), d2ext.Prediction)
d2ext.train(cfg, overwrit=True)
d2ext.trian(cfg)
"""


@pytest.mark.nightly
def test_type_checkers_see_the_types(installed, tmp_path):
    """Mypy knows the types of the public names, and reports only the two mistakes."""
    (tmp_path / "mine.py").write_text(TYPED)
    mypy = [sys.executable, "-m", "mypy", "--python-executable", installed / "python", "mine.py"]
    done = subprocess.run(mypy, cwd=tmp_path, capture_output=True, text=True)
    assert re.findall(r"^mine.py:(\d+): error: .*\[(.+)\]$", done.stdout, re.MULTILINE) == [
        ("10", "call-arg"),
        ("11", "attr-defined"),
    ]
    assert "Found 2 errors in 1 file" in done.stdout, done.stdout
