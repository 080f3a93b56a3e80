"""When checkpoints are written, in which thread, and how write errors are handled."""

import os
import subprocess
import sys
import threading
import time
from types import SimpleNamespace

import pytest
import torch

from d2ext.checkpoint.files import find_newest, read_checkpoint
from d2ext.checkpoint.hook import CheckpointHook
from d2ext.config.schedule import Period, Schedule
from d2ext.errors import UserError
from tests.conftest import checkout_env

BIG = torch.zeros(4_000_000)  # takes about 50 ms to write


def _hook(folder, content, period=1, **options):
    schedule = Schedule(10, 1, 100, None, False, Period(), Period(iterations=period))
    hook = CheckpointHook(folder, schedule, 0, content, **options)
    memory = dict(memory=lambda: {"skipped_steps": 0})
    hook.trainer = SimpleNamespace(iter=0, max_iter=100, error=None, **memory)
    hook.trainer.ended_early = None
    return hook


def _content(weights):
    return lambda done: {
        "model": {"w": weights},
        "optimizer": {},
        "iterations_done": done,
        "images_seen": done,
    }


def test_training_continues_while_a_copy_is_written(tmp_path):
    weights = BIG.clone()
    hook = _hook(tmp_path, _content(weights), asynchronous=True)
    hook.after_step()
    weights += 1  # the next step
    assert any(t.name == "checkpoint" for t in threading.enumerate())
    hook.save_now(1)  # waits
    assert not any(t.name == "checkpoint" for t in threading.enumerate())
    assert not read_checkpoint(tmp_path / "model_0000000.pth")["model"]["w"].any()


def test_writes_are_sequential_and_in_order(tmp_path):
    hook = _hook(tmp_path, _content(BIG), asynchronous=True)
    for hook.trainer.iter in range(4):
        hook.after_step()
        assert sum(t.name == "checkpoint" for t in threading.enumerate()) <= 1
    hook.save_best(4)  # of the state that is being written
    assert (tmp_path / "last_checkpoint").read_text() == "model_0000003.pth"
    assert os.path.samefile(tmp_path / "model_best.pth", tmp_path / "model_0000003.pth")


@pytest.mark.parametrize("ends", ["after_step", "save_stopped"])
@pytest.mark.parametrize("fixed", [False, True])
def test_after_a_failed_write_the_next_state_is_written(tmp_path, caplog, ends, fixed):
    """The write is at the next step, though no checkpoint is due; if it fails, the run ends."""
    hook = _hook(tmp_path / "run", _content(BIG), period=4, asynchronous=True)
    (tmp_path / "run").write_text("not a folder")
    hook.trainer.iter = 3
    hook.after_step()
    _until_written()
    hook.trainer.iter = 4
    if ends == "save_stopped":
        hook.trainer.iter = 5
    if fixed:
        (tmp_path / "run").unlink()
        getattr(hook, ends)()
        assert find_newest(tmp_path / "run")[0].name == "model_0000004.pth"
        assert "model_0000003.pth" in caplog.text and "was written instead" in caplog.text
        return
    with pytest.raises(UserError, match="cannot write .*model_0000004.pth"):
        getattr(hook, ends)()


def _until_written():
    while any(t.name == "checkpoint" for t in threading.enumerate()):
        time.sleep(0.01)


def test_a_copy_has_the_same_types_and_metadata(tmp_path):
    """A module's state dict, for example, has metadata in addition to its tensors."""
    state = torch.nn.BatchNorm2d(3).state_dict()
    for name, asynchronous in (("a", False), ("b", True)):
        content = _content(None)(1) | {"model": state}
        _hook(tmp_path / name, lambda done, c=content: c, asynchronous=asynchronous).save_now(1)
    a, b = (read_checkpoint(tmp_path / n / "model_0000000.pth")["model"] for n in "ab")
    assert type(a) is type(b) and a._metadata == b._metadata and a.keys() == b.keys()


def test_weights_that_are_not_finite_are_not_saved(tmp_path):
    hook = _hook(tmp_path, _content(torch.tensor([1.0, float("nan")])))
    with pytest.raises(UserError, match="not finite after 1 iterations"):
        hook.after_step()
    assert not list(tmp_path.iterdir())


def test_a_kill_during_a_background_write(tmp_path):
    """The previous checkpoint is found; the partially written file is not."""
    code = (  # in a new process, because torch's threads do not survive a fork
        "import pathlib, sys, time, torch\n"
        "from tests.checkpoint.test_hook import _content, _hook\n"
        "weights = torch.zeros(20_000_000)\n"
        "hook = _hook(pathlib.Path(sys.argv[1]), _content(weights), asynchronous=True)\n"
        "hook.after_step()\n"
        "hook.trainer.iter = 1\n"
        "hook.after_step()  # waits for the first\n"
        "time.sleep(60)\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", code, str(tmp_path)], env=checkout_env()
    )
    while not list(tmp_path.glob(".model_0000001*")):
        assert process.poll() is None
        time.sleep(0.001)
    process.kill()
    process.wait()
    newest, damaged = find_newest(tmp_path)
    assert newest.name == "model_0000000.pth" and not damaged
