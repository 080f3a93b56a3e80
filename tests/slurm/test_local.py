"""Without Slurm, tools/submit.py trains on this machine."""

import json
import os
import re
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from msgspec.structs import replace

from d2ext.run_dir.schema import Submission
from d2ext.slurm.job import Training
from d2ext.slurm.local import LocalExecutor
from d2ext.slurm.pid import identify, is_alive
from d2ext.slurm.record import new_record, newest_record
from d2ext.slurm.status import status_table
from tests.conftest import REPO, SCRIPT, checkout_env
from tests.slurm.conftest import LITE0, SUBMIT, until


def _submit(*args):
    """Run tools/submit.py in a process of its own, which the job outlives."""
    command = [sys.executable, SUBMIT, *map(str, args)]
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.run(command, env=env, capture_output=True, text=True)


@pytest.mark.slow
def test_submit_without_slurm_trains_on_this_machine(
    run_tool, tiny, no_slurm, tmp_path, monkeypatch
):
    """The output says so; the job runs in its own process and is listed by `status`."""
    monkeypatch.setenv("D2EXT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PATH", no_slurm["PATH"])
    flags = ["--config-file", LITE0, "--work-dir", tmp_path / "out", "--wait", "--mem", "1G"]
    done = _submit(*flags, *tiny)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "cluster     local: this machine has no Slurm, so the run starts here" in done.stdout
    assert "ignored     --mem: these flags need Slurm" in done.stdout
    assert "report: " in done.stdout and (tmp_path / "out" / "model_final.pth").is_file()
    table = run_tool("submit", "status").stdout
    assert re.search(r"finished .* 4 of 4 .* 0$", table.strip()), table
    again = run_tool("submit", *flags, *tiny)
    assert again.status == 2 and "holds another run" in again.stderr
    over = _submit(*flags, "--overwrite", *tiny, "optimizer.lr=1e9")
    assert over.returncode == 2, over.stdout + over.stderr
    assert "not requeued (status 2)" in over.stdout
    assert len(list(tmp_path.glob("out.*/model_final.pth"))) == 1


@pytest.mark.slow
@pytest.mark.parametrize(
    "tool",
    [pytest.param(True, id="tool", marks=pytest.mark.nightly), pytest.param(False, id="command")],
)
def test_a_job_names_the_user_s_command(tiny, no_slurm, tmp_path, tool):
    """The job does so even if files in the folder have the names of packages."""
    Path("torch.py").write_text("raise SystemExit('not this one')\n")
    Path("tools").symlink_to(REPO / "tools")
    Path("bin/d2ext").write_text(SCRIPT)
    start = ["tools/submit.py"] if tool else ["bin/d2ext", "submit"]
    flags = [LITE0, "--work-dir", "out", "--wait", "--no-validate", *tiny, "train.max_iter=1"]
    done = subprocess.run(
        [sys.executable, *start, *flags],
        env=checkout_env() | no_slurm | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    train, predict = (
        f"python tools/{name}.py" if tool else f"d2ext {name.partition('_')[0]}"
        for name in ("train_net", "predict")
    )
    info = json.loads(Path("out/run.json").read_text())
    assert info["command"].startswith(f"{train} --config-file ")
    assert info["reproduce"].startswith(f"{train} ")
    assert f"predict: {predict} out IMAGES" in done.stdout


@pytest.mark.slow
def test_ctrl_c_ends_only_the_waiting_and_cancel_saves(
    run_tool, tiny, no_slurm, tmp_path, monkeypatch
):
    """After Ctrl-C, `logs -f` follows the training, which `cancel` saves and ends."""
    monkeypatch.setenv("D2EXT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PATH", no_slurm["PATH"])
    out = tmp_path / "out"
    flags = ["--config-file", LITE0, "--work-dir", out, "--wait", *tiny]
    command = [sys.executable, SUBMIT, *flags, "train.max_iter=3000"]
    waiting = subprocess.Popen(
        command,
        start_new_session=True,
        # SIGINT is ignored if a script runs the tests in the background.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    until(lambda: (out / "metrics.json").exists())
    job = newest_record(out).submission.job
    try:
        os.killpg(waiting.pid, signal.SIGINT)  # as a terminal does
        assert waiting.wait(30) == 130
        before = (out / "metrics.json").stat().st_size
        until(lambda: (out / "metrics.json").stat().st_size > before)
        logs = [sys.executable, SUBMIT, "logs", "-f", str(out)]
        following = subprocess.Popen(logs, stdout=subprocess.PIPE, text=True)
        assert "is canceled" in run_tool("submit", "cancel").stdout
        until(lambda: newest_record(out).outcome)
        shown = following.communicate(timeout=60)[0]
    finally:
        if Path(f"/proc/{job}").exists():
            os.kill(int(job), signal.SIGTERM)
    assert following.returncode == 75 and "eta:" in shown
    assert f"[job {job} is canceled]" in shown
    assert (out / "last_checkpoint").exists()
    assert "canceled" in run_tool("submit", "status", out).stdout


def test_a_reused_process_id_is_not_taken_for_the_job(run_tool, tmp_path, monkeypatch):
    """The other process is neither reported as the run nor killed."""
    monkeypatch.setenv("D2EXT_CACHE", str(tmp_path / "cache"))
    with subprocess.Popen(["sleep", "60"]) as other:
        now = identify(other.pid)
        job = Submission(str(other.pid), "local", "x", **now)
        run = tmp_path / "run"
        new_record(run, "1").submitted(replace(job, begun=job.begun - 1))
        assert " killed" in run_tool("submit", "status", run).stdout
        assert "is over" in run_tool("submit", "cancel", run).stdout
        assert other.poll() is None
        new_record(run, "2").submitted(replace(job, host="elsewhere"))
        assert "unknown (on another machine)" in run_tool("submit", "status", run).stdout
        assert "to end the job, kill process" in run_tool("submit", "cancel", run).stdout
        assert other.poll() is None
        new_record(run, "3").submitted(job)
        assert "is canceled" in run_tool("submit", "cancel", run).stdout
        assert other.wait(10) == -signal.SIGTERM


@pytest.fixture
def start(tmp_path, monkeypatch):
    """Yield a function that submits shell scripts as trainers; wait for their processes."""
    monkeypatch.setenv("PYTHONPATH", str(REPO))
    jobs = []

    def run(scripts, max_requeues):
        folder = tmp_path / "slurm" / "1"
        executor = LocalExecutor(folder, python=shlex.quote(sys.executable))
        executor.update_parameters(timeout_min=5, signal_delay_s=10, gpus_per_node=0)
        records = [new_record(tmp_path / str(i), "1") for i in range(len(scripts))]
        for record, script in zip(records, scripts, strict=True):
            training = Training(
                command=["sh", "-c", script, "train_net.py"],
                overrides=[],
                start=[],
                resume_flags=[],
                untouched=None,
                folder=str(record.folder),
                num_machines=1,
                max_requeues=max_requeues,
                port=None,
            )
            job = executor.submit(training)
            jobs.append(job)
            process = identify(job.job_id)
            record.submitted(Submission(job.job_id, "local", str(job.paths.stdout), **process))
        return records

    yield run
    until(lambda: all(job.done() for job in jobs), 30)


def test_max_requeues_limits_the_attempts(start, tmp_path):
    """The seventh attempt is not requeued, and the outcome says why."""
    ready = tmp_path / "ready"
    script = f"trap 'exit 75' USR2; touch {ready}; while :; do sleep 0.1; done"
    (record,) = start([script], max_requeues=6)
    controller = record.submission.job
    for i in range(7):
        until(ready.exists, 30)
        ready.unlink()
        (task,) = Path(f"/proc/{controller}/task/{controller}/children").read_text().split()
        os.kill(int(task), signal.SIGUSR2)
        until(lambda i=i: record.attempts[i].ended, 30)
    until(lambda: record.outcome, 30)
    assert record.outcome.reason == "saved, after 6 requeues, the maximum (--max-requeues)"
    assert Path(record.submission.log).read_text().count("requeued: saved") == 6
    assert len(record.attempts) == 7


def test_the_training_of_a_killed_job_ends(start, tmp_path):
    """Otherwise it could not be canceled."""
    (record,) = start([f"echo $$ > {tmp_path}/pid; exec sleep 100"], max_requeues=0)
    until(lambda: (tmp_path / "pid").exists() and (tmp_path / "pid").read_text(), 30)
    pid = (tmp_path / "pid").read_text().strip()
    trainer = Submission(pid, "local", "", **identify(pid))
    os.kill(int(record.submission.job), signal.SIGKILL)
    until(lambda: not is_alive(trainer), 30)
    assert " killed " in status_table([record])


def test_seeds_run_one_at_a_time(start, tmp_path):
    """At once, they would share the GPUs. The outcome of a killed one has a reason."""
    alone = f"mkdir {tmp_path}/alone && sleep 1 && rmdir {tmp_path}/alone"
    records = start([alone, alone, "kill -SEGV $$"], max_requeues=0)
    assert "PENDING (waiting for its turn)" in status_table(records)
    until(lambda: all(record.outcome for record in records), 60)
    assert [record.outcome.status for record in records] == [0, 0, 139]
    assert records[2].outcome.reason.startswith("SIGSEGV: ")
