"""Hooks from the config run at the right moments, and a killed run resumes exactly."""

import json
import os
import subprocess
import sys

import pytest
import torch

from tests.conftest import LITE0, REPO

MODULE = """
import os
import signal

import numpy
import torch
from detectron2.engine import HookBase
from detectron2.utils import comm


class Noise(HookBase):
    '''Add noise to the gradients, seeded by the hook's own step count.'''

    def __init__(self, scale, kill_at=None, folder=None):
        self.scale, self.kill_at, self.folder, self.steps = scale, kill_at, folder, 0

    def before_step(self):
        if self.kill_at == self.trainer.iter:
            os.kill(os.getpid(), signal.SIGKILL)

    def after_backward(self):
        generator = torch.Generator().manual_seed(self.steps)
        for parameter in self.trainer.model.parameters():
            if parameter.grad is not None:
                noise = torch.randn(parameter.grad.shape, generator=generator)
                parameter.grad += self.scale * noise

    def after_step(self):
        self.steps += 1
        self.trainer.storage.put_scalar("noisy_steps", self.steps, smoothing_hint=False)

    def after_train(self):
        if self.folder:
            with open(f"{self.folder}/{comm.get_rank()}", "w") as f:
                f.write(str(self.steps))

    def state_dict(self):
        return {"steps": self.steps}

    def load_state_dict(self, state):
        self.steps = state["steps"]


class Mean(HookBase):
    '''Average the weights and load the average into the model at the end.'''

    def __init__(self, stop_at=None):
        self.stop_at, self.mean = stop_at, None

    def before_train(self):
        weights = self.trainer.model.module.state_dict()
        self.mean = self.mean or {key: value.clone() for key, value in weights.items()}

    def before_step(self):
        if self.stop_at == self.trainer.iter:
            os.kill(os.getpid(), signal.SIGTERM)

    def after_step(self):
        for key, value in self.trainer.model.module.state_dict().items():
            if value.is_floating_point():
                self.mean[key].lerp_(value, 0.5)

    def after_train(self):
        self.trainer.model.module.load_state_dict(self.mean)

    def state_dict(self):
        return {"mean": self.mean}

    def load_state_dict(self, state):
        self.mean = state["mean"]


class Odd(HookBase):
    '''Return a state that checkpoints cannot hold.'''

    def state_dict(self):
        return {"x": numpy.float64(1)}
"""


@pytest.fixture
def noise(tmp_path, monkeypatch):
    """Return a function that builds the override for a hook in an importable module."""
    folder = tmp_path / "modules"
    folder.mkdir()
    (folder / "noisy_hooks.py").write_text(MODULE)
    monkeypatch.syspath_prepend(folder)
    monkeypatch.setenv("PYTHONPATH", str(folder))

    def override(name="Noise", **arguments):
        return f"train.hooks=[{json.dumps(dict(_target_=f'noisy_hooks.{name}') | arguments)}]"

    yield override
    sys.modules.pop("noisy_hooks", None)


def _lines(work):
    lines = [json.loads(line) for line in (work / "metrics.json").read_text().splitlines()]
    clock = ("time", "data_time", "eta_seconds", "memory_mb")
    plain = [{k: v for k, v in line.items() if k not in clock} for line in lines]
    return {line["iteration"]: line for line in plain}  # a resumed run repeats some


def _load(work, name):
    return torch.load(work / name, weights_only=True)


def _start(*args):
    command = [sys.executable, str(REPO / "tools" / "train_net.py"), "--config-file", REPO / LITE0]
    threads = {"OMP_NUM_THREADS": str(torch.get_num_threads())}
    return subprocess.run([*command, *args], env=os.environ | threads, capture_output=True)


def test_a_killed_run_with_a_stateful_hook_resumes_exactly(train_net, tiny, tmp_path, noise):
    """The noise depends on the state of the hook, which the checkpoint restores."""
    common = ["--no-validate", "--options", *tiny, "train.checkpointer.period=2"]
    whole, killed, other = tmp_path / "whole", tmp_path / "killed", tmp_path / "other"
    done = train_net("--work-dir", whole, *common, noise(scale=1e-2))
    assert done.status == 0, done.stderr
    assert _start("--work-dir", killed, *common, noise(scale=1e-2, kill_at=3)).returncode == -9
    assert (killed / "last_checkpoint").read_text() == "model_0000001.pth"
    done = train_net("--resume", "--work-dir", killed, *common, noise(scale=1e-2))
    assert done.status == 0, done.stderr
    assert _lines(killed) == _lines(whole)
    a, b = (_load(work, "model_final.pth") for work in (whole, killed))
    assert all(torch.equal(a["model"][key], b["model"][key]) for key in a["model"])
    assert a["hooks"] == b["hooks"] == [{"position": 0, "hook": "Noise", "state": {"steps": 4}}]
    # Without the hook state, the weights differ.
    checkpoint = _load(killed, "model_0000001.pth")
    torch.save(checkpoint | {"hooks": []}, tmp_path / "without.pth")
    options = ["--resume-from", tmp_path / "without.pth", "--work-dir", other, *common]
    assert train_net(*options, noise(scale=1e-2)).status == 0
    c = _load(other, "model_final.pth")["model"]
    assert not all(torch.equal(a["model"][key], c[key]) for key in c)


def _equal(a, b):
    return all(torch.equal(a[key], b[key]) for key in a)


@pytest.mark.parametrize(
    "reason", [pytest.param("SIGTERM", marks=pytest.mark.nightly), "early stopping"]
)
def test_weights_swapped_in_after_train_stay_out_of_the_checkpoint(
    train_net, tiny, tmp_path, noise, reason
):
    """A stopped run is saved before `after_train` and resumes exactly."""
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    common = [*tiny, "optimizer.lr=1e-3"]
    done = train_net("--no-validate", "--work-dir", whole, *common, noise("Mean"))
    assert done.status == 0, done.stderr
    if reason == "SIGTERM":
        flags = ["--no-validate", "--work-dir", stopped]
        done = train_net(*flags, *common, noise("Mean", stop_at=1))
        assert done.status == 75, done.stderr
        name = "model_0000001.pth"
    else:
        flags = ["--work-dir", stopped]
        patience = ["train.eval_period=1", "train.early_stopping_patience=1"]
        done = train_net(*flags, *common, *patience, noise("Mean"))
        assert done.status == 0 and "Ended early" in done.stdout, done.stderr
        name = (stopped / "last_checkpoint").read_text()
        final = _load(stopped, "model_final.pth")
        assert _equal(final["model"], _load(stopped, name)["model"])
    checkpoint = _load(stopped, name)
    assert 0 < checkpoint["iterations_done"] < 4
    assert not _equal(checkpoint["model"], checkpoint["hooks"][0]["state"]["mean"])
    done = train_net("--resume", *flags, *common, noise("Mean"))
    assert done.status == 0, done.stderr
    a, b = (_load(work, "model_final.pth") for work in (whole, stopped))
    assert a["iterations_done"] == b["iterations_done"] == 4
    assert _equal(a["model"], b["model"])
    assert _equal(a["hooks"][0]["state"]["mean"], b["hooks"][0]["state"]["mean"])


def test_hook_states_are_copied_before_an_asynchronous_write(train_net, tiny, tmp_path, noise):
    """The next step changes the hook's tensors while the file is being written."""
    options = [*tiny, "train.checkpointer.period=1", "train.checkpointer.max_to_keep=0"]
    for asynchronous in (False, True):
        work = tmp_path / str(asynchronous)
        more = [f"train.checkpointer.asynchronous={asynchronous}", noise("Mean")]
        done = train_net("--no-validate", "--work-dir", work, *options, *more)
        assert done.status == 0, done.stderr
    for i in range(4):
        a, b = (_load(tmp_path / name, f"model_{i:07d}.pth") for name in ("False", "True"))
        assert _equal(a["model"], b["model"])
        assert _equal(a["hooks"][0]["state"]["mean"], b["hooks"][0]["state"]["mean"])


def test_a_state_that_cannot_be_saved_fails_before_the_first_step(train_net, tiny, tmp_path, noise):
    done = train_net("--no-validate", "--work-dir", tmp_path / "run", *tiny, noise("Odd"))
    assert done.status == 2
    assert "Odd.state_dict() contains a float64, which checkpoints cannot hold" in done.stderr
    assert not (tmp_path / "run" / "metrics.json").exists()


def test_metrics_and_checkpoints_contain_what_a_hook_recorded(train_net, tiny, tmp_path, noise):
    work = tmp_path / "run"
    options = [*tiny, "train.checkpointer.period=1", "train.checkpointer.max_to_keep=0"]
    options += [noise(scale=0), "train.eval_period=2"]
    done = train_net("--work-dir", work, "--options", *options)
    assert done.status == 0, done.stderr
    lines = _lines(work)
    assert [line["noisy_steps"] for line in lines.values()] == [1, 2, 3, 4]
    assert "balloon_val/coco/segm/AP" in lines[1]
    for i in range(4):
        checkpoint = _load(work, f"model_{i:07d}.pth")
        assert checkpoint["hooks"][0]["state"] == {"steps": i + 1}
        assert checkpoint["present"]["noisy_steps"] == i + 1
    # The saved config rebuilds the hook; if the hook is removed, its state is reported.
    assert "noisy_hooks.Noise" in (work / "config.yaml").read_text()
    done = train_net("--resume", "train.max_iter=5", config=work / "config.yaml")
    assert done.status == 0, done.stderr
    assert _load(work, "model_final.pth")["hooks"][0]["state"] == {"steps": 5}
    done = train_net("--resume", "train.max_iter=6", "train.hooks=[]", config=work / "config.yaml")
    assert done.status == 0, done.stderr
    assert "state of the hook Noise is ignored: this run has no such hook" in done.stdout


def test_every_rank_builds_the_hooks_and_restores_their_state(train_net, tiny, tmp_path, noise):
    one, two = tmp_path / "one", tmp_path / "two"
    common = ["--no-validate", "--options", *tiny, noise(scale=0, folder=str(tmp_path))]
    assert train_net("--work-dir", one, *common, "train.max_iter=1").status == 0
    (tmp_path / "0").unlink()
    flags = ["--resume-from", one / "model_final.pth", "--work-dir", two, "--num-gpus", "2"]
    done = train_net(*flags, *common, "train.max_iter=2")
    assert done.status == 0, done.stderr
    assert [(tmp_path / rank).read_text() for rank in "01"] == ["2", "2"]
