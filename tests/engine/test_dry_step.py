"""The dry step, and the explanation of errors in the first training step."""

import itertools
import multiprocessing
import random

import cv2
import numpy as np
import pytest
import torch
import torch.distributed as dist
from detectron2.engine import HookBase
from omegaconf import OmegaConf
from torch import nn

from d2ext.config.load import load_config
from d2ext.data.datasets.register import unregister_datasets
from d2ext.engine.dry_step import measure_speed, misfits_explained
from d2ext.engine.trainer import Trainer
from d2ext.errors import UserError
from d2ext.launch.signals import StopSignals
from d2ext.preflight.plan import plan_run
from tests.conftest import LITE0

# An invalid field that only a training step reveals.
MISFIT = "model.proposal_generator.box2box_transform.weights=[1, 1, 1]"
FAILS = ["first step fails in model.proposal_generator (ValueError: not enough values"]
FAILS += ["box_regression.py:", "model.proposal_generator.box2box_transform.weights=[1, 1, 1]"]


def test_a_dry_run_takes_a_step_and_leaves_nothing(train_net, tiny, tmp_path):
    work = tmp_path / "run"
    techniques = ["train.amp.enabled=True", "train.amp.dtype=bfloat16", "train.ema_decay=0.9"]
    more = [*techniques, "train.accumulate=2", "train.device=cpu"]
    before = torch.get_rng_state()
    done = train_net("--dry-run", "--work-dir", work, "--options", *tiny, *more)
    assert done.status == 0, done.stderr
    assert "dry step    forward and backward on 128 x 128 pixels" in done.stdout
    assert not work.exists() and torch.equal(torch.get_rng_state(), before)


def test_a_dry_run_for_other_machines_skips_the_step(train_net, tiny, tmp_path, monkeypatch):
    monkeypatch.setenv("D2EXT_PLAN_GPUS", "1")
    done = train_net("--dry-run", "--work-dir", tmp_path / "run", "--options", *tiny)
    assert done.status == 0, done.stderr
    assert "dry step    skipped: the run is for other machines" in done.stdout


def test_timing_steps_for_a_budget_leaves_nothing(repo, tiny, tmp_path):
    def state():
        torchs, python, numpys = torch.get_rng_state(), random.getstate(), np.random.get_state()
        generators = [torchs.tolist(), python, [str(part) for part in numpys]]
        threads = torch.get_num_threads(), cv2.getNumThreads()
        return [*generators, threads, multiprocessing.active_children()]

    def measure(work):
        before = state()
        speed = measure_speed(work)
        for now, then in zip(state(), before, strict=True):
            assert now == then
        assert min(speed.start, speed.step, speed.evaluation) > 0
        return speed

    options = [text for text in tiny if not text.startswith("train.max_iter")]
    options += ["dataloader.train.num_workers=1", "train.accumulate=2", "train.budget=2 hours"]
    try:
        plan = plan_run(load_config(repo / LITE0, options), "run", measure=measure)
    finally:
        unregister_datasets()
    (line,) = (line for line in plan.lines if line.startswith("budget"))
    assert " in 2 hours: " in line and " s per step and " in line
    assert plan.schedule.epochs > 100 and list(tmp_path.iterdir()) == []


def test_steps_of_other_machines_are_not_timed(train_net, tiny, tmp_path, monkeypatch):
    monkeypatch.setenv("D2EXT_PLAN_GPUS", "1")
    options = [text for text in tiny if not text.startswith("train.max_iter")]
    options.append("train.budget=2 hours")
    done = train_net("--dry-run", "--work-dir", tmp_path / "run", "--options", *options)
    assert done.status == 0, done.stderr
    assert "budget      2 hours: steps are timed on the machine that trains" in done.stdout


@pytest.mark.parametrize("flags", [["--dry-run"], []])
def test_a_failing_step_names_the_fields(train_net, tiny, tmp_path, flags):
    work = tmp_path / "run"
    done = train_net("--no-validate", *flags, "--work-dir", work, "--options", *tiny, MISFIT)
    assert done.status == 2 and "Traceback" not in done.stderr
    line = done.stderr.strip().splitlines()[-1]
    assert all(word in line for word in FAILS), line
    assert not list(work.rglob("*.pth"))


def test_a_non_finite_forward_pass_is_reported_as_not_finished(
    train_net, tiny, tmp_path, monkeypatch
):
    def fails(*args):
        raise FloatingPointError("Predicted boxes or scores contain Inf/NaN.")

    monkeypatch.setattr("detectron2.modeling.GeneralizedRCNN.forward", fails)
    done = train_net("--dry-run", "--work-dir", tmp_path / "run", "--options", *tiny)
    assert done.status == 0, done.stderr
    assert "dry step    not finished: Predicted boxes" in done.stdout
    assert "forward and backward" not in done.stdout


@pytest.mark.parametrize(
    ("override", "words"),
    [
        (
            "optimizer={_target_: nope.X, lr: 1e-3}",
            "optimizer cannot be built: ImportError: Error loading 'nope.X': ModuleNotFoundError",
        ),
        ("+lr_multiplier.scheduler.nope=1", "lr_multiplier.scheduler cannot be built: "),
        ("+dataloader.train.nope=1", "dataloader.train cannot be built: "),
        ("+dataloader.val.nope=1", "dataloader.val or evaluators cannot be built: "),
    ],
)
def test_a_dry_run_builds_everything_that_a_run_needs(train_net, tiny, tmp_path, override, words):
    done = train_net("--dry-run", "--work-dir", tmp_path / "run", "--options", *tiny, override)
    assert done.status == 2 and words in done.stderr, done.stdout + done.stderr


class _Net(nn.Module):
    """A model with a backbone and a head; `fails` is called in the head and may raise."""

    def __init__(self, fails):
        super().__init__()
        self.backbone = nn.Conv2d(3, 4, 1)
        self.head = _Head(fails)

    def forward(self, batch):
        return self.head(self.backbone(torch.stack([sample["image"] for sample in batch])))


class _Head(nn.Module):
    def __init__(self, fails):
        super().__init__()
        self.fails = fails

    def forward(self, x):
        self.fails()
        return {"loss": x.mean()}


CFG = OmegaConf.create(
    {
        "model": {
            "backbone": {"in_channels": 3, "out_channels": 4},
            "head": {"in_channels": 5, "inner": {"num_classes": 2, "depth": 7}},
            "input_format": "L",
        }
    }
)


def _run(fails=lambda: None, channels=3, hooks=(), steps=1):
    net = _Net(fails)
    trainer = Trainer(
        net,
        torch.optim.SGD(net.parameters(), lr=0.1),
        itertools.repeat([{"image": torch.ones(channels, 2, 2), "file_name": "a.jpg"}]),
        list(hooks),
        seed=0,
        first_step=lambda: misfits_explained(CFG, net),
    )
    with StopSignals() as signals:
        trainer.train(0, steps, signals)


def _raising(error, after=0):
    calls = itertools.count()

    def fails():
        if next(calls) >= after:
            raise error

    return fails


def test_the_fields_around_the_failing_module_are_named():
    with pytest.raises(UserError) as e:
        _run(channels=1)
    message = str(e.value)
    assert message.startswith(
        "the first step fails in model.backbone (RuntimeError: Given groups=1"
    )
    assert "model.input_format=L" in message and "model.backbone.in_channels=3" in message
    assert "model.head" not in message and "\n" not in message
    for error in (AssertionError(), IndexError("x"), KeyError("p7"), ValueError("a\nb")):
        with pytest.raises(UserError) as e:
            _run(_raising(error))
        message = str(e.value)
        assert message.startswith(f"the first step fails in model.head ({type(error).__name__}: ")
        fields = ["model.head.in_channels=5", "model.head.inner.num_classes=2"]
        assert all(field in message for field in [*fields, "model.backbone.out_channels=4"])
        assert "depth" not in message and "test_dry_step.py:" in message and "\n" not in message


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory"),
        RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed."),
        FloatingPointError("Predicted boxes or scores contain Inf/NaN."),
    ],
)
def test_errors_with_their_own_explanation_keep_it(error):
    with pytest.raises((UserError, FloatingPointError)) as e:
        _run(_raising(error))
    assert "first step" not in str(e.value)


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("CUDA error: device-side assert triggered"),
        RuntimeError("[gloo/transport/tcp/pair.cc:553] Connection closed by peer"),
        dist.DistBackendError("NCCL error"),
        KeyboardInterrupt(),
        OSError(5, "Input/output error"),
    ],
)
def test_errors_of_the_machine_are_raised_unchanged(error):
    with pytest.raises(type(error)) as e:
        _run(_raising(error))
    assert e.value is error


def test_errors_in_later_steps_are_raised_unchanged():
    error = ValueError("in the second step")
    with pytest.raises(ValueError) as e:
        _run(_raising(error, after=1), steps=2)
    assert e.value is error


@pytest.mark.parametrize("moment", ["before_train", "before_step", "after_step"])
def test_errors_of_hooks_are_raised_unchanged(moment):
    hook, error = HookBase(), ValueError("of the hook")
    setattr(hook, moment, _raising(error))
    with pytest.raises(ValueError) as e:
        _run(hooks=[hook])
    assert e.value is error
