"""tools/submit.py where no Slurm is: flags, the sbatch file, and a training on this machine."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from d2ext.errors import UserError
from d2ext.slurm.options import parse_options
from d2ext.slurm.queue import parse_time
from d2ext.slurm.record import find_records, new_record, newest_record

LITE0 = "configs/balloon/mask_rcnn_lite0_fpn_balloon.py"


@pytest.mark.parametrize(
    ("text", "minutes"),
    [("90", 90), ("1:30", 2), ("4:00:00", 240), ("0:0:1", 1), ("1-0", 1440), ("1-2:30", 1590)],
)
def test_times(text, minutes):
    assert parse_time(text) == minutes


@given(st.text(alphabet="0123456789:- x", max_size=12))
def test_a_time_is_read_or_refused(text):
    try:
        assert parse_time(text) >= 1
    except UserError as e:
        assert f"--time {text}" in str(e)


def test_options_of_sbatch():
    given = ["reservation=mine", "mail-type=END", "--exclude n1,n2 -A team -w n3 --exclusive"]
    assert parse_options(given) == {
        "reservation": "mine",
        "mail-type": "END",
        "exclude": "n1,n2",
        "account": "team",
        "nodelist": "n3",
        "exclusive": True,
    }
    for text, words in (("signal=USR1@5", "--signal-delay"), ("-z", "long name"), ("=x", "KEY")):
        with pytest.raises(UserError, match=words):
            parse_options([text])


def test_what_a_record_tells(tmp_path, monkeypatch):
    """Each start counts; the end of the job is told apart from the end of a start."""
    monkeypatch.setenv("D2EXT_CACHE", str(tmp_path / "cache"))
    record = new_record(tmp_path / "run", "1")
    record.submitted(job="7", cluster="slurm", log="x")
    record.begin("n1", None)
    record.end("killed")
    record.begin("n2", 3)
    assert (record.requeues, record.outcome) == (1, None)
    record.end("finished", 0)
    assert record.outcome == {"status": 0, "reason": "finished"}
    assert [a["nodes"] for a in record.attempts] == ["n1", "n2"]
    for where in (None, tmp_path / "run"):
        assert [r.folder for r in find_records(where)] == [record.folder]


def submit(repo, *args, env=None):
    """The real command."""
    return subprocess.run(
        [sys.executable, "tools/submit.py", *map(str, args)],
        cwd=repo,
        env=os.environ | {"OMP_NUM_THREADS": "1"} | (env or {}),
        capture_output=True,
        text=True,
    )


@pytest.fixture
def no_slurm(tmp_path):
    """An environment where sbatch is not found."""
    (tmp_path / "bin").mkdir()
    for name in ("bash", "python"):
        (tmp_path / "bin" / name).symlink_to(
            Path("/bin/bash") if name == "bash" else sys.executable
        )
    return {"PATH": str(tmp_path / "bin")}


@pytest.mark.slow
def test_mistakes_on_the_command_line(repo, no_slurm):
    """One line and status 2, before anything is loaded."""
    for flags, words in (
        (["--seeds", "1,1"], "--seeds 1,1: give different"),
        (["--dist-url", "tcp://a:1"], "--dist-url: the job gives"),
        (["--cluster", "slurm"], "sbatch and srun are not on"),
        (["--num-machines", "2"], "without Slurm there is one"),
        (["--time", "soon"], "--time soon: give minutes"),
        (["--time", "1"], "--signal-delay 120: give seconds"),
    ):
        done = submit(repo, "--config-file", LITE0, *flags, env=no_slurm)
        assert done.returncode == 2 and done.stderr.count("\n") == 1, done.stderr
        assert words in done.stderr


@pytest.mark.slow
def test_the_sbatch_file(repo, tiny, tmp_path):
    """--dry-run against the golden file; it needs the names of Slurm's commands only."""
    for name in ("sbatch", "srun"):
        (tmp_path / name).touch(mode=0o755)
    flags = "--partition dev --job-name x --num-machines 2 --num-gpus 8 --time 4:00:00 --mem 64G"
    flags += " --qos high --account team --constraint a100 --exclude n1 --nodelist n[2-3]"
    flags += " --cpus-per-task 40 --signal-delay 60 --seeds 1,2,3 --slurm mail-type=END --dry-run"
    done = submit(
        repo,
        *("--config-file", LITE0, "--work-dir", tmp_path / "out", *flags.split()),
        *(*tiny, "train.reference_world_size=16", "train.reference_batch_size=16"),
        env={"PATH": f"{tmp_path}:{os.environ['PATH']}"},
    )
    assert done.returncode == 0, done.stderr
    plan, found, script = done.stdout.partition("#!/bin/bash")
    assert "machines    2 x 8 GPU, 240 minutes, at most 100 requeues" in plan
    assert f"seeds       3 runs, {tmp_path}/out/seed_1 to {tmp_path}/out/seed_3" in plan
    for path, name in ((sys.executable, "PYTHON"), (tmp_path / "out", "OUT"), (repo, "REPO")):
        script = script.replace(str(path), name)
    assert found + script.rstrip() + "\n" == (repo / "tests/slurm/sbatch.txt").read_text()
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_without_slurm(repo, tiny, no_slurm, tmp_path, monkeypatch):
    """It says so and trains here, in a process of its own; status and logs know it."""
    monkeypatch.setenv("D2EXT_CACHE", str(tmp_path / "cache"))
    flags = ["--config-file", LITE0, "--work-dir", tmp_path / "out", "--wait"]
    done = submit(repo, *flags, *tiny, env=no_slurm)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "cluster     local: no Slurm is on this machine, so it runs here" in done.stdout
    assert "The report" in done.stdout and (tmp_path / "out" / "model_final.pth").is_file()
    table = submit(repo, "status", env=no_slurm).stdout
    assert re.search(r"finished .* 4 of 4 .* 0$", table.strip()), table
    again = submit(repo, *flags, *tiny, env=no_slurm)
    assert again.returncode == 2 and "holds another run" in again.stderr
    over = submit(repo, *flags, "--overwrite", *tiny, "optimizer.lr=1e9", env=no_slurm)
    assert over.returncode == 2, over.stdout + over.stderr
    assert "not requeued (status 2)" in over.stdout
    assert len(list(tmp_path.glob("out.*/model_final.pth"))) == 1


@pytest.mark.slow
def test_cancel_without_slurm(repo, tiny, no_slurm, tmp_path, monkeypatch):
    """It goes on behind the command, which has ended; cancelled, it saves."""
    monkeypatch.setenv("D2EXT_CACHE", str(tmp_path / "cache"))
    out = tmp_path / "out"
    flags = ["--config-file", LITE0, "--work-dir", out, *tiny, "train.max_iter=3000"]
    assert submit(repo, *flags, env=no_slurm).returncode == 0
    job = newest_record(out).submission["job"]
    try:
        _until(lambda: (out / "metrics.json").exists())
        assert "is cancelled" in submit(repo, "cancel", env=no_slurm).stdout
        _until(lambda: newest_record(out).outcome)
        _until(lambda: not Path(f"/proc/{job}").exists())
    finally:
        if Path(f"/proc/{job}").exists():
            os.kill(int(job), signal.SIGTERM)
    assert (out / "last_checkpoint").exists()
    assert "cancelled" in submit(repo, "status", out, env=no_slurm).stdout


def _until(condition, seconds=200):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.2)
