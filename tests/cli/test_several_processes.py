"""Several processes over gloo give the result of one process, and always end cleanly."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from PIL import Image

from d2ext.launch.topology import free_port
from tests.cli.test_predict import film
from tests.conftest import LITE0, REPO, SCRIPT

TOOL = [str(REPO / "tools/train_net.py"), "--config-file", str(REPO / LITE0)]


@pytest.fixture
def small(tiny):
    """Return overrides for a short run of two workers with one image each."""
    return [*tiny, "train.reference_world_size=2", "train.max_iter=2"]


@pytest.fixture
def start():
    """Start a command in its own session, and kill what is left of it after the test."""
    started = []

    def run(*args, env=None, prefix=(sys.executable,), tool=TOOL):
        process = subprocess.Popen(
            [*prefix, *tool, *map(str, args)],
            env=os.environ | {"OMP_NUM_THREADS": "1"} | (env or {}),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        started.append(process)
        return process

    yield run
    for process in started:
        for pid in _session(process.pid):
            os.kill(pid, signal.SIGKILL)
        process.communicate()  # closes its pipe, which a failed test has not read


def _session(leader: int) -> list[int]:
    """Return the living processes of a session."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[3]) == leader and fields[0] not in "ZX":
            found.append(int(stat.parent.name))
    return found


def _end(process, seconds=240):
    """Return output and status, and check that no process of the session survived."""
    output = process.communicate(timeout=seconds)[0]
    deadline = time.time() + 10
    while (left := _session(process.pid)) and time.time() < deadline:
        time.sleep(0.1)
    assert not left, output
    return output, process.returncode


def _table(output):
    """Return rank and local rank from each row of the table of ranks."""
    rows = [line.split() for line in output.splitlines()]
    return [row[:2] for row in rows if len(row) == 5 and row[4] == "cpu"]


def _weights(folder):
    return torch.load(folder / "model_final.pth", weights_only=True)["model"]


def _losses(folder):
    lines = [json.loads(line) for line in (folder / "metrics.json").read_text().splitlines()]
    return [line["total_loss"] for line in lines if "total_loss" in line]


def test_two_processes_equal_one_that_accumulates(start, train_net, small, tmp_path):
    """The images are the same bit for bit; losses and weights differ only by the order of sums."""
    two = start("--num-gpus", 2, "--work-dir", tmp_path / "two", "--options", *small)
    output, status = _end(two)
    assert status == 0, output
    assert _table(output) == [["0", "0"], ["1", "1"]] and socket.gethostname() in output
    assert "1 on each of 2 workers" in output
    one = ["--no-validate", "--work-dir", tmp_path / "one", "--options", *small]
    done = train_net(*one, "train.accumulate=2")
    assert done.status == 0, done.stderr
    assert _losses(tmp_path / "two") == pytest.approx(_losses(tmp_path / "one"), rel=1e-5)
    a, b = _weights(tmp_path / "two"), _weights(tmp_path / "one")
    for key in a:
        assert torch.allclose(a[key], b[key], rtol=1e-4, atol=1e-6), key
    results = json.loads((tmp_path / "two" / "results.json").read_text())["last"]["results"]
    assert "balloon_val/coco/segm/AP" in results
    predictions = json.loads((tmp_path / "two" / "predictions" / "balloon_val.json").read_text())
    assert {p["image_id"] for p in predictions} <= {1, 2}


@pytest.mark.slow
@pytest.mark.nightly
def test_two_machines_scale_the_learning_rate(start, small, tmp_path):
    url = f"tcp://127.0.0.1:{free_port()}"
    common = ["--num-machines", 2, "--dist-url", url, "--auto-scale-lr", "--no-validate"]
    common += ["--work-dir", tmp_path, "--options", *small, "train.reference_world_size=1"]
    second = start("--machine-rank", 1, *common)
    first = start("--machine-rank", 0, *common)
    for process in (first, second):
        output, status = _end(process)
        assert status == 0, output
    scaling = json.loads((tmp_path / "scaling.json").read_text())
    assert (scaling["world_size"], scaling["batch_size"], scaling["scale"]) == (2, 4, 2.0)
    assert (tmp_path / "model_final.pth").is_file()


@pytest.mark.slow
@pytest.mark.nightly
def test_two_machines_with_two_processes_each(start, small, tmp_path):
    url = f"tcp://127.0.0.1:{free_port()}"
    common = ["--num-gpus", 2, "--num-machines", 2, "--dist-url", url, "--no-validate"]
    common += ["--work-dir", tmp_path, "--options", *small, "dataloader.train.total_batch_size=4"]
    processes = [start("--machine-rank", rank, *common) for rank in (0, 1)]
    outputs = []
    for process in processes:
        output, status = _end(process)
        assert status == 0, output
        outputs.append(output)
    assert _table(outputs[0]) == [["0", "0"], ["1", "1"], ["2", "0"], ["3", "1"]]
    assert (tmp_path / "model_final.pth").is_file()


@pytest.mark.slow
@pytest.mark.nightly
def test_two_runs_of_dist_train_sh_at_once(start, small, tmp_path):
    """If no port is given, each run finds a free one."""
    processes = [
        start(
            "2",
            "--no-validate",
            "--work-dir",
            tmp_path / name,
            "--options",
            *small,
            prefix=["bash"],
            tool=[str(REPO / "tools/dist_train.sh"), str(REPO / LITE0)],
            env={"PYTHON": sys.executable},
        )
        for name in "ab"
    ]
    for process in processes:
        output, status = _end(process)
        assert status == 0, output
    a, b = (_weights(tmp_path / name) for name in "ab")
    assert all(torch.equal(a[key], b[key]) for key in a)


@pytest.mark.slow
def test_a_run_resumes_with_another_number_of_workers(start, train_net, small, tmp_path):
    """With the same global batch it continues exactly; with another, at the same image count."""
    common = ["--no-validate", "--options", *small, "train.max_iter=4"]
    common += ["train.checkpointer.period=2"]
    done = train_net("--work-dir", tmp_path / "whole", *common, "train.accumulate=2")
    assert done.status == 0, done.stderr
    resume = ["--resume-from", tmp_path / "whole" / "model_0000001.pth"]
    two = ["--num-gpus", 2, *resume]
    output, status = _end(start("--work-dir", tmp_path / "two", *two, *common))
    assert status == 0, output
    assert "continues at iteration 2 (world size 1 before, 2 now; images" in output
    a, b = _weights(tmp_path / "whole"), _weights(tmp_path / "two")
    for key in a:
        assert torch.allclose(a[key], b[key], rtol=1e-3, atol=1e-5), key
    larger = ["train.accumulate=2", "dataloader.train.total_batch_size=4"]
    done = train_net("--work-dir", tmp_path / "four", *resume, *common, *larger)
    assert done.status == 0, done.stderr
    assert "continues at iteration 1 (2 images per step before, 4 now" in done.stdout
    # With --auto-scale-lr: twice the workers, twice the images, half the iterations.
    common += ["train.reference_world_size=1"]
    two.append("--auto-scale-lr")
    output, status = _end(start("--work-dir", tmp_path / "scaled", *two, *common))
    assert status == 0, output
    assert "continues at iteration 1 (2 images per step before, 4 now; world size 1" in output
    assert json.loads((tmp_path / "scaled" / "scaling.json").read_text())["batch_size"] == 4


@pytest.mark.slow
@pytest.mark.nightly
def test_torchrun_starts_a_training(start, small, tmp_path):
    prefix = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    prefix += ["--master-port", str(free_port())]
    process = start("--no-validate", "--work-dir", tmp_path, "--options", *small, prefix=prefix)
    output, status = _end(process)
    assert status == 0, output
    assert (tmp_path / "model_final.pth").is_file()


def test_a_user_error_on_a_rank_is_the_last_line(start, small, tiny_root, tmp_path):
    """Every image is cut off after its header; one rank or both report it."""
    root = tmp_path / "data"
    shutil.copytree(tiny_root, root)
    for image in (root / "balloon" / "train").glob("*.jpg"):
        image.write_bytes(image.read_bytes()[:900])
    process = start(
        "--num-gpus", 2, "--work-dir", tmp_path / "run", "--options", *small, f"data.root={root}"
    )
    output, status = _end(process)
    last = output.strip().splitlines()[-1]
    assert status == 2 and last.startswith("error: rank "), output
    assert socket.gethostname() in last and "cannot be read" in last
    errors = [json.loads(p.read_text()) for p in (tmp_path / "run" / "errors").glob("*.json")]
    assert errors and all(e["rank"] in (0, 1) for e in errors)


@pytest.mark.slow
@pytest.mark.nightly
def test_every_machine_reports_the_cause(start, small, tiny_root, tmp_path):
    """One machine has broken photos; the other reports that, not a lost peer."""
    root = tmp_path / "data"
    shutil.copytree(tiny_root, root)
    for image in (root / "balloon" / "train").glob("*.jpg"):
        image.write_bytes(image.read_bytes()[:900])
    url = f"tcp://127.0.0.1:{free_port()}"
    common = ["--num-machines", 2, "--dist-url", url, "--no-validate"]
    common += ["--work-dir", tmp_path / "run", "--options", *small]
    second = start("--machine-rank", 1, *common, f"data.root={root}")
    first = start("--machine-rank", 0, *common)
    for process in (first, second):
        output, status = _end(process)
        last = output.strip().splitlines()[-1]
        assert status == 2 and "rank 1" in last and "cannot be read" in last, output


@pytest.mark.slow
def test_machines_with_different_configs_are_an_error(start, small, tmp_path):
    """The difference is named on the second machine; no run directory is created."""
    url = f"tcp://127.0.0.1:{free_port()}"
    common = ["--num-machines", 2, "--dist-url", url]
    common += ["--work-dir", tmp_path / "run", "--options", *small]
    second = start("--machine-rank", 1, *common, "train.seed=5")
    first = start("--machine-rank", 0, *common)
    output, status = _end(second)
    assert status == 2 and "train.seed is 5 on rank 1 and 0 on rank 0" in output.splitlines()[-1]
    output, status = _end(first)
    assert status != 0 and not (tmp_path / "run").exists(), output


@pytest.mark.slow
def test_an_exception_on_a_rank_is_the_last_line(start, small, tmp_path):
    """A schedule that divides by zero on rank 1 only, after the first step."""
    (tmp_path / "odd.py").write_text(
        "from detectron2.utils import comm\n"
        "def multiplier(**arguments):\n"
        "    return lambda where: 1 / (where < 0.4 or comm.get_rank() == 0)\n"
    )
    process = start(
        "--num-gpus",
        2,
        "--no-validate",
        "--work-dir",
        tmp_path / "run",
        "--options",
        *small,
        "lr_multiplier._target_=odd.multiplier",
        env={"PYTHONPATH": str(tmp_path)},
    )
    output, status = _end(process)
    last = output.strip().splitlines()[-1]
    assert status == 1 and last.startswith(f"error: rank 1 on {socket.gethostname()}: "), output
    assert "ZeroDivisionError" in last and "odd.py" in output


@pytest.mark.slow
def test_srun_tasks_train_together(start, small, tmp_path):
    """Two tasks run with the variables that srun sets; then their port is in use."""
    step = dict(SLURM_STEP_NUM_TASKS="2", SLURM_STEP_NUM_NODES="1", SLURM_JOB_ID="1")
    url = f"tcp://127.0.0.1:{free_port()}"
    common = ["--no-validate", "--dist-url", url, "--work-dir", tmp_path, "--options", *small]
    tasks = [start(*common, env={**step, "SLURM_PROCID": str(rank)}) for rank in (0, 1)]
    ended = [_end(task) for task in tasks]
    assert [status for _, status in ended] == [0, 0], ended
    assert _table(ended[0][0]) == [["0", "0"], ["1", "1"]]
    assert (tmp_path / "model_final.pth").is_file()
    # If the first task cannot listen, it cancels the step: this scancel kills the other task.
    other = start(*common, env={**step, "SLURM_PROCID": "1"})
    scancel = tmp_path / "bin" / "scancel"
    scancel.parent.mkdir()
    scancel.write_text(f'#!/bin/sh\n[ "$1" = 1.None ] && kill -9 -{other.pid}\n')
    scancel.chmod(0o755)
    with socket.socket() as s:
        s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        s.bind(("", int(url.rpartition(":")[2])))
        s.listen()
        path = f"{scancel.parent}:{os.environ['PATH']}"
        output, status = _end(start(*common, env={**step, "SLURM_PROCID": "0", "PATH": path}))
        assert status == 2 and "is in use" in output.splitlines()[-1], output
        _end(other)


@pytest.mark.slow
@pytest.mark.nightly
def test_the_cause_is_reported_under_torchrun(start, small, tiny_root, tmp_path):
    root = tmp_path / "data"
    shutil.copytree(tiny_root, root)
    for image in (root / "balloon" / "train").glob("*.jpg"):
        image.write_bytes(image.read_bytes()[:900])
    prefix = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    prefix += ["--master-port", str(free_port())]
    run = tmp_path / "run"
    process = start("--work-dir", run, "--options", *small, f"data.root={root}", prefix=prefix)
    output, status = _end(process)
    errors = [line for line in output.splitlines() if line.startswith("error: ")]
    assert status == 1 and errors and all("cannot be read" in line for line in errors), output
    assert output.count("Traceback") == 1  # torchrun's own
    assert list((run / "errors").glob("rank-*.json"))


@pytest.mark.slow
@pytest.mark.nightly
def test_torchrun_starts_a_training_on_two_machines(start, small, tmp_path):
    common = ["-m", "torch.distributed.run", "--nnodes", "2", "--nproc-per-node", "1"]
    common += ["--rdzv-backend", "c10d", "--rdzv-endpoint", f"127.0.0.1:{free_port()}"]
    processes = [
        start(
            "--no-validate",
            "--work-dir",
            tmp_path,
            "--options",
            *small,
            prefix=[sys.executable, *common, "--local-addr", "127.0.0.1"],
        )
        for _ in range(2)
    ]
    ended = [_end(process) for process in processes]
    assert [status for _, status in ended] == [0, 0], ended
    assert [["0", "0"], ["1", "0"]] in [_table(output) for output, _ in ended]
    assert (tmp_path / "model_final.pth").is_file()


@pytest.mark.nightly
@pytest.mark.slow
def test_no_rank_survives_a_killed_torchrun(start, small, tmp_path):
    prefix = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    prefix += ["--master-port", str(free_port())]
    options = [*small, "train.max_iter=100000"]
    process = start("--no-validate", "--work-dir", tmp_path, "--options", *options, prefix=prefix)
    _wait_for_step(process, tmp_path)
    process.kill()
    _end(process)


@pytest.mark.nightly
@pytest.mark.slow
def test_every_machine_reports_a_killed_rank(start, small, tmp_path):
    url = f"tcp://127.0.0.1:{free_port()}"
    common = ["--num-machines", 2, "--dist-url", url, "--no-validate"]
    common += ["--work-dir", tmp_path, "--options", *small, "train.max_iter=100000"]
    second = start("--machine-rank", 1, *common)
    first = start("--machine-rank", 0, *common)
    _wait_for_step(first, tmp_path)
    (rank,) = [pid for pid in _session(second.pid) if _is_rank(pid, second.pid)]
    os.kill(rank, signal.SIGKILL)
    for process in (first, second):
        output, status = _end(process, seconds=40)
        last = output.strip().splitlines()[-1]
        assert status == 1 and "rank 1 on" in last and "was killed" in last, output


@pytest.mark.slow
def test_two_runs_in_one_directory_do_not_mix(start, small, tmp_path):
    run = tmp_path / "run"
    processes = [
        start("--no-validate", "--work-dir", run, "--options", *small, f"train.seed={seed}")
        for seed in (1, 2)
    ]
    ended = sorted((_end(process) for process in processes), key=lambda end: end[1])
    assert [status for _, status in ended] == [0, 2], ended
    assert "output directory" in ended[1][0].splitlines()[-1]
    assert len(list(run.glob("events.out.*"))) == 1


@pytest.mark.slow
def test_a_killed_rank_ends_the_run(start, small, tmp_path):
    process = start(
        "--num-gpus", 2, "--work-dir", tmp_path, "--options", *small, "train.max_iter=100000"
    )
    _wait_for_step(process, tmp_path)
    ranks = [pid for pid in _session(process.pid) if _is_rank(pid, process.pid)]
    os.kill(max(ranks), signal.SIGKILL)
    start_time = time.time()
    output, status = _end(process, seconds=30)
    assert status == 1 and time.time() - start_time < 20
    assert "was killed by SIGKILL" in output.strip().splitlines()[-1]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("program", "moment"),
    [
        pytest.param(TOOL[:1], "imports", id="tool-imports", marks=pytest.mark.nightly),
        pytest.param(TOOL[:1], "training", id="tool-training", marks=pytest.mark.nightly),
        pytest.param(["-m", "d2ext", "train"], "imports", id="module", marks=pytest.mark.nightly),
        pytest.param(["bin/d2ext", "train"], "imports", id="command"),
    ],
)
def test_no_rank_survives_a_killed_launcher(start, small, tmp_path, program, moment):
    """This holds for each kind of main module, which Python runs again in the ranks."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/d2ext").write_text(SCRIPT)
    args = ["--num-gpus", 2, "--work-dir", tmp_path / "run", "--options", *small]
    process = start(
        *args, "train.max_iter=100000", tool=[*program, *TOOL[1:]], env={"PYTHONPATH": str(REPO)}
    )
    if moment == "training":
        _wait_for_step(process, tmp_path / "run")
    else:
        while len(_session(process.pid)) < 3:
            time.sleep(0.02)
    process.kill()
    _end(process)


@pytest.mark.slow
@pytest.mark.parametrize(
    "number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.nightly)]
)
def test_a_signal_to_the_launcher_saves_the_run(start, small, tmp_path, number):
    process = start(
        "--num-gpus", 2, "--work-dir", tmp_path, "--options", *small, "train.max_iter=100000"
    )
    _wait_for_step(process, tmp_path)
    os.kill(process.pid, number)
    output, status = _end(process, seconds=60)
    assert status == 75, output
    assert f"Stopped by {number.name}" in output
    assert (tmp_path / (tmp_path / "last_checkpoint").read_text()).is_file()


@pytest.mark.slow
def test_a_second_ctrl_c_ends_the_run_at_once(start, small, tmp_path):
    process = start(
        "--num-gpus", 2, "--work-dir", tmp_path, "--options", *small, "train.max_iter=100000"
    )
    _wait_for_step(process, tmp_path)
    ranks = [pid for pid in _session(process.pid) if _is_rank(pid, process.pid)]
    for rank in ranks:  # signal both before a step can end
        os.kill(rank, signal.SIGSTOP)
        os.kill(rank, signal.SIGINT)
    for rank in ranks:
        os.kill(rank, signal.SIGCONT)
    time.sleep(0.05)
    os.killpg(process.pid, signal.SIGINT)
    output, status = _end(process, seconds=30)
    assert status == 130, output
    assert output.strip().splitlines()[-1].startswith("interrupted"), output
    assert "Traceback" not in output, output


@pytest.mark.slow
@pytest.mark.nightly
def test_a_second_ctrl_c_to_the_launcher_ends_hanging_ranks(start, small, tmp_path):
    """Only the launcher receives the signals; its ranks are stopped."""
    process = start(
        "--num-gpus", 2, "--work-dir", tmp_path, "--options", *small, "train.max_iter=100000"
    )
    _wait_for_step(process, tmp_path)
    for rank in (pid for pid in _session(process.pid) if _is_rank(pid, process.pid)):
        os.kill(rank, signal.SIGSTOP)
    os.kill(process.pid, signal.SIGINT)
    time.sleep(0.3)
    assert process.poll() is None
    os.kill(process.pid, signal.SIGINT)
    output, status = _end(process, seconds=5)
    assert status == 130 and output.strip().splitlines()[-1] == "interrupted", output


@pytest.mark.slow
def test_a_signal_before_the_first_step_ends_the_run(start, small, tmp_path):
    process = start("--num-gpus", 2, "--work-dir", tmp_path / "run", "--options", *small)
    while len(_session(process.pid)) < 4:  # launcher, semaphore tracker, two ranks that import
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGTERM)
    output, status = _end(process, seconds=40)
    assert status == 130 and "interrupted" in output.strip().splitlines()[-1], output
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_missing_peers_are_an_error_after_the_timeout(train_net, small, tmp_path):
    url = f"tcp://127.0.0.1:{free_port()}"
    common = ["--num-machines", 2, "--dist-url", url, "--dist-timeout", 4]
    common += ["--work-dir", tmp_path, "--options", *small]
    for rank, words in ((0, "only 1 of 2 processes reached"), (1, "machine 0 was not reached")):
        done = train_net("--machine-rank", rank, *common)
        assert done.status == 2 and words in done.stderr.splitlines()[-1], done.stderr


def test_invalid_ports_hosts_and_batch_sizes_are_errors(train_net, small, tmp_path):
    with socket.socket() as s:
        s.bind(("", 0))
        s.listen()
        url = f"tcp://127.0.0.1:{s.getsockname()[1]}"
        done = train_net(
            "--num-gpus", 2, "--dist-url", url, "--work-dir", tmp_path / "run", "--options", *small
        )
    assert done.status == 2 and "is in use" in done.stderr and not (tmp_path / "run").exists()
    url = "tcp://no.such.host.invalid:29515"
    done = train_net("--num-gpus", 2, "--dist-url", url, "--options", *small)
    assert done.status == 2 and "no.such.host.invalid is unknown" in done.stderr
    done = train_net("--num-gpus", 3, "--work-dir", tmp_path / "run", "--options", *small)
    assert done.status == 2 and "does not divide among 3 workers" in done.stderr
    assert not (tmp_path / "run").exists()


def _wait_for_step(process, folder):
    deadline = time.time() + 120
    metrics = folder / "metrics.json"
    while not (metrics.is_file() and metrics.read_text().count("\n") >= 1):
        assert process.poll() is None and time.time() < deadline
        time.sleep(0.1)


def _is_rank(pid: int, launcher: int) -> bool:
    command = Path(f"/proc/{pid}/cmdline").read_text()
    return pid != launcher and "spawn_main" in command


_SCRIPT = """
import sys
import d2ext

config, output, *overrides = sys.argv[1:]
cfg = d2ext.load_config(config, overrides)
run = d2ext.train(cfg, output)
results = d2ext.evaluate(cfg, "last", output)
# One write, because the processes share the output.
sys.stdout.write(f"keys {run.results.keys() == results.keys()} {len(results)}\\n")
sys.stdout.flush()
"""


@pytest.fixture
def script(tmp_path):
    """Return the command that starts a user's script, by number of processes (1 or 2)."""
    file = tmp_path / "my_script.py"
    file.write_text(_SCRIPT)
    several = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    several += ["--master-port", str(free_port())]
    return {1: [sys.executable, str(file)], 2: [*several, str(file)]}


def test_a_script_trains_in_two_processes(start, small, script, tmp_path):
    """The result equals one process that accumulates; all ranks return the results."""
    env = {"PYTHONPATH": str(REPO)}
    for count in (2, 1):
        folder, more = tmp_path / str(count), [f"train.accumulate={3 - count}"]
        tool = [REPO / LITE0, folder, *small, *more]
        output, status = _end(start(prefix=script[count], tool=map(str, tool), env=env))
        assert status == 0 and output.count("keys True") == count, output
        assert "Traceback" not in output and "terminate called" not in output
    assert _losses(tmp_path / "2") == pytest.approx(_losses(tmp_path / "1"), rel=1e-5)
    a, b = _weights(tmp_path / "2"), _weights(tmp_path / "1")
    for key in a:
        assert torch.allclose(a[key], b[key], rtol=1e-4, atol=1e-6), key
    info = json.loads((tmp_path / "2" / "run.json").read_text())
    typed = f"torchrun --standalone --nproc-per-node=2 {tmp_path / 'my_script.py'} "
    assert info["command"].startswith(typed)
    assert info["reproduce"].startswith("torchrun --standalone --nproc-per-node=2 -m d2ext train ")


@pytest.mark.nightly
def test_a_user_error_in_a_script_ends_all_ranks(start, small, script, tmp_path):
    tool = [REPO / LITE0, tmp_path / "run", *small, "train.init_checkpoint=absent.pth"]
    process = start(prefix=script[2], tool=map(str, tool), env={"PYTHONPATH": str(REPO)})
    output, status = _end(process)
    errors = [line for line in output.splitlines() if line.startswith("error: rank ")]
    assert status == 1 and errors and all("absent.pth" in line for line in errors), output
    assert output.count("Traceback") == 1  # torchrun's own


PREDICT = [str(REPO / "tools/predict.py"), "--weights", "last", "--score-threshold", "0"]
# A mapper that does something on rank 1 only; others wait for the predictions of that rank.
_ODD = """
import os, time
from detectron2.utils import comm
class Odd:
    def __init__(self, **arguments):
        self.mapper = detectron2.data.DatasetMapper(**arguments)
    def __call__(self, record):
        if comm.get_rank() == 1:
            {}
        return self.mapper(record)
"""


def _files(folder):
    found = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in found}


@pytest.mark.slow
def test_two_processes_predict_the_same_files_as_one(start, trained, tiny_root, tmp_path):
    """They share photos, of which two are damaged, and videos; then there is only one photo."""
    photos = shutil.copytree(tiny_root / "balloon" / "train", tmp_path / "photos")
    (photos / "via_region_data.json").unlink()
    first, *_, last = sorted(photos.iterdir())
    last.write_bytes(last.read_bytes()[:900])
    Image.new("RGB", (5000, 1)).save(photos / "narrow.png")
    films = [film(tmp_path / f"{k}.mp4", first, frames=3) for k in range(2)]
    config = ["--config-file", trained / "config.yaml"]
    everything = [*config, photos, "--batch-size", 2, "--masks", "--splash", "--cutouts"]
    flags = {
        "films": [*everything, *films, "--csv"],
        "annotated": [*everything, "--annotations", "coco", "--rank", "uncertain"],
        "photo": [*config, first, "--no-overlays"],
    }
    for name, given in flags.items():
        folders = [tmp_path / f"{name}_by_{processes}" for processes in (1, 2)]
        started = [
            start(*given, "--output", out, "--num-gpus", processes, tool=PREDICT)
            for processes, out in enumerate(folders, start=1)
        ]
        skipped = []
        for process in started:
            output, status = _end(process)
            assert status == (0 if name == "photo" else 1), output
            skipped.append([line for line in output.splitlines() if "cannot be read" in line])
        assert skipped[0] == skipped[1] and len(skipped[0]) == (0 if name == "photo" else 2)
        one, two = map(_files, folders)
        assert two.keys() == one.keys() and b'"score"' in one["predictions.json"]
        # FFmpeg gives each WebM file random ids.
        assert not [x for x in one if one[x] != two[x] and not x.endswith(".webm")]


@pytest.fixture
def odd(start, trained, tiny_root, tmp_path):
    """Start a prediction by two processes, with a mapper that does something on rank 1."""

    def run(code):
        (tmp_path / "odd.py").write_text("import detectron2.data" + _ODD.format(code))
        config = ["--config-file", trained / "config.yaml", "--output", tmp_path / "out"]
        config += [tiny_root / "balloon" / "train", "--num-gpus", 2]
        mapper = ["--options", "dataloader.val.mapper._target_=odd.Odd"]
        return start(*config, *mapper, env={"PYTHONPATH": str(tmp_path)}, tool=PREDICT)

    return run


@pytest.mark.slow
@pytest.mark.parametrize(
    ("code", "status", "words"),
    [
        ("os.kill(os.getpid(), 9)", 1, "was killed by SIGKILL (out of memory?)"),
        pytest.param(
            "raise ValueError('odd photo')", 2, "ValueError: odd photo", marks=pytest.mark.nightly
        ),
    ],
)
def test_a_process_that_fails_ends_the_prediction(odd, tmp_path, code, status, words):
    output, ended = _end(odd(code))
    last = output.strip().splitlines()[-1]
    assert ended == status and "Traceback" not in output, output
    assert last.startswith(f"error: rank 1 on {socket.gethostname()}: ") and words in last
    left = {path.name for path in (tmp_path / "out").iterdir()}
    assert left <= {"images.json", "overlays"}, left


@pytest.mark.slow
def test_ctrl_c_ends_a_prediction_by_several_processes(odd, tmp_path):
    process = odd("open('waits', 'w').close(); time.sleep(600)")
    deadline = time.time() + 120
    while not (tmp_path / "waits").exists() and time.time() < deadline:
        time.sleep(0.1)
    os.killpg(process.pid, signal.SIGINT)
    output, status = _end(process, seconds=60)
    assert status == 130 and output.strip().splitlines()[-1].startswith("interrupted"), output
    left = {path.name for path in (tmp_path / "out").iterdir()}
    assert left <= {"images.json", "overlays"}, left
