"""Trainings with presets of augmentation: equal losses with any workers, and after a resume."""

import json
import shutil

import pytest
import torch

from tests.conftest import REPO

STRONG = ["data.augmentation=strong", "train.checkpointer.period=2", "train.seed=1"]


def _lines(folder):
    return [
        {key: value for key, value in json.loads(line).items() if "loss" in key or "lr" in key}
        for line in (folder / "metrics.json").read_text().splitlines()
    ]


@pytest.mark.slow
def test_strong_trains_the_same_with_workers_and_after_a_resume(train_net, tiny, tmp_path):
    """The run keeps the name of the preset, and another one is a change on resume."""
    common = ["--no-validate", "--options", *tiny, *STRONG]
    whole = tmp_path / "whole"
    done = train_net("--work-dir", whole, *common)
    assert done.status == 0, done.stderr
    assert "augment     strong: " in done.stdout and "copy-paste (50 %)" in done.stdout
    assert "augmentation: strong" in (whole / "config.yaml").read_text()
    done = train_net("--work-dir", tmp_path / "workers", *common, "dataloader.train.num_workers=2")
    assert done.status == 0, done.stderr
    assert _lines(tmp_path / "workers") == _lines(whole)
    for name, preset in (("resumed", "strong"), ("changed", "light")):
        part = tmp_path / name
        shutil.copytree(whole, part)
        for file in ("model_final.pth", "model_0000003.pth"):
            (part / file).unlink(missing_ok=True)
        options = ["--work-dir", part, *common, f"data.augmentation={preset}"]
        done = train_net("--resume", *options)
        assert done.status == 0, done.stderr
        assert "resumes" in done.stdout
        warned = "data.augmentation (strong before, light now)" in done.stdout
        assert warned == (name == "changed")
    weights = [
        torch.load(tmp_path / name / "model_final.pth", weights_only=True)["model"]
        for name in ("whole", "resumed")
    ]
    assert all(torch.equal(weights[1][key], value) for key, value in weights[0].items())


def test_mappers_without_a_list_are_refused_in_one_line(train_net, style):
    """A DETR of another project, whose mapper has other arguments."""
    config = REPO / "tests/detectron2_style/configs/detr.py"
    done = train_net("--dry-run", "data.augmentation=strong", config=config)
    assert done.status == 2 and len(done.stderr.splitlines()) == 1
    assert "data.augmentation=strong: dataloader.train.mapper has no list" in done.stderr


def test_print_config_explains_the_key(d2ext_command):
    config = REPO / "configs/balloon/mask_rcnn_lite0_fpn_balloon.py"
    done = d2ext_command("print-config", config, "--docs")
    assert done.status == 0
    assert "\ndata.augmentation (list or none or light or strong or aerial or null): None\n" in (
        done.stdout
    )
    assert "a list of augmentations" in done.stdout
