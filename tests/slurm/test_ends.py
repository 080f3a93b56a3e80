"""How jobs end if Slurm does not answer, refuses or kills; Slurm's commands are scripts."""

import json
import signal
import subprocess
import sys

import pytest
from submitit.core.utils import DelayedSubmission

from d2ext.run_dir.schema import (
    MachineFailure,
    Rendezvous,
    Submission,
    read_record,
    write_record,
)
from d2ext.slurm.job import Training
from d2ext.slurm.record import new_record
from tests.conftest import checkout_env
from tests.slurm.conftest import LITE0, errors

SILENT = "echo 'Unable to contact slurm controller' >&2; exit 1"


class Node:
    """The node of a job, with Slurm commands that answer as the test defines."""

    def __init__(self, folder):
        self.bin, self.asked = folder / "bin", folder / "asked"
        self.bin.mkdir()
        self.record = new_record(folder / "run", "1")
        for name in ("squeue", "sacct", "sinfo", "scontrol", "scancel", "sbatch", "srun"):
            self.play(name, SILENT)

    def play(self, name, script):
        """Replace a Slurm command with a shell script."""
        (self.bin / name).write_text(f'#!/bin/sh\necho {name} "$@" >> {self.asked}\n{script}\n')
        (self.bin / name).chmod(0o755)

    def submit(self, command, max_requeues=9, num_machines=1):
        """Write the files that submit.py writes for job 4242."""
        words = dict(command=command, overrides=[], start=[], resume_flags=[], untouched=None)
        folder = str(self.record.folder)
        limits = dict(num_machines=num_machines, max_requeues=max_requeues, port=None)
        DelayedSubmission(Training(**words, **limits, folder=folder)).dump(
            self.record.folder / "4242_submitted.pkl"
        )
        log = str(self.record.folder / "4242_0_log.out")
        self.record.submitted(Submission("4242", "slurm", log))

    def run(self, *module, restarts=0, **env):
        """Run one of the two commands of the batch script; return its status and output."""
        done = subprocess.run(
            [sys.executable, "-m", *map(str, module)],
            env=self.env | {"SLURM_JOB_ID": "4242", "SLURM_RESTART_COUNT": str(restarts)} | env,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=60,
        )
        assert "Traceback" not in done.stdout, done.stdout
        return done.returncode, done.stdout

    def task(self, restarts=0, **env):
        """Run the task as submitit does."""
        return self.run("submitit.core._submit", self.record.folder, restarts=restarts, **env)

    def after(self, status, restarts=0):
        """Run the command that follows srun in the batch script."""
        return self.run("d2ext.slurm.after", self.record.folder, status, restarts=restarts)

    def requeues(self):
        """Return how often Slurm was asked to requeue the job."""
        return self.asked.read_text().count("scontrol requeue 4242\n")

    @property
    def env(self):
        return checkout_env() | {"PATH": f"{self.bin}:/bin:/usr/bin", "SUBMITIT_EXECUTOR": "slurm"}


@pytest.fixture
def node(tmp_path, monkeypatch):
    monkeypatch.setenv("D2EXT_CACHE", str(tmp_path / "cache"))
    return Node(tmp_path)


def trainer(end):
    """Return the command of a trainer that ends at once with the statement `end`."""
    return [sys.executable, "-c", f"import os, sys; {end}"]


def test_a_job_that_version_0_1_submitted_continues(node):
    """Its pickle uses the old name of the flags, and its batch script the module `after`."""
    node.submit(trainer("open('argv', 'w').write(' '.join(sys.argv[1:])); sys.exit(0)"))
    file = node.record.folder / "4242_submitted.pkl"
    submission = DelayedSubmission.load(file)
    state = submission.function.__dict__
    del state["resume_flags"]
    state |= {"goes_on": ["--resume"], "start": ["--resume"]}
    submission.dump(file)
    assert b"goes_on" in file.read_bytes()
    status, printed = node.task()
    assert status == 0, printed
    assert DelayedSubmission.load(file).function.resume_flags == ["--resume"]
    assert node.after(0)[0] == 0


def test_an_attempt_killed_before_it_started_counts_and_is_requeued(node):
    """A job whose processes did not start for another reason is not requeued."""
    node.submit(trainer("0"))
    node.record.begin(0, "n1", None)
    node.record.end("killed by SIGTERM")
    node.play("scontrol", "exit 0")
    assert "requeued: killed by SIGKILL\n" in node.after(137, restarts=1)[1]
    assert [a.number for a in node.record.attempts] == [0, 1] and node.requeues() == 1
    status, output = node.after(1, restarts=2)
    assert status == 1 and "not requeued (status 1): its processes did not start" in output
    assert "did not start (status 1)" in node.record.outcome.reason
    assert [a.why for a in node.record.attempts[:2]] == [
        "killed by SIGTERM",
        "killed by SIGKILL",
    ]


@pytest.mark.parametrize("status", [255, 139, 1])
def test_other_failures_are_not_requeued(node, status):
    """The statuses are a failure of srun, a crash, and a task that could not report its error."""
    node.submit(trainer("0"))
    node.record.begin(0, "n1", None)
    node.play("scontrol", "exit 0")
    assert node.after(status)[0] == status
    assert node.record.outcome.status == status and node.requeues() == 0
    assert f"(status {status}), see " in node.record.outcome.reason


@pytest.mark.parametrize("number", ["SIGKILL", "SIGSEGV"])
def test_only_signals_from_outside_cause_a_requeue(node, number):
    node.submit(trainer(f"os.kill(os.getpid(), {int(getattr(signal, number))})"))
    node.play("scontrol", "exit 0")
    status, output = node.task()
    if number == "SIGKILL":
        assert (status, node.requeues(), node.record.outcome) == (75, 1, None)
        assert "\nrequeued: killed by SIGKILL\n" in output
    else:
        assert (status, node.requeues()) == (139, 0)
        assert node.record.outcome.reason.startswith("SIGSEGV: ")


def test_the_error_of_another_machine_reaches_the_first(node):
    """Both machines get the address that the first one writes."""
    prints_address = "print('error:', os.environ['MASTER_ADDR'], os.environ['PORT']); sys.exit(3)"
    node.submit(trainer(prints_address), num_machines=2)
    node.play("scontrol", "echo n1; echo n2")
    env = {"SLURM_JOB_NUM_NODES": "2", "SLURM_NTASKS": "2", "SLURM_JOB_NODELIST": "n[1-2]"}
    write_record(node.record.folder / "meet-4242-0", Rendezvous("n1", "29500"))
    assert node.task(SLURM_PROCID="1", **env)[0] == 0  # only the first machine decides
    failure = read_record(node.record.folder / "failed-4242-0", MachineFailure)
    assert failure.status == 3 and failure.message.startswith("machine ")
    assert failure.message.endswith(": see " + str(node.record.folder / "4242_1_log.out"))
    status, output = node.task(SLURM_PROCID="0", **env)
    place = read_record(node.record.folder / "meet-4242-0", Rendezvous)
    assert status == 3 and place.host == "n1" and f"error: n1 {place.port}\n" in output


def test_a_requeue_that_fails_at_first_is_tried_again(node, tmp_path):
    """The job is reported as requeued only once it is."""
    node.submit(trainer("os.kill(os.getpid(), 9)"))
    node.play("scontrol", f"[ -e {tmp_path}/once ] && exit 0; touch {tmp_path}/once; {SILENT}")
    status, output = node.task()
    assert status == 75 and output.count("requeued: ") == 1 and node.requeues() == 2
    node.play("squeue", "echo COMPLETING 1")  # Slurm has counted the requeue
    assert node.after(75) == (75, "") and node.requeues() == 2


@pytest.mark.slow
def test_a_requeue_that_keeps_failing_ends_the_job_with_the_reason(node):
    """The command after srun leaves the recorded outcome as it is."""
    node.submit(trainer("sys.exit(75)"))
    status, output = node.task()
    reason = node.record.outcome.reason
    assert status == 75 and "\nrequeued: " not in output
    assert "did not requeue it: Unable to contact slurm controller" in reason
    assert f"not requeued (status 75): {reason}" in output and node.requeues() == 5
    assert node.after(75) == (75, "")


def test_status_and_cancel_if_slurm_does_not_answer(node, run_tool, tmp_path, monkeypatch):
    """The status is unknown, not ended; after a refused cancel, other jobs are still canceled."""
    monkeypatch.setenv("PATH", node.env["PATH"])
    node.submit(trainer("0"))
    run = node.record.run_dir
    assert "unknown (Slurm does not answer)" in run_tool("submit", "status", run).stdout
    seeds = [new_record(tmp_path / "runs" / f"seed_{i}", "1") for i in (1, 2)]
    for i, record in enumerate(seeds):
        record.submitted(Submission(f"7_{i}", "slurm", "x"))
    node.play("scancel", f'[ "$1" = 7_1 ] || {{ {SILENT}; }}')
    done = run_tool("submit", "cancel", tmp_path / "runs")
    assert done.status == 2 and "scancel 7_0: Unable" in done.stderr
    assert "job 7_1 is canceled" in done.stdout
    assert [record.cancelled for record in seeds] == [False, True]
    done = run_tool("submit", "--config-file", LITE0)
    assert done.status == 2 and "Slurm does not answer" in done.stderr
    assert "--cluster local" in done.stderr


@pytest.mark.slow
def test_a_refused_submission_changes_nothing(node, run_tool, tiny, tmp_path, monkeypatch):
    """The directory stays even with --overwrite."""
    for name, value in node.env.items():
        monkeypatch.setenv(name, value)
    out = tmp_path / "out"
    out.mkdir()
    (out / "run.json").write_text(json.dumps({"kept": 1}))
    flags = ["--config-file", LITE0, "--work-dir", out, "--time", "5", "--overwrite", *tiny]
    done = run_tool("submit", *flags)
    assert (done.status, len(errors(done))) == (2, 1), done.stderr
    assert "controller; --cluster local trains on this machine" in done.stderr
    assert [p.name for p in out.iterdir() if p.name != ".lock"] == ["run.json"]
    node.play("sbatch", "echo 4243")  # an option can change its output
    done = run_tool("submit", *flags, "--seeds", "1,2")
    assert (done.status, len(errors(done))) == (2, 1), done.stderr
    assert "sbatch printed no job id" in done.stderr
    assert [p.name for p in out.iterdir() if p.name != ".lock"] == ["run.json"]
    assert not [p for p in tmp_path.iterdir() if p.name.startswith("out.")]
