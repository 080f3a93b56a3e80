"""Test `submit` up to the submission: its flags and the sbatch file."""

import os
import shlex
import shutil
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from d2ext.errors import UserError
from d2ext.run_dir.schema import JobOutcome, Submission
from d2ext.slurm.options import parse_options
from d2ext.slurm.queue import FOREVER, parse_time
from d2ext.slurm.record import find_records, new_record
from tests.slurm.conftest import LITE0, errors


@pytest.mark.parametrize(
    ("text", "minutes"),
    [
        *[("90", 90), ("1:30", 2), ("4:00:00", 240), ("0:0:1", 1), ("1-0", 1440), ("1-2:30", 1590)],
        *[("0", FOREVER), ("infinite", FOREVER), ("UNLIMITED", FOREVER)],
    ],
)
def test_times_are_parsed_to_minutes(text, minutes):
    assert parse_time(text) == minutes


@given(st.text(alphabet="0123456789:- x", max_size=12))
def test_any_time_is_parsed_or_refused(text):
    try:
        assert parse_time(text) >= 1
    except UserError as e:
        assert f"--time {text}" in str(e)


def test_sbatch_options_are_parsed_or_refused():
    given = ["reservation=mine", "mail-type=END", "--exclude n1,n2 -A team -w n3 --exclusive"]
    assert parse_options(given) == {
        "reservation": "mine",
        "mail-type": "END",
        "exclude": "n1,n2",
        "account": "team",
        "nodelist": "n3",
        "exclusive": True,
    }
    given = ["comment=it's hello world", "--comment='a b' --time=1:00:00"]
    assert parse_options(given[:1]) == {"comment": "it's hello world"}
    assert parse_options(given[1:]) == {"comment": "a b", "time": "1:00:00"}
    for text, words in (
        *(("signal=USR1@5", "--signal-delay"), ("-K", "options of srun"), ("=x", "KEY")),
        *(
            ("no-requeue", "--max-requeues"),
            ("ntasks=4", "--num-gpus"),
            ("chdir=/", "another one"),
        ),
        *(("test-only", "--dry-run"), ("--comment 'x", "No closing"), ("a=b\n#SBATCH", "one line")),
    ):
        with pytest.raises(UserError, match=words):
            parse_options([text])


def test_a_record_has_attempts_and_the_outcome(tmp_path, monkeypatch):
    """Each attempt counts, and only the last one ends the job."""
    monkeypatch.setenv("D2EXT_CACHE", str(tmp_path / "cache"))
    record = new_record(tmp_path / "run", "1")
    record.submitted(Submission("7", "slurm", "x"))
    record.begin(0, "n1", None)
    record.end("killed")
    record.begin(1, "n2", 3)
    assert (record.requeues, record.outcome) == (1, None)
    record.end("finished", 0)
    assert record.outcome == JobOutcome(status=0, reason="finished")
    assert [a.nodes for a in record.attempts] == ["n1", "n2"]
    for where in (None, tmp_path / "run"):
        assert [r.folder for r in find_records(where)] == [record.folder]


@pytest.fixture
def submit(run_tool, no_slurm, monkeypatch):
    """Return a function that runs tools/submit.py in this process, where sbatch is not found."""

    def run(*args, **env):
        for name, value in (no_slurm | env).items():
            monkeypatch.setenv(name, value)
        return run_tool("submit", *args)

    return run


def test_invalid_arguments_are_one_line_errors(submit, tiny, tmp_path):
    """The exit status is 2."""
    for flags, words in (
        (["--seeds", "1,1"], "--seeds 1,1: give distinct"),
        (["--dist-url", "tcp://a:1"], "--dist-url is set by the job"),
        (["--cluster", "slurm"], "sbatch and srun are not on"),
        (["--num-machines", "2"], "needs Slurm"),
        (["--time", "soon"], "--time soon: give minutes"),
        (["--time", "1"], "--signal-delay 120: give a positive number of seconds"),
        (["--slurm", "time=5", "--time", "6"], "contradicts --time 6"),
    ):
        done = submit("--config-file", LITE0, *flags)
        assert done.status == 2 and done.stderr.count("\n") == 1, done.stderr
        assert words in done.stderr
    done = submit("status", tmp_path / "nowhere")
    assert done.status == 2 and "no job was submitted" in done.stderr
    done = submit("status", "-f")
    assert done.status == 2 and "-f" in done.stderr
    flags = ["--config-file", LITE0, "--seeds", "1,2", f"train.output_dir={tmp_path}/one"]
    done = submit(*flags, *tiny)
    assert done.status == 2 and "--seeds gives each run its own" in done.stderr, done.stderr
    done = submit("--config-file", LITE0, PORT="abc")
    assert (done.status, done.stderr.count("\n")) == (2, 1) and "PORT=abc" in done.stderr


def test_dry_run_prints_the_golden_sbatch_file(submit, repo, tiny, tmp_path):
    """The commands of Slurm only have to exist."""
    for name in ("sbatch", "srun"):
        (tmp_path / name).touch(mode=0o755)
    flags = "--partition dev --job-name x --num-machines 2 --num-gpus 8 --time 4:00:00 --mem 64G"
    flags += " --qos high --account team --constraint a100 --exclude n1 --nodelist n[2-3]"
    flags += " --cpus-per-task 40 --signal-delay 60 --seeds 1,2,3 --slurm mail-type=END --dry-run"
    done = submit(
        *("--config-file", LITE0, "--work-dir", tmp_path / "out", *flags.split()),
        *(*tiny, "train.reference_world_size=16", "train.reference_batch_size=16"),
        PATH=f"{tmp_path}:{os.environ['PATH']}",
    )
    assert done.status == 0, done.stderr
    plan, found, script = done.stdout.partition("#!/bin/bash")
    assert "machines    2 x 8 GPU, 240 minutes, at most 100 requeues" in plan
    assert f"seeds       3 runs, {tmp_path}/out/seed_1 to {tmp_path}/out/seed_3" in plan
    places = {sys.executable: "PYTHON", tmp_path / "out": "OUT", repo: "REPO"}
    for path, name in {repo / "tools/submit.py": "REPO/tools/submit.py", **places}.items():
        script = script.replace(shlex.quote(str(path)), name)
    assert found + script.rstrip() + "\n" == (repo / "tests/slurm/sbatch.txt").read_text()
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_slurm_train_sh_reads_its_variables(repo, tiny, tmp_path):
    """Variables of sbatch, which would override the script, become options or are ignored."""
    for name in ("sbatch", "srun"):
        (tmp_path / name).touch(mode=0o755)
    env = os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}", "PYTHON": sys.executable}
    command = ["bash", repo / "tools/slurm_train.sh", "dev", "x", LITE0, tmp_path / "out"]

    def run(*args, **variables):
        return subprocess.run(
            [*command, *args], env=env | variables, capture_output=True, text=True
        )

    none = run(GPUS="0")
    assert (none.returncode, none.stderr.count("\n")) == (2, 1)
    assert none.stderr.startswith("error: GPUS=0 "), none.stderr
    srun = {"GPUS": "1", "SRUN_ARGS": "--time=1:00:00 --comment='a b'"}
    defaults = {"SBATCH_ACCOUNT": "team", "SBATCH_PARTITION": "other", "SBATCH_NETWORK": "x"}
    done = run("--dry-run", *tiny, **srun, **defaults)
    assert done.returncode == 0, done.stderr
    assert "account     team (SBATCH_ACCOUNT)" in done.stdout and ", 60 minutes," in done.stdout
    assert "ignored     SBATCH_NETWORK" in done.stdout
    for line in ("account=team", "partition=dev", "comment='a b'", "time=60"):
        assert f"#SBATCH --{line}\n" in done.stdout


@pytest.mark.slow
def test_a_run_that_would_move_its_own_config(submit, trained, tiny, tmp_path):
    """The command is refused before anything moves."""
    run = shutil.copytree(trained, tmp_path / "run")
    done = submit(run, "--overwrite", *tiny)
    assert done.status == 2 and errors(done) == [
        f"error: --overwrite would move the config {run}/config.yaml aside with {run}; choose"
        " another --work-dir, or copy the config elsewhere"
    ]
    assert {p.name for p in tmp_path.iterdir()} == {"bin", "run"}
    other = ["--work-dir", tmp_path / "other", "--dry-run"]
    assert submit(run, "--overwrite", *other, *tiny).status == 0
