"""Train in jobs of a real Slurm: finished, interrupted, killed, and several at once."""

import os
import re
import shlex
import signal
import sys
import time

import pytest

from d2ext.slurm.record import newest_record
from tests.conftest import REPO
from tests.slurm.conftest import LITE0, TRAIN, errors, losses, same_weights

pytestmark = pytest.mark.slow

TWO = ("train.reference_world_size=2",)
LONG = ("train.max_iter=20",)


def test_a_job_on_one_node_equals_a_run_without_slurm(cluster, start, without_slurm):
    """--wait shows the log and returns the exit status."""
    run = start("one", "--wait")
    assert run.outcome["status"] == 0
    assert losses(run.directory) == losses(without_slurm())
    assert same_weights(run.directory, without_slurm())
    table = cluster.tool("status", run.directory)
    assert re.search(r"finished +node\d +4 of 4 .* 0$", table.strip()), table
    assert "eta:" in cluster.tool("logs", run.directory)


def test_a_granted_gpu_that_torch_cannot_use_is_an_error(start):
    """The job does not train on the CPU instead; the cluster's GPUs have no driver."""
    run = start("gpu", "--num-gpus", "2", more=(*TWO, "train.device=cuda"))
    outcome = run.wait_for_end()
    assert "#SBATCH --gpus-per-node=2\n" in next(run.folder.glob("*_submission.sh")).read_text()
    assert outcome["status"] == 2
    assert "Slurm granted GPUs" in run.log and "train.device=cpu" in run.log


def test_a_job_on_two_nodes_equals_a_run_without_slurm(start, without_slurm):
    """Each node runs two processes; machine 0 writes the rendezvous address."""
    four = ("train.reference_world_size=4", "train.reference_batch_size=4")
    run = start("two", "--num-machines", "2", "--num-gpus", "2", "--wait", more=four)
    alone = without_slurm("--num-gpus", "4", *four)
    assert losses(run.directory) == losses(alone)
    assert same_weights(run.directory, alone)
    table = re.findall(r"^ +(\d) +(\d) +(node\d)", run.log, re.M)
    assert table == [
        ("0", "0", "node1"),
        ("1", "1", "node1"),
        ("2", "0", "node2"),
        ("3", "1", "node2"),
    ]
    assert len(list(run.folder.glob("meet-*"))) == 1


@pytest.mark.nightly
def test_a_preempted_and_timed_out_job_resumes_exactly(cluster, start, without_slurm, tmp_path):
    """A job in `dev` preempts it, then its time is up; both times it is saved and requeued."""
    hurry = tmp_path / "hurry"
    pace = f"train.hooks=[{{_target_: tests.slurm.pace.Pace, file: {hurry}}}]"
    long = ("train.max_iter=200", "train.eval_period=0", "train.checkpointer.period=0", pace)
    run = start("low", "--time", "20", "--signal-delay", "20", partition="low", more=long)
    run.wait_for_steps(1)
    cluster.run("sbatch", "-p", "dev", "-N2", "--exclusive", "-o", "/dev/null", "--wrap", "sleep 1")
    run.wait_for_steps(2)
    # Slurm checks time limits twice a minute.
    soon = time.strftime("%Y-%m-%dT%H:%M:%S", time.localtime(time.time() + 50))
    cluster.run("scontrol", "update", f"JobId={run.job}", f"EndTime={soon}")
    cluster.until(lambda: "ended" in run.attempts[1], "the time limit had no effect")
    hurry.touch()
    cluster.run("scontrol", "update", f"JobId={run.job}", "TimeLimit=20")
    assert run.wait_for_end()["status"] == 0
    whys = [attempt["why"] for attempt in run.attempts]
    assert whys == ["preempted or out of time, and saved"] * 2 + ["finished"]
    resumed_at = [int(n) for n in re.findall(r"continues at iteration (\d+)", run.log)]
    assert len(resumed_at) == 2 and resumed_at[0] < resumed_at[1]
    assert "this job is preempted" in run.log
    alone = without_slurm(*long)
    assert losses(run.directory) == losses(alone)  # no step is lost or repeated
    assert same_weights(run.directory, alone)


@pytest.mark.nightly
def test_a_job_of_an_installed_wheel_trains_equally(
    cluster, installed, tiny, tmp_path, without_slurm
):
    """The job is submitted outside the checkout, with a hook from the current folder."""
    (tmp_path / "my_hooks.py").write_text(
        "from detectron2.engine import HookBase\n\n"
        "class Note(HookBase):\n"
        "    def before_train(self):\n"
        "        import d2ext\n"
        "        open('where', 'w').write(d2ext.__file__)\n"
    )
    job = ["--partition", "dev", "--cpus-per-task", "2", "--work-dir", "run", "--wait"]
    more = [*tiny, "train.device=cpu", "train.hooks=[{_target_: my_hooks.Note}]"]
    recipe = "balloon/mask_rcnn_lite0_fpn_balloon.py"
    cluster.run(installed / "d2ext", "submit", recipe, *job, *more)
    assert (tmp_path / "where").read_text().startswith(str(installed.parent))
    script = next((tmp_path / "run/slurm").glob("*/*_submission.sh")).read_text()
    assert "PYTHONPATH" not in script
    assert same_weights(tmp_path / "run", without_slurm())
    assert "finished" in cluster.run(installed / "d2ext", "submit", "status", "run").stdout


def test_killed_jobs_are_requeued_and_resume_exactly(cluster, start, without_slurm):
    """Kill a rank, then the whole step; then requeue the job as an administrator would."""
    more = (*TWO, *LONG, "train.checkpointer.period=2")
    run = start("killed", "--num-gpus", "2", more=more)
    table = re.compile(r"^ +1 +1 +node\d +(\d+)", re.M)
    cluster.until(lambda: run.attempts and table.search(run.log), "the ranks did not connect")
    os.kill(int(table.findall(run.log)[-1]), signal.SIGKILL)  # before there is a checkpoint
    run.wait_until_saved(2)
    cluster.run("scancel", "--signal=KILL", f"{run.job}.0")
    run.wait_until_saved(3)
    cluster.run("scontrol", "requeue", run.job)
    assert run.wait_for_end()["status"] == 0
    assert "rank 1" in run.attempts[0]["why"] and "SIGKILL" in run.attempts[0]["why"]
    assert run.attempts[1]["why"] == "killed by SIGKILL"
    assert len(run.attempts) == 4
    assert "killed" in cluster.tool("logs", run.directory)
    assert same_weights(run.directory, without_slurm("--num-gpus", "2", *more))


def test_max_requeues_0_saves_and_ends_the_job(cluster, start):
    run = start("few", "--max-requeues", "0", more=LONG)
    run.wait_for_steps(1)
    cluster.run("scancel", "--signal=USR2", run.job)
    outcome = run.wait_for_end()
    assert outcome["status"] == 75
    assert outcome["reason"].endswith("after 0 requeues, the maximum (--max-requeues)")
    assert (run.directory / "last_checkpoint").exists() and "not requeued" in run.log


def test_user_errors_are_not_requeued(cluster, start, tiny, tmp_path):
    """Errors found early are not submitted; one in the job ends it with its status and one line."""
    bad = cluster.submit("--partition", "dev", *tiny, "train.max_itre=3", check=False)
    assert (bad.returncode, bad.stdout) == (2, "")
    assert "max_itre" in bad.stderr and "max_iter" in bad.stderr and not cluster.jobs()
    nowhere = cluster.submit("--partition", "nowhere", "--time", "5", *tiny, check=False)
    assert nowhere.returncode == 2 and "nowhere" not in nowhere.stdout
    (error,) = errors(nowhere)
    assert error.startswith("error: sbatch refused the job: ")
    flags = ["--partition", "dev", "--work-dir", tmp_path / "nan", "--wait", *tiny]
    diverging = ("train.device=cpu", "optimizer.lr=1e9", "train.max_iter=20")
    done = cluster.submit(*flags, *diverging, check=False)
    assert done.returncode == 2, done.stdout
    assert re.search(r"^not requeued \(status 2\): .*(finite|diverged|infinite)", done.stdout, re.M)
    assert "stopped: " in cluster.tool("status", tmp_path / "nan")


@pytest.mark.nightly
def test_a_config_broken_after_the_submission_ends_the_job(cluster, start, tmp_path, without_slurm):
    config = tmp_path / "config.yaml"
    config.write_text((without_slurm() / "config.yaml").read_text())
    run = start("later", "--config-file", str(config), "--slurm", "hold")
    config.write_text("model: [")
    assert f"scontrol release {run.job}" in cluster.tool("status", run.directory)
    cluster.run("scontrol", "release", run.job)
    outcome = run.wait_for_end()
    assert outcome["status"] == 2 and "config.yaml" in outcome["reason"]
    assert len(run.attempts) == 1
    cluster.until(lambda: not cluster.jobs(), "the job is still in the queue")
    assert "stopped: " in cluster.tool("status", run.directory)


@pytest.mark.nightly
def test_a_job_resumes_after_its_node_failed(cluster, start, without_slurm):
    """Slurm starts the job again, and it resumes from the newest checkpoint."""
    more = (*LONG, "train.checkpointer.period=2")
    run = start("failing", more=more)
    run.wait_until_saved(1)
    node = run.attempts[0]["nodes"]
    cluster.run("scontrol", "update", f"NodeName={node}", "State=DOWN", "Reason=test")
    try:
        run.wait_for_steps(2, more=1)
    finally:
        cluster.run("scontrol", "update", f"NodeName={node}", "State=RESUME")
    assert run.wait_for_end()["status"] == 0
    assert len(run.attempts) == 2
    assert "continues at iteration" in run.log
    assert same_weights(run.directory, without_slurm(*more))


def test_a_canceled_job_is_not_requeued_and_two_jobs_share_a_node(cluster, start, tiny):
    """A canceled job is not requeued; two jobs of two processes each use different ports."""
    long = start("c", more=("train.max_iter=3000",))
    flags = ("--partition", "dev", "--work-dir", long.directory, "--resume")
    again = cluster.submit(*flags, *tiny, check=False)
    assert again.returncode == 2 and f"job {long.job} is" in again.stderr, again.stderr
    long.wait_for_steps(1)
    assert "is canceled" in cluster.tool("cancel", long.directory)
    cluster.until(lambda: not cluster.jobs(), "the canceled job is still in the queue")
    assert "canceled" in cluster.tool("status", long.directory)
    assert len(long.attempts) == 1
    runs = [start(n, "--num-gpus", "2", "--nodelist", "node1", more=TWO) for n in ("a", "b")]
    assert [run.wait_for_end()["status"] for run in runs] == [0, 0]
    assert losses(runs[0].directory) == losses(runs[1].directory)


def test_seeds_run_in_their_own_directories(cluster, start):
    """The seeds are an array of jobs."""
    runs = start("seeds", "--seeds", "1,2", "--wait").directory
    one, two = (losses(runs / f"seed_{seed}") for seed in (1, 2))
    assert len(one) == len(two) == 4 and one != two
    assert cluster.tool("status", runs).count("finished") == 2


def test_slurm_train_sh_submits_a_job(cluster, tiny, tmp_path):
    """GPUS=2 starts two processes on one node though GPUS_PER_NODE is 8; other variables apply."""
    cluster.env = cluster.env | {"GPUS": "2", "CPUS_PER_TASK": "1", "PYTHON": sys.executable}
    cluster.env |= {"SRUN_ARGS": '-w node2 --comment="it\'s mine"', "PORT": "23456"}
    tiny_run = ("--time", "20", *tiny, *TWO, "train.device=cpu")
    run = cluster.run(
        "bash", REPO / "tools/slurm_train.sh", "dev", "guide", LITE0, tmp_path / "g", *tiny_run
    )
    assert run.stdout.startswith("GPUS=2 on 1 x 2, CPUS_PER_TASK=1, SRUN_ARGS=-w node2 --comment=")
    assert re.findall(r"^ +(\d) +\d +(node\d)", run.stdout, re.M) == [
        ("0", "node2"),
        ("1", "node2"),
    ]
    script = next((tmp_path / "g" / "slurm").glob("*/*_submission.sh")).read_text()
    for line in ("cpus-per-task=2", "job-name=guide"):
        assert f"#SBATCH --{line}\n" in script
    job = newest_record(tmp_path / "g").submission.job
    described = cluster.run("scontrol", "show", "job", job).stdout.splitlines()
    assert [line.strip() for line in described if "Comment" in line] == ["Comment=it's mine"]


@pytest.mark.nightly
def test_train_net_in_an_allocation_is_one_process(cluster, tiny, tmp_path, without_slurm):
    """This holds in a batch script and in an interactive allocation with several tasks."""
    train = [sys.executable, TRAIN, "--config-file", LITE0, "--work-dir"]
    batch, typed = (
        shlex.join(map(str, [*train, tmp_path / name, *tiny])) for name in ("batch", "typed")
    )
    cluster.run("sbatch", "-n2", "-o", tmp_path / "log", "--wrap", batch)
    cluster.run("salloc", "-n2", "bash", "-c", typed)
    cluster.until(lambda: not cluster.jobs(), "the batch script did not end")
    for name in ("batch", "typed"):
        assert losses(tmp_path / name) == losses(without_slurm())
