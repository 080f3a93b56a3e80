"""Test tools/print_config.py: a whole config, differences, and documented keys."""

import re

import pytest

from d2ext.config.load import load_config
from tests.conftest import LITE0, REPO


@pytest.fixture
def show(run_tool):
    """Run the tool on the lite0 recipe."""
    return lambda *args: run_tool("print_config", REPO / LITE0, *args)


def test_the_output_is_a_valid_config_file(show, tmp_path):
    """The printed config includes the overrides and can be loaded again."""
    done = show("optimizer.lr=1e-3")
    assert done.status == 0 and not done.stderr
    file = tmp_path / "config.yaml"
    file.write_text(done.stdout)
    cfg = load_config(file)
    assert cfg.optimizer.lr == 1e-3 and cfg.train.warmup_iters == 50


def test_diff_prints_one_line_per_key(show, tmp_path):
    """For equal configs, a single line says so."""
    done = show("--diff", REPO / LITE0, "optimizer.lr=1e-3", "train.max_epochs=3")
    assert done.stdout.splitlines() == [
        "optimizer.lr: 0.001, was 0.0005",
        "train.max_epochs: 3, was 22",
    ]
    assert show("--diff", REPO / LITE0).stdout.startswith("nothing differs from")
    other = show("--diff", REPO / "configs/mask_rcnn/mask_rcnn_r50_fpn_1x_coco.py").stdout
    assert "model.backbone.out_channels: 96, was 256" in other
    assert "train.best.metric: coco/segm/AP, was None" in other


def test_docs_prints_every_key_with_its_meaning(show):
    """Each key has two lines: type, value and a differing default; then its meaning."""
    lines = show("--docs").stdout.splitlines()
    heads, meanings = lines[::2], lines[1::2]
    assert all(re.match(r"[\w.\[\]]+ \(.+\): .", line) for line in heads)
    assert all(re.match(r"    \S", line) for line in meanings)
    at = lines.index("train.max_epochs (int or float or null, above 0): 22, default 12")
    assert lines[at + 1].strip().startswith("length in epochs; set this or max_iter")
    assert "train.seed (int, 0 or more): 0" in lines
    batch = "dataloader.train.total_batch_size (int, 1 or more)"
    assert f"{batch}: ${{train.reference_batch_size}}" in lines


def test_invalid_configs_and_overrides_are_errors(run_tool, show):
    assert "does not exist" in run_tool("print_config", "nowhere.py").stderr
    done = show("train.max_itre=3")
    assert done.status == 2 and "max_iter" in done.stderr
