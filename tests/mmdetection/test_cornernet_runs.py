"""The commands train, resume and evaluate CornerNet's recipe, with a small hourglass and crops."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from d2ext import Predictor
from tests.conftest import REPO
from tests.mmdetection import runs

RECIPE = "cornernet/cornernet_hourglass104_mstest_32x3_210e_coco.py"
CONFIG = REPO / "configs" / RECIPE
STEPS = 12
AUGMENTATIONS = "dataloader.train.mapper.augmentations"
SMALL = [
    "model.backbone.channels=[16,16,24]",
    "model.backbone.blocks=[1,1,2]",
    f"{AUGMENTATIONS}[1].crop_size=[96,96]",
    f"{AUGMENTATIONS}[1].border=32",
    f"{AUGMENTATIONS}[2].shape=[96,96]",
    f"train.max_iter={STEPS}",
    "train.reference_world_size=2",
    "train.reference_batch_size=2",
    "train.checkpointer.period=3",
    "train.warmup_iters=3",
    "train.log_period=1",
    "dataloader.train.num_workers=0",
    "dataloader.val.num_workers=0",
    "data.classes=[balloon]",
]
# One process then has the micro-batches of two: batch normalization depends on them.
ONE = ["train.accumulate=2"]

pytestmark = pytest.mark.slow


@pytest.fixture(scope="session")
def small(tiny_root):
    """Return overrides for a run on own data, photos of 160 pixels."""
    data = []
    for split in ("train", "val"):
        folder = tiny_root / "balloon" / split
        data.append(f"data.{split}.json={folder / 'via_region_data.json'}")
        data.append(f"data.{split}.images={folder}")
    return [*SMALL, *data]


def _train(folder, *options):
    """Train in a process with one thread per rank, and return the output."""
    return runs.finish(runs.start(folder, RECIPE, 1, *options))


def _train_and_kill(folder, *options):
    runs.kill_after_a_checkpoint(runs.start(folder, RECIPE, 1, *options), folder)


@pytest.fixture(scope="module")
def whole(small, tmp_path_factory):
    """Return the directory of a run of one process; tests must not change it."""
    folder = tmp_path_factory.mktemp("runs") / "whole"
    _train(folder, *small, *ONE)
    return folder


def _losses(folder):
    return [x["total_loss"] for x in runs.metrics(folder).values() if "total_loss" in x]


def _assert_equal(a, b):
    """Compare all tensors, which include the running statistics, bit for bit."""
    a, b = runs.weights(a), runs.weights(b)
    assert a.keys() == b.keys() and any("running_mean" in key for key in a)
    assert all(torch.equal(a[key], b[key]) for key in a)


def test_the_loss_falls(small, train_net, tmp_path):
    """With a higher learning rate; initial biases keep the loss of the maps near its plateau."""
    options = [*small, "train.max_iter=40", "optimizer.lr=0.01"]
    done = train_net("--work-dir", tmp_path / "run", "--no-validate", *options, config=CONFIG)
    assert done.status == 0, done.stderr
    runs.assert_falls(tmp_path / "run", "total_loss", 0.9)
    runs.assert_falls(tmp_path / "run", "loss_offset", 0.7)


def test_a_killed_run_resumes_bit_identically(whole, small, tmp_path):
    folder = tmp_path / "run"
    _train_and_kill(folder, *small, *ONE)
    assert "Resumed" in _train(folder, "--resume", *small, *ONE)
    _assert_equal(folder, whole)
    assert _losses(folder) == _losses(whole)


def test_activation_checkpointing_changes_no_bit(whole, small, tmp_path):
    _train(tmp_path / "run", *small, *ONE, "model.activation_checkpointing=True")
    _assert_equal(tmp_path / "run", whole)
    assert _losses(tmp_path / "run") == _losses(whole)


@pytest.mark.nightly
def test_two_processes_equal_one_except_for_running_statistics(whole, small, tmp_path):
    """Each rank has the running statistics of its own images, and rank 0's are saved."""
    two = tmp_path / "two"
    _train(two, "--num-gpus", "2", *small)
    assert _losses(two) == pytest.approx(_losses(whole), rel=1e-5)
    a, b = (runs.weights(folder) for folder in (two, whole))
    for key in a:
        if key.endswith("num_batches_tracked"):
            assert 2 * a[key] == b[key] == 2 * STEPS
        elif "running_" not in key:
            assert torch.allclose(a[key], b[key], rtol=1e-4, atol=1e-6), key


@pytest.mark.nightly
def test_two_processes_are_killed_and_resume_bit_identically(small, tmp_path):
    whole, folder = tmp_path / "whole", tmp_path / "run"
    _train(whole, "--num-gpus", "2", *small)
    _train_and_kill(folder, "--num-gpus", "2", *small)
    assert "Resumed" in _train(folder, "--num-gpus", "2", "--resume", *small)
    _assert_equal(folder, whole)


def test_evaluation_and_multi_scale_flip_testing(whole, small, train_net, tmp_path):
    """`--tta` adds scales and mirrored images; with one scale it is the plain evaluation."""
    found = {}
    for name, flags, more in (
        ("plain", [], []),
        ("one scale", ["--tta"], ["dataloader.tta.scales=[1.0]"]),
        ("scales", ["--tta"], []),
        ("not mirrored", [], ["model.test_flip=False"]),
    ):
        options = ["--eval-only", "--weights", whole / "model_final.pth", *flags, *small, *more]
        done = train_net("--work-dir", tmp_path / name, *options, config=CONFIG)
        assert done.status == 0, done.stderr
        results = json.loads((tmp_path / name / "eval/results.json").read_text())["last"]["results"]
        assert {key.split("/")[2] for key in results} == {"bbox"}
        predictions = tmp_path / name / "eval/predictions/custom_val.json"
        found[name] = [(p["image_id"], p["bbox"]) for p in json.loads(predictions.read_text())]
    assert found["plain"] and found["plain"] == found["one scale"]
    assert found["scales"] != found["plain"] != found["not mirrored"]
    options = ["--eval-only", "--weights", whole / "model_final.pth", "--tta", *small]
    done = train_net(*options, "dataloader.tta.scales=[]", config=CONFIG)
    assert done.status == 2 and "dataloader.tta.scales=[]: give factors" in done.stderr


def test_prediction_sees_the_photo_at_its_own_size(whole):
    """A photo twice as large gives other boxes, because nothing resizes it."""
    predictor = Predictor.from_run(whole, "last", score_threshold=0.0)
    assert predictor.classes == ["balloon"]
    small = np.random.default_rng(0).integers(0, 256, (70, 90, 3), dtype=np.uint8)
    large = np.asarray(Image.fromarray(small).resize((180, 140), Image.Resampling.NEAREST))
    boxes, others = predictor(small).boxes, predictor(large).boxes
    for found, (width, height) in ((boxes, (90, 70)), (others, (180, 140))):
        assert len(found) and found.min() >= 0
        assert found[:, 2].max() <= width and found[:, 3].max() <= height
    assert others[:, 2].max() > 90
