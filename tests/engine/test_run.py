"""Test `Run`: what it builds and writes, and the order of its hooks."""

import pickle

import pytest
import torch
from detectron2.engine import HookBase

from d2ext.checkpoint.files import read_checkpoint
from d2ext.config.load import load_config
from d2ext.data.datasets.register import unregister_datasets
from d2ext.engine.run import Run
from d2ext.errors import UserError
from d2ext.launch.command import RunCommand
from d2ext.launch.signals import StopSignals
from d2ext.preflight.plan import plan_run
from tests.conftest import LITE0, REPO

TOOL = "python tools/train_net.py"
COMMAND = RunCommand("run", LITE0, TOOL, TOOL.split())


@pytest.fixture
def cfg(tiny, tmp_path):
    """Yield the config of a training in `tmp_path/run`."""
    options = ["train.max_iter=2", f"train.output_dir={tmp_path}/run", "train.ema_decay=0.9"]
    yield load_config(REPO / LITE0, [*tiny, *options])
    unregister_datasets()


class Note(HookBase):
    """Record its calls in a list that several hooks share."""

    shared: list[str] = []

    def __init__(self, name):
        self._name = name

    def before_step(self):
        self.shared.append(self._name)

    def after_step(self):
        self.shared.append(f"{self._name} after")
        self.trainer.storage.put_scalar("noted", len(self.shared), smoothing_hint=False)

    def state_dict(self):
        return {"noted": len(self.shared)}


def test_datasets_built_by_preflight_are_not_built_again(cfg, tmp_path, monkeypatch):
    build = cfg.dataloader.train.dataset._target_
    built = []

    def counting(**arguments):
        built.append(arguments)
        return build(**arguments)

    cfg.dataloader.train.dataset._target_ = counting
    plan = plan_run(cfg, "run", validate=False)
    monkeypatch.setattr("d2ext.engine.run.register_run_datasets", None)
    with StopSignals() as signals:
        run = Run(cfg, plan, COMMAND, signals)
        run.setup()
    assert len(built) == 1
    assert (tmp_path / "run" / "run.json").is_file()
    # Other processes build their own, because a config may contain unpicklable values.
    received = pickle.loads(pickle.dumps(plan))
    assert received == plan and received.built is None


def test_nothing_is_written_before_everything_is_built(cfg, tmp_path):
    class Fails(HookBase):
        def __init__(self):
            assert not (tmp_path / "run").exists()
            raise RuntimeError("no such port")

    cfg.train.hooks = [{"_target_": Fails}]
    plan = plan_run(cfg, "run", validate=False)
    with StopSignals() as signals, pytest.raises(Exception, match=r"train.hooks\[0\].*no such"):
        Run(cfg, plan, COMMAND, signals).setup()
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("error", "memory"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), "GPU memory"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"), "memory"),
    ],
)
def test_a_model_that_does_not_fit_into_memory_is_explained(cfg, monkeypatch, error, memory):
    def refuse(*args, **kwargs):
        raise error

    plan = plan_run(cfg, "run", validate=False)
    monkeypatch.setattr(torch.nn.Module, "to", refuse)
    # There are no loader workers yet.
    words = f"^out of {memory} while the model is set up; use a smaller model, or free .* use \\("
    with StopSignals() as signals, pytest.raises(UserError, match=words):
        Run(cfg, plan, COMMAND, signals).setup()


def test_hooks_of_the_config_precede_those_of_the_caller(cfg, tmp_path):
    Note.shared.clear()
    cfg.train.hooks = [{"_target_": Note, "name": "config"}]
    plan = plan_run(cfg, "run", validate=False)
    with StopSignals() as signals:
        run = Run(cfg, plan, COMMAND, signals, [Note("caller")])
        run.setup()
        assert run.train() == 0
    step = ["config", "caller", "config after", "caller after"]
    assert Note.shared == [*step, *step]
    names = [type(hook).__name__ for hook in run.trainer._hooks]
    assert names == [
        *("OnTrainStart", "LearningRateHook", "IterationTimer", "Note", "Note"),
        *("OnTrainStart", "AverageWeightsHook", "MemoryHook", "LivePanel"),
        *("CheckpointHook", "MetricWriter", "ReportHook"),
    ]
    states = read_checkpoint(tmp_path / "run" / "model_final.pth")["hooks"]
    assert [(s["position"], s["hook"], s["state"]["noted"]) for s in states] == [
        (0, "Note", 8),
        (1, "Note", 8),
    ]
