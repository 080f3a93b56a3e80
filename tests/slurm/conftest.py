"""Fixtures for commands without Slurm, and on a real one that tests/slurm/run.sh started."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.conftest import REPO, Finished

LITE0 = REPO / "configs/balloon/mask_rcnn_lite0_fpn_balloon.py"
TRAIN = REPO / "tools/train_net.py"
SUBMIT = REPO / "tools/submit.py"
PATIENCE = 400.0  # seconds, because the machine may be busy


def errors(done: Finished) -> list[str]:
    """Return the lines a command wrote to stderr, without the warnings of a busy machine."""
    return [line for line in done.stderr.splitlines() if not line.startswith("still waiting")]


def until(condition: Callable[[], object], seconds: float = 200) -> None:
    """Wait for a condition.

    Raises:
        AssertionError: The condition is not met within `seconds`.
    """
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.2)


@pytest.fixture
def no_slurm(tmp_path: Path) -> dict[str, str]:
    """Return environment variables with which sbatch is not found."""
    (tmp_path / "bin").mkdir()
    for name, target in (("bash", "/bin/bash"), ("python", sys.executable)):
        (tmp_path / "bin" / name).symlink_to(target)
    return {"PATH": str(tmp_path / "bin")}


@pytest.fixture(scope="session")
def slurm() -> Iterator[dict[str, str]]:
    """Yield the environment of a user of the cluster, which has the nodes node1 and node2."""
    folder = os.environ.get("D2EXT_TEST_SLURM")
    if not folder:
        pytest.skip("needs a running Slurm, which `make test-slurm` starts (as root on Debian)")
    yield os.environ | {"SLURM_CONF": f"{folder}/etc/slurm.conf", "OMP_NUM_THREADS": "1"}


class Cluster:
    """Run commands on the cluster."""

    def __init__(self, env: dict[str, str]):
        self.env = env

    def run(self, *command: str | Path, check: bool = True) -> subprocess.CompletedProcess:
        """Run a command."""
        done = subprocess.run(
            list(map(str, command)),
            env=self.env,
            capture_output=True,
            text=True,
            timeout=PATIENCE,
        )
        assert not check or done.returncode == 0, done.stdout + done.stderr
        return done

    def submit(self, *args: str | Path, check: bool = True) -> subprocess.CompletedProcess:
        """Run tools/submit.py with the lite0 recipe."""
        command = (sys.executable, SUBMIT, "--config-file", LITE0)
        return self.run(*command, *args, check=check)

    def tool(self, *args: str | Path) -> str:
        """Return the output of `submit.py status` and similar commands."""
        return self.run(sys.executable, SUBMIT, *args).stdout

    def jobs(self) -> list[str]:
        """Return the ids of the jobs in the queue."""
        return self.run("squeue", "-h", "-r", "-o", "%i").stdout.split()

    def until(self, condition: Callable[[], object], what: str) -> None:
        """Wait for a condition.

        Raises:
            AssertionError: The condition is not met within `PATIENCE` seconds.
        """
        deadline = time.monotonic() + PATIENCE
        while not condition():
            assert time.monotonic() < deadline, f"{what}\n{self.run('squeue').stdout}"
            time.sleep(0.3)


class SlurmRun:
    """The run directory of a submitted job."""

    def __init__(self, cluster: Cluster, directory: Path):
        self.cluster, self.directory = cluster, directory

    @property
    def folder(self) -> Path:
        return max((self.directory / "slurm").iterdir())

    @property
    def job(self) -> str:
        return json.loads((self.folder / "submission.json").read_text())["job"]

    @property
    def log(self) -> str:
        submission = json.loads((self.folder / "submission.json").read_text())
        return Path(submission["log"]).read_text()

    @property
    def attempts(self) -> list[dict]:
        path = self.folder / "attempts.json"
        return json.loads(path.read_text())["attempts"] if path.exists() else []

    @property
    def outcome(self) -> dict | None:
        path = self.folder / "attempts.json"
        return json.loads(path.read_text()).get("outcome") if path.exists() else None

    def iterations(self) -> int:
        """Return the number of steps whose losses were written."""
        path = self.directory / "metrics.json"
        return len(path.read_text().splitlines()) if path.exists() else 0

    def wait_for_steps(self, start: int, more: int = 2) -> None:
        """Wait until attempt number `start` (from 1) has made `more` steps."""
        self.cluster.until(lambda: len(self.attempts) >= start, f"attempt {start} did not start")
        before = self.iterations()
        self.cluster.until(
            lambda: self.iterations() >= before + more, f"attempt {start} made no steps"
        )

    def wait_until_saved(self, start: int) -> None:
        """Wait until attempt number `start` has made steps and a checkpoint exists."""
        self.wait_for_steps(start)
        pointer = self.directory / "last_checkpoint"
        self.cluster.until(pointer.exists, f"attempt {start} wrote no checkpoint")

    def wait_for_end(self) -> dict:
        """Wait for the end of the job and return its outcome."""
        self.cluster.until(lambda: self.outcome, "the job did not end")
        return self.outcome


@pytest.fixture
def cluster(slurm: dict[str, str]) -> Iterator[Cluster]:
    """Yield the cluster, and cancel all jobs after the test."""
    cluster = Cluster(slurm)
    yield cluster
    if jobs := cluster.jobs():
        cluster.run("scancel", *jobs, check=False)
    cluster.until(lambda: not cluster.jobs(), "canceled jobs are still in the queue")


@pytest.fixture
def start(cluster: Cluster, tiny: list[str], tmp_path: Path) -> Callable[..., SlurmRun]:
    """Return a function that submits a tiny training on CPUs under a name.

    The cluster's GPUs are fake: a run that requests them fails.
    """

    def submit(
        name: str, *flags: str, partition: str = "dev", more: tuple[str, ...] = ()
    ) -> SlurmRun:
        directory = tmp_path / name
        common = ["--partition", partition, "--cpus-per-task", "2", "--work-dir", directory]
        cluster.submit(*common, *flags, *tiny, "train.device=cpu", *more)
        return SlurmRun(cluster, directory)

    return submit


@pytest.fixture(scope="session")
def without_slurm(tiny: list[str], tmp_path_factory: pytest.TempPathFactory):
    """Return a function that trains with tools/train_net.py alone, once for each set of options."""
    made: dict[tuple, Path] = {}

    def train(*args: str) -> Path:
        if args not in made:
            flags = [a for a in args if a.startswith("--") or a.isdecimal()]
            overrides = [a for a in args if a not in flags]
            out = tmp_path_factory.mktemp("reference") / "run"
            command = [sys.executable, TRAIN, "--config-file", LITE0]
            subprocess.run(
                [*command, "--work-dir", str(out), *flags, *tiny, *overrides],
                env=os.environ | {"OMP_NUM_THREADS": "1"},
                check=True,
                capture_output=True,
            )
            made[args] = out
        return made[args]

    return train


def losses(run_dir: Path) -> list[float]:
    """Return the total losses in order of iteration."""
    rows = [json.loads(line) for line in (run_dir / "metrics.json").read_text().splitlines()]
    return [row["total_loss"] for row in rows if "total_loss" in row]


def same_weights(a: Path, b: Path) -> bool:
    """Check that the final weights of two runs are equal bit for bit."""
    import torch

    one, other = (torch.load(d / "model_final.pth", weights_only=True)["model"] for d in (a, b))
    return one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)
