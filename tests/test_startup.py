"""The compiler that waits: absent from a run that does not compile, and itself where one does."""

import os
import subprocess
import sys

import pytest

from tests.conftest import checkout_env

BEGIN = "from d2ext.startup import begin_imports, end_imports\nbegin_imports()\n"
RECIPE = "configs/balloon/mask_rcnn_lite0_fpn_balloon.py"
# The last module that an execution of torch._dynamo needs.
COMPILER = "torch._dynamo.symbolic_convert"


def _python(code):
    command = [sys.executable, "-W", "ignore", "-c", BEGIN + code]
    done = subprocess.run(command, env=checkout_env(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("processes", [1, 2])
def test_a_run_that_does_not_compile_leaves_the_compiler_out(repo, tiny, tmp_path, processes):
    command = [repo / "tools/train_net.py", "--config-file", repo / RECIPE]
    command += ["--num-gpus", str(processes)]
    command += ["--work-dir", str(tmp_path / "run"), *tiny, "train.max_iter=1"]
    environment = {**os.environ, "PYTHONPROFILEIMPORTTIME": "1"}
    done = subprocess.run(
        [sys.executable, *command], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert {"torch", "torchvision.ops", "d2ext.engine.trainer"} <= imported
    assert COMPILER not in imported


def test_the_compiler_is_there_for_who_compiles():
    _python(
        f"""
import sys
import torch, torchvision
from torch._dynamo import is_compiling
weight = torch.nn.Parameter(torch.ones(2))
optimizer = torch.optim.AdamW([weight], lr=0.1)
weight.sum().backward()
optimizer.step()
assert "{COMPILER}" not in sys.modules and not torch._dynamo.is_compiling()
graphs = []
def backend(graph, inputs):
    graphs.append(graph)
    return graph.forward
assert not is_compiling()
compiled = torch.compile(lambda x: x * 2 + is_compiling(), backend=backend)
assert compiled(torch.ones(2)).tolist() == [3, 3] and len(graphs) == 1
assert torch._dynamo is sys.modules["torch._dynamo"]
assert torch._dynamo.is_compiling.__module__ == "torch._dynamo.external_utils"
assert not is_compiling()
assert torch._dynamo.trace_rules is sys.modules["torch._dynamo.trace_rules"]
optimizer.step()
""",
    )


@pytest.mark.parametrize(
    "decorator",
    [
        "torch.compiler.disable",
        "torch.compiler.disable(recursive=False)",
        "torch._dynamo.disable()",
        "torch._disable_dynamo",
    ],
)
def test_what_is_never_to_be_compiled_is_not(decorator):
    _python(
        f"""
import torch, torchvision
@{decorator}
def f(x):
    compiling.append(torch.compiler.is_compiling())
    return x + 1
compiling, graphs = [], []
assert f(torch.ones(1)).tolist() == [2] and f.__name__ == "f"
def backend(graph, inputs):
    graphs.append(graph)
    return graph.forward
def g(x):
    return f(x * 2) * 3
assert torch.compile(g, backend=backend)(torch.ones(1)).tolist() == [9]
assert compiling == [False, False] and len(graphs) == 2
try:
    torch.compile(g, backend=backend, fullgraph=True)(torch.ones(2))
except Exception as e:
    assert type(e).__name__ == "Unsupported", e
else:
    raise AssertionError("compiled")
""",
    )


@pytest.mark.parametrize(
    "module", ["config", "utils", "eval_frame", "decorators", "output_graph", "variables.builder"]
)
def test_modules_of_the_compiler_are_imported_once_and_behind_it(module):
    _python(
        f"""
import importlib, sys
import torch, torchvision
module = importlib.import_module("torch._dynamo.{module}")
hasattr(module, "anything")  # where it waits itself
assert module is sys.modules["torch._dynamo.{module}"] and "{COMPILER}" in sys.modules
assert module.__spec__.loader.get_filename() == module.__file__
assert torch.compile(lambda x: x + 1, backend="eager")(torch.ones(1)).tolist() == [2]
assert sys.modules["torch._dynamo.config"] is torch._dynamo.config
""",
    )


def test_what_torchvision_asks_is_answered_by_the_compiler():
    _python(
        """
import sys
import torchvision
early = sys.modules["torchvision.ops.roi_align"].is_compile_supported
answers = [early("cpu"), early("meta")]
from torch._dynamo.utils import is_compile_supported
assert early is not is_compile_supported
assert answers == [is_compile_supported("cpu"), is_compile_supported("meta")]
""",
    )


def test_garbage_is_collected_behind_the_imports():
    _python(
        """
import gc
assert not gc.isenabled()
end_imports()
assert gc.isenabled() and gc.get_freeze_count() > 1000
begin_imports()  # a second tool in the process
end_imports()
""",
    )


@pytest.mark.parametrize("processes", [1, 2])
def test_the_state_of_a_run_at_its_first_step(repo, tiny, tmp_path, processes):
    """Its files are there, garbage is collected, the recipe was read once in each process."""
    notes, run = tmp_path / "notes", tmp_path / "run"
    recipe = tmp_path / "mine.py"
    recipe.write_text(
        f"""
import gc, os
from detectron2.config import LazyConfig
from detectron2.modeling import GeneralizedRCNN

globals().update(LazyConfig.load({str(repo / RECIPE)!r}))
with open({str(notes)!r}, "a") as file:
    file.write(f"read {{os.getpid()}}\\n")

def noting(**arguments):
    model = GeneralizedRCNN(**arguments)
    def note(*_):
        hook.remove()
        names = sorted(os.listdir({str(run)!r}))
        collects = gc.isenabled() and gc.get_freeze_count() > 1000
        with open({str(notes)!r}, "a") as file:
            file.write(f"step {{collects}} {{'run.json' in names}} {{'config.yaml' in names}}\\n")
    hook = model.register_forward_pre_hook(note)
    return model

model["_target_"] = noting
"""
    )
    command = [sys.executable, repo / "tools/train_net.py", "--config-file", recipe]
    command += ["--num-gpus", str(processes), "--no-validate", "--work-dir", run]
    command += [*tiny, "train.max_iter=1"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    lines = notes.read_text().splitlines()
    assert [x for x in lines if x.startswith("step")] == ["step True True True"] * processes
    readers = [x for x in lines if x.startswith("read")]
    assert len(readers) == len(set(readers)) == {1: 1, 2: 3}[processes]  # with the launcher
