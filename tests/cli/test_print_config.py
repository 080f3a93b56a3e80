"""tools/print_config.py: a config whole, as a difference, and with the meaning of its keys."""

import re

import pytest

from d2ext.config.load import load_config
from tests.conftest import LITE0, REPO


@pytest.fixture
def show(run_tool):
    """Runs the tool on the lite0 recipe."""
    return lambda *args: run_tool("print_config", REPO / LITE0, *args)


def test_what_is_printed_is_the_config(show, tmp_path):
    """It can be given to --config-file, and has the overrides."""
    done = show("optimizer.lr=1e-3")
    assert done.status == 0 and not done.stderr
    file = tmp_path / "config.yaml"
    file.write_text(done.stdout)
    cfg = load_config(file)
    assert cfg.optimizer.lr == 1e-3 and cfg.train.warmup_iters == 50


def test_differences(show, tmp_path):
    """A line a key; of equal configs one that says so."""
    done = show("--diff", REPO / LITE0, "optimizer.lr=1e-3", "train.max_epochs=3")
    assert done.stdout.splitlines() == [
        "optimizer.lr: 0.001, was 0.0005",
        "train.max_epochs: 3, was 22",
    ]
    assert show("--diff", REPO / LITE0).stdout.startswith("nothing differs from")
    other = show("--diff", REPO / "configs/mask_rcnn/mask_rcnn_r50_fpn_1x_coco.py").stdout
    assert "model.backbone.out_channels: 96, was 256" in other
    assert "train.best.metric: coco/segm/AP, was None" in other


def test_every_key_with_its_meaning(show):
    """A line of type, value and default where that differs, and one of what it means."""
    lines = show("--docs").stdout.splitlines()
    heads, meanings = lines[::2], lines[1::2]
    assert all(re.match(r"[\w.\[\]]+ \(.+\): .", line) for line in heads)
    assert all(re.match(r"    \S", line) for line in meanings)
    at = lines.index("train.max_epochs (int or float or null, above 0): 22, default 12")
    assert lines[at + 1].strip().startswith("length in epochs; set this or max_iter")
    assert "train.seed (int, 0 or more): 0" in lines
    batch = "dataloader.train.total_batch_size (int, 1 or more)"
    assert f"{batch}: ${{train.reference_batch_size}}" in lines


def test_mistakes(run_tool, show):
    """Are those of every tool that takes a config."""
    assert "does not exist" in run_tool("print_config", "nowhere.py").stderr
    done = show("train.max_itre=3")
    assert done.status == 2 and "max_iter" in done.stderr
