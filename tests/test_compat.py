"""Checks of the private API in d2ext/_compat.py, which fail if an upgrade removes a name."""

import importlib.util
import inspect
import math
import multiprocessing
import multiprocessing.queues
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import detectron2
import pytest
import submitit
import torch
import torch.distributed as dist
from detectron2.config import LazyConfig
from detectron2.layers import ShapeSpec
from detectron2.modeling import FPN
from detectron2.modeling.backbone import Backbone
from detectron2.utils import comm
from detectron2.utils.events import EventStorage
from omegaconf import DictConfig, OmegaConf
from torch import nn
from torch.utils.data import DataLoader

from d2ext import _compat
from d2ext.doctor import probe
from tests.conftest import checkout_env


@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("atexit", "_run_exitfuncs"),
        ("detectron2.modeling.box_regression", "_dense_box_regression_loss"),
        ("detectron2.utils.comm", "_get_global_gloo_group"),
        ("multiprocessing.queues", "Queue._on_queue_feeder_error"),
        ("omegaconf", "DictConfig._get_node"),
        ("omegaconf", "DictConfig._is_none"),
        ("omegaconf", "ListConfig._get_node"),
        ("submitit", "LocalExecutor._submit_command"),  # overridden in d2ext/slurm/local.py
        ("submitit", "SlurmExecutor._make_submission_file_text"),
        ("submitit", "SlurmExecutor._submitit_command_str"),
        ("threading", "_shutdown"),
        ("torch.utils.data.dataloader", "_MultiProcessingDataLoaderIter._shutdown_workers"),
    ],
)
def test_private_name_exists(module, name):
    found = importlib.import_module(module)
    for part in name.split("."):
        assert hasattr(found, part), f"{module}.{name} is gone: d2ext needs another way"
        found = getattr(found, part)


def test_set_class_keeps_parameters_and_hooks():
    """Parameters, hooks and keys do not change, and the subclass's forward is called."""

    class Doubled(nn.Conv2d):
        def forward(self, x):
            return 2 * super().forward(x)

    net = nn.Sequential(nn.Conv2d(1, 1, 1))
    x, called = torch.ones(1, 1, 2, 2), []
    before, weight, keys = net(x), net[0].weight, list(net.state_dict())
    net[0].register_forward_hook(lambda *_: called.append(True))
    _compat.set_class(net[0], Doubled)
    assert torch.equal(net(x), 2 * before) and called == [True]
    assert net[0].weight is weight and list(net.state_dict()) == keys


class _Bottom(Backbone):
    def forward(self, x):
        return {"a": x, "b": x}

    def output_shape(self):
        return {"a": ShapeSpec(channels=1, stride=4), "b": ShapeSpec(channels=1, stride=8)}


def test_set_size_divisibility_changes_only_an_fpn():
    """FPN's public property becomes a common multiple; other backbones do not have the number."""
    fpn = FPN(_Bottom(), ["a", "b"], 4)
    assert fpn.size_divisibility == 8
    assert _compat.set_size_divisibility(fpn, 12)
    assert fpn.size_divisibility == math.lcm(8, 12)
    assert not _compat.set_size_divisibility(_Bottom(), 12)
    assert not _compat.set_size_divisibility(None, 12)


def test_scoped_names_are_those_of_the_storage():
    with EventStorage() as storage, storage.name_scope("stage0"):
        storage.put_scalar("loss", 1)
        assert [_compat.scoped_name(storage, "loss")] == list(storage.latest())


def test_the_timeout_of_the_gloo_group_can_be_changed(tmp_path):
    """The group is the one that `comm.gather` uses, and its timeout can be changed."""
    comm._get_global_gloo_group.cache_clear()
    dist.init_process_group("gloo", f"file://{tmp_path / 'store'}", world_size=1, rank=0)
    try:
        group = _compat.gloo_group()
        assert dist.get_backend(group) == "gloo" and dist.get_world_size(group) == 1
        assert "_get_global_gloo_group()" in inspect.getsource(comm.gather)
        _compat.set_group_timeout(group, 77)
        backend = group._get_backend(torch.device("cpu"))
        assert backend.options._timeout.total_seconds() == 77
    finally:
        dist.destroy_process_group()
        comm._get_global_gloo_group.cache_clear()


def test_get_local_rank_asserts_its_process_group():
    """`speaks_for_machine` relies on this."""
    assert comm.get_local_rank() == 0  # a single process
    assert "assert" in inspect.getsource(comm.get_local_rank)


def test_loader_workers_are_found_and_shut_down():
    handler = signal.getsignal(signal.SIGCHLD)
    batches = iter(DataLoader(range(4), num_workers=2))
    signal.signal(signal.SIGCHLD, handler)  # torch does not restore it
    workers = _compat.loader_workers(batches)
    assert set(workers) == set(multiprocessing.active_children()) and len(workers) == 2
    _compat.shut_down_loader_workers(batches)
    assert not any(worker.is_alive() for worker in workers)
    assert _compat.loader_workers(iter(DataLoader(range(4)))) == []


def test_on_feeder_error_calls_the_handler(capfd):
    """The handler gets the unpicklable object, Python prints the error, the queue still works."""
    seen = []

    @_compat.on_feeder_error(lambda e, obj: seen.append(obj))
    class Queue(multiprocessing.queues.Queue):
        pass

    queue = Queue(ctx=multiprocessing.get_context("fork"))
    unpicklable = lambda: None  # noqa: E731
    queue.put(unpicklable)
    queue.put(1)
    assert queue.get(timeout=20) == 1
    assert seen == [unpicklable] and "Can't" in capfd.readouterr().err
    queue.close()
    queue.join_thread()


def test_run_exit_functions_runs_them_once_after_threads():
    """Threads are awaited, then exit functions run, as at Python's exit and only once."""
    code = (
        "import atexit, os, threading, time\n"
        "from d2ext._compat import run_exit_functions\n"
        "atexit.register(print, 'exit', flush=True)\n"
        "def late(): time.sleep(0.3); print('thread', flush=True)\n"
        "threading.Thread(target=late).start()\n"
        "run_exit_functions()\n"
        "os._exit(3)"
    )
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, env=checkout_env(), capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (3, "thread\nexit\n", "")


def test_raw_values_are_as_written():
    """Interpolations are not resolved, and None is distinguished from an empty container."""
    cfg = OmegaConf.create({"a": 1, "b": "${a}", "c": {}, "d": [{"x": "${a}"}], "e": None})
    cfg.f = DictConfig(None)
    assert [_compat.raw_value(cfg, key) for key in "ab"] == [1, "${a}"]
    assert not _compat.is_none(_compat.raw_value(cfg, "c"))
    assert _compat.raw_value(_compat.raw_value(cfg.d, 0), "x") == "${a}"
    assert _compat.raw_value(cfg, "e") is None
    assert _compat.is_none(_compat.raw_value(cfg, "f"))


def test_submission_script_has_the_sbatch_lines(tmp_path, monkeypatch):
    monkeypatch.setattr(submitit.SlurmExecutor, "affinity", lambda *_: 1)  # without srun
    executor = submitit.SlurmExecutor(tmp_path, python="the-python")
    executor.update_parameters(job_name="mine", time=7, nodes=2)
    text = _compat.submission_script(executor)
    assert text.startswith("#!/bin/bash") and "#SBATCH --nodes=2\n" in text
    assert "#SBATCH --job-name=mine\n" in text and "the-python -u -m submitit.core._submit" in text


def test_innermost_config_has_file_and_line(tmp_path):
    """The innermost config is one that an outer one imports, or one that cannot be parsed."""
    (tmp_path / "outer.py").write_text("x = 1\nfrom .inner import y\n")
    (tmp_path / "inner.py").write_text("\n\ny = 1 / 0\n")
    (tmp_path / "broken.py").write_text("x = 1\ny = (\n")
    with pytest.raises(ZeroDivisionError) as e:
        LazyConfig.load(str(tmp_path / "outer.py"))
    assert _compat.innermost_config(e.value.__traceback__) == (str(tmp_path / "inner.py"), 3)
    with pytest.raises(SyntaxError) as e:
        LazyConfig.load(str(tmp_path / "broken.py"))
    assert _compat.innermost_config(e.value.__traceback__) == (str(tmp_path / "broken.py"), None)
    assert _compat.innermost_config(None) is None


@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("detectron2.layers.deform_conv", "_C.deform_conv_forward("),
        ("detectron2.evaluation.fast_eval_api", "_C.COCOevalAccumulate("),
    ],
)
def test_names_of_the_compiled_operators(module, name):
    """Detectron2 calls the names that the doctor looks for in `detectron2._C`."""
    source = Path(importlib.util.find_spec(module).origin).read_text()
    assert "from detectron2 import _C" in source and name in source


def test_the_doctor_handles_an_installation_with_and_without_operators(monkeypatch):
    monkeypatch.delattr(detectron2, "_C", raising=False)
    monkeypatch.setitem(sys.modules, "detectron2._C", None)  # importing it raises ImportError
    missing = {name for name, _ in probe._step_operators()["missing"]}
    assert {"deformable convolution", "C++ COCOeval"} <= missing
    operators = SimpleNamespace(
        deform_conv_forward=None, COCOevalAccumulate=None, has_cuda=lambda: False
    )
    monkeypatch.setattr(detectron2, "_C", operators, raising=False)
    missing = {name for name, _ in probe._step_operators()["missing"]}
    assert not missing & {"deformable convolution", "C++ COCOeval"}
