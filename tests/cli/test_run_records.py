"""A run records why it failed, how to reproduce it, and what was evaluated."""

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from d2ext.launch.command import describe_run
from d2ext.launch.topology import Topology
from tests.conftest import LITE0, REPO


def _run_info(folder):
    return json.loads((folder / "run.json").read_text())


def _losses(folder):
    lines = [json.loads(line) for line in (folder / "metrics.json").read_text().splitlines()]
    return [line["total_loss"] for line in lines if "total_loss" in line]


def test_the_reason_of_a_failure_is_recorded(train_net, tiny, tmp_path):
    """The log, run.json and the report contain it; a refused start changes none of them."""
    done = train_net("--work-dir", tmp_path, "--options", *tiny, "optimizer.lr=1e30")
    assert done.status == 2 and "not finite" in done.stderr
    message = done.stderr.strip().removeprefix("error: ")
    assert f"E d2ext: error: {message}" in (tmp_path / "log.txt").read_text()
    assert _run_info(tmp_path)["ended_by"] == message
    page = (tmp_path / "report.html").read_text()
    assert "not finite" in page and "Training is in progress" not in page

    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    done = train_net("--work-dir", tmp_path, "--options", *tiny)
    assert done.status == 2 and "holds another run" in done.stderr
    assert {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()} == before


@pytest.mark.parametrize("processes", [1, 2])
def test_run_files_exist_before_the_first_step(train_net, repo, tiny, tmp_path, processes):
    """run.json and config.yaml exist, and each process reads the config once."""
    notes, run, recipe = tmp_path / "notes", tmp_path / "run", tmp_path / "mine.py"
    recipe.write_text(
        f"""
import os
from detectron2.config import LazyConfig
from detectron2.modeling import GeneralizedRCNN

globals().update(LazyConfig.load({str(repo / LITE0)!r}))
with open({str(notes)!r}, "a") as file:
    file.write(f"read {{os.getpid()}}\\n")

def noting(**arguments):
    model = GeneralizedRCNN(**arguments)
    def note(*_):
        hook.remove()
        names = sorted(os.listdir({str(run)!r}))
        with open({str(notes)!r}, "a") as file:
            file.write(f"step {{'run.json' in names}} {{'config.yaml' in names}}\\n")
    hook = model.register_forward_pre_hook(note)
    return model

model["_target_"] = noting
"""
    )
    flags = ["--num-gpus", processes, "--no-validate", "--work-dir", run]
    done = train_net(*flags, *tiny, "train.max_iter=1", config=recipe)
    assert done.status == 0, done.stderr
    lines = notes.read_text().splitlines()
    assert [x for x in lines if x.startswith("step")] == ["step True True"] * processes
    readers = [x for x in lines if x.startswith("read")]
    assert len(readers) == len(set(readers)) == {1: 1, 2: 3}[processes]  # with the launcher


@pytest.mark.slow
@pytest.mark.nightly
def test_the_recorded_command_reproduces_a_torchrun_run(repo, tiny, tmp_path):
    """The command starts as many processes, and the losses are the same."""
    out = tmp_path / "a run"
    bin_dir = str(Path(sys.executable).parent)
    env = os.environ | {"OMP_NUM_THREADS": "1", "PATH": f"{bin_dir}:{os.environ['PATH']}"}
    start = ["torchrun", "--standalone", "--nproc-per-node=2"]
    command = [*start, str(REPO / "tools/train_net.py"), "--config-file", str(REPO / LITE0)]
    command += ["--no-validate", "--work-dir", str(out), *tiny, "train.reference_world_size=2"]
    subprocess.run(command, env=env, check=True, capture_output=True)
    info = _run_info(out)
    *started, tool = shlex.split(info["command"])[:4]
    assert started == start and tool == str(REPO / "tools/train_net.py")
    again = shlex.split(info["reproduce"])
    assert "--no-validate" in again
    subprocess.run(again, env=env, check=True, capture_output=True)
    assert _losses(tmp_path / "a run_again") == pytest.approx(_losses(out), rel=1e-6)


TORCHRUN = "torchrun --standalone --nproc-per-node=2"


@pytest.mark.parametrize(
    ("topology", "before", "flags"),
    [
        (Topology("self"), "", ""),
        (Topology("self", 1, 0, 8, "tcp://127.0.0.1:1", 0), "", " --num-gpus 8"),
        (
            Topology("self", 2, 0, 8, "tcp://a:1", 0),
            "",
            " --num-gpus 8 --num-machines 2 --machine-rank 0 --dist-url tcp://a:1",
        ),
        (Topology("srun", 2, 0, 4, "tcp://a:1", 0), "srun --nodes=2 --ntasks-per-node=4 ", ""),
        (Topology("torchrun", 1, 0, 2, "tcp://a:1", 0), TORCHRUN, ""),
    ],
)
@pytest.mark.parametrize(
    ("program", "words", "of_torchrun"),
    [
        (REPO / "tools/train_net.py", "python tools/train_net.py", " tools/train_net.py"),
        (REPO / "d2ext/__main__.py", "python -m d2ext train", " -m d2ext train"),
        ("/usr/bin/d2ext", "d2ext train", " -m d2ext train"),
    ],
)
def test_recorded_commands_start_as_many_processes(
    monkeypatch, tmp_path, topology, before, flags, program, words, of_torchrun
):
    (tmp_path / "tools").symlink_to(REPO / "tools")
    if program == REPO / "tools/train_net.py":
        program = "tools/train_net.py"
    monkeypatch.setattr(sys, "argv", [str(program)])
    line = before + (of_torchrun if topology.launcher == "torchrun" else words)
    run = describe_run("X.py", "train", ["X.py", "a=b c"], topology)
    assert run.line == f"{line} X.py 'a=b c'" and shlex.join(run.start) == line + flags
    run = describe_run("X.py", "train", ["X.py"], topology, validate=False)
    assert run.start[-1] == "--no-validate"


def test_a_resumed_run_records_its_first_command(train_net, tiny, tmp_path):
    common = ["--no-validate", "--work-dir", tmp_path, "--options", *tiny]
    assert train_net(*common, "train.max_iter=2").status == 0
    first = _run_info(tmp_path)["command"]
    done = train_net("--resume", *common, "train.max_iter=4")
    assert done.status == 0, done.stderr
    info = _run_info(tmp_path)
    assert info["command"] == first and "--resume" in info["resumed_by"]
    assert info["resumed_from"].endswith("model_final.pth")


def test_an_evaluation_replaces_an_earlier_one(train_net, tiny, tmp_path):
    """This holds even if the earlier one used another dataset."""
    assert train_net("--no-validate", "--work-dir", tmp_path, "--options", *tiny).status == 0
    evaluate = ["--eval-only", "--weights", "last", "--work-dir", tmp_path, "--options", *tiny]
    assert train_net(*evaluate, "dataloader.val.dataset.names=balloon_train").status == 0
    assert train_net(*evaluate).status == 0
    left = {
        p.name.split(".")[0]
        for d in ("predictions", "analysis", "overlays")
        for p in (tmp_path / "eval" / d).iterdir()
    }
    assert left == {"balloon_val"}
    info = _run_info(tmp_path / "eval")
    assert info["weights"].endswith("model_final.pth") and "reproduce" not in info
