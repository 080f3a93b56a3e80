"""A run directory of version 0.1 can be resumed, evaluated, reported and used for predictions."""

import json
import math
import shutil
from pathlib import Path

import pytest
import torch

from tests.conftest import REPO

FIXTURE = REPO / "tests" / "data" / "run_0_1"
RUN = Path("run")


@pytest.fixture
def finished(tmp_path):
    """Copy the finished run (4 iterations) and its photos to the current directory."""
    shutil.copytree(FIXTURE / "run", tmp_path / RUN)
    shutil.copytree(FIXTURE / "photos", tmp_path / "photos")
    for name in ("model_best.pth", "model_final.pth"):  # hard links in the original
        (RUN / name).hardlink_to(RUN / "model_0000003.pth")


@pytest.fixture
def killed(finished):
    """Reset the run to its checkpoint after 2 iterations."""
    for file in RUN.glob("model_*"):
        if not file.name.startswith("model_0000001.pth"):
            file.unlink()
    (RUN / "last_checkpoint").write_text("model_0000001.pth")


def _losses(run):
    lines = [json.loads(line) for line in (run / "metrics.json").read_text().splitlines()]
    return {line["iteration"]: line["total_loss"] for line in lines}  # later lines count


def _weights(file):
    state = torch.load(file, weights_only=True)["model"]
    return torch.cat([tensor.flatten().double() for tensor in state.values()])


def _check_silent(done):
    assert done.status == 0, done.stderr
    assert "warning" not in (done.stdout + done.stderr).lower()


@pytest.mark.parametrize("config", [FIXTURE / "recipe.py", RUN / "config.yaml"])
def test_resume_computes_what_0_1_computed(killed, train_net, config):
    done = train_net("--work-dir", RUN, "--resume", config=config)
    _check_silent(done)
    assert "model_0000001.pth; continues at iteration 2" in done.stdout
    assert _losses(RUN) == pytest.approx(_losses(FIXTURE / "run"), rel=1e-3)
    # On the CPU that 0.1 ran on, the weights are equal bit for bit (tests/equal_to.py). With
    # another instruction set, they differed by 3e-6 of the change of the two steps; without the
    # optimizer's state, by 0.7 of it.
    start, theirs = (_weights(FIXTURE / "run" / f"model_000000{i}.pth") for i in (1, 3))
    mine = _weights(RUN / "model_final.pth")
    assert (mine - theirs).norm() < 0.05 * (theirs - start).norm()


def test_evaluation_gives_the_results_of_0_1(finished, train_net):
    done = train_net(
        "--work-dir", RUN, "--eval-only", "--weights", "last", config=RUN / "config.yaml"
    )
    _check_silent(done)
    theirs = json.loads((FIXTURE / "run" / "results.json").read_text())["last"]["results"]
    mine = json.loads((RUN / "eval" / "results.json").read_text())["last"]["results"]
    assert mine.keys() == theirs.keys()
    for key, value in theirs.items():  # other CPUs round differently
        assert mine[key] is None if value is None else abs(mine[key] - value) < 1, key


def test_prediction_finds_the_objects_of_0_1(finished, run_tool):
    flags = ["--config-file", RUN / "config.yaml", "--weights", "best", "--output", "out"]
    done = run_tool("predict", *flags, "--score-threshold", "0", "photos/val")
    _check_silent(done)
    theirs = json.loads((FIXTURE / "run" / "predictions" / "custom_val.json").read_text())
    mine = json.loads(Path("out/predictions.json").read_text())
    assert len(mine) == len(theirs)
    assert mine[0]["score"] == pytest.approx(theirs[0]["score"], abs=1e-4)


def test_report_shows_the_run_of_0_1(finished, run_tool):
    done = run_tool("report", RUN)
    _check_silent(done)
    page = (RUN / "report.html").read_text()
    ap = json.loads((RUN / "results.json").read_text())["best"]["results"][
        "custom_val/coco/segm/AP"
    ]
    assert math.isfinite(ap) and f"{ap:.1f}" in page


def test_comparison_with_a_new_run_shows_no_renamed_module(finished, run_tool, train_net):
    flags = ["--work-dir", "new", "--no-validate", "train.max_iter=1"]
    _check_silent(train_net(*flags, config=FIXTURE / "recipe.py"))
    assert "d2ext.data.loading.loader" in Path("new/config.yaml").read_text()
    _check_silent(run_tool("report", RUN, "new", "--output", "both.html"))
    page = Path("both.html").read_text()
    assert "train.max_iter" in page and "_target_" not in page
