"""The project's commands: without Slurm, and on a real one that tests/slurm/run.sh has started."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.conftest import REPO

LITE0 = REPO / "configs/balloon/mask_rcnn_lite0_fpn_balloon.py"
TRAIN = REPO / "tools/train_net.py"
SUBMIT = REPO / "tools/submit.py"
PATIENCE = 400.0  # seconds; the machine may be busy with other things


def submit(*args: str | Path, env: dict[str, str] | None = None):
    """The real command."""
    return subprocess.run(
        [sys.executable, SUBMIT, *args],
        env=os.environ | {"OMP_NUM_THREADS": "1"} | (env or {}),
        capture_output=True,
        text=True,
    )


def errors(done: subprocess.CompletedProcess) -> list[str]:
    """Return what a command wrote to stderr, without the waits of a busy machine."""
    return [line for line in done.stderr.splitlines() if not line.startswith("still waiting")]


def until(condition: Callable[[], object], seconds: float = 200) -> None:
    """Waits for a condition.

    Raises:
        AssertionError: it does not come true.
    """
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.2)


@pytest.fixture
def no_slurm(tmp_path: Path) -> dict[str, str]:
    """An environment where sbatch is not found."""
    (tmp_path / "bin").mkdir()
    for name, target in (("bash", "/bin/bash"), ("python", sys.executable)):
        (tmp_path / "bin" / name).symlink_to(target)
    return {"PATH": str(tmp_path / "bin")}


@pytest.fixture(scope="session")
def slurm() -> Iterator[dict[str, str]]:
    """The environment of the cluster's users; its nodes are node1 and node2."""
    folder = os.environ.get("D2EXT_TEST_SLURM")
    if not folder:
        pytest.skip("needs a Slurm of its own: `make test-slurm`, as root on Debian, starts one")
    yield os.environ | {"SLURM_CONF": f"{folder}/etc/slurm.conf", "OMP_NUM_THREADS": "1"}


class Cluster:
    """Commands on the cluster."""

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
        """tools/submit.py with the Lite0 recipe."""
        command = (sys.executable, SUBMIT, "--config-file", LITE0)
        return self.run(*command, *args, check=check)

    def tool(self, *args: str | Path) -> str:
        """What `submit.py status` and so on say."""
        return self.run(sys.executable, SUBMIT, *args).stdout

    def jobs(self) -> list[str]:
        """Ids of the jobs in the queue."""
        return self.run("squeue", "-h", "-r", "-o", "%i").stdout.split()

    def until(self, condition: Callable[[], object], what: str) -> None:
        """Waits for a condition.

        Raises:
            AssertionError: it does not come true.
        """
        deadline = time.monotonic() + PATIENCE
        while not condition():
            assert time.monotonic() < deadline, f"{what}\n{self.run('squeue').stdout}"
            time.sleep(0.3)


class SlurmRun:
    """A run directory, while a job fills it."""

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
        """Steps whose losses were written."""
        path = self.directory / "metrics.json"
        return len(path.read_text().splitlines()) if path.exists() else 0

    def wait_for_steps(self, start: int, more: int = 2) -> None:
        """Waits until the start with this number (from 1) has made some steps."""
        self.cluster.until(lambda: len(self.attempts) >= start, f"no start {start}")
        before = self.iterations()
        self.cluster.until(lambda: self.iterations() >= before + more, f"no steps in start {start}")

    def wait_until_saved(self, start: int) -> None:
        """The same, with a checkpoint in the directory."""
        self.wait_for_steps(start)
        pointer = self.directory / "last_checkpoint"
        self.cluster.until(pointer.exists, f"no checkpoint in start {start}")

    def wait_for_end(self) -> dict:
        """Waits for the end of the job; returns its outcome."""
        self.cluster.until(lambda: self.outcome, "it does not end")
        return self.outcome


@pytest.fixture
def cluster(slurm: dict[str, str]) -> Iterator[Cluster]:
    """The cluster, which is left empty."""
    cluster = Cluster(slurm)
    yield cluster
    if jobs := cluster.jobs():
        cluster.run("scancel", *jobs, check=False)
    cluster.until(lambda: not cluster.jobs(), "jobs do not go")


@pytest.fixture
def start(cluster: Cluster, tiny: list[str], tmp_path: Path) -> Callable[..., SlurmRun]:
    """Submit a tiny training on CPUs with a name of its own; flags first, then overrides.

    The cluster's GPUs are fake: a training that asks for them ends with an error.
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
    """Run directory of the same training by tools/train_net.py alone, made once for each."""
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
    """Total losses, by iteration."""
    rows = [json.loads(line) for line in (run_dir / "metrics.json").read_text().splitlines()]
    return [row["total_loss"] for row in rows if "total_loss" in row]


def same_weights(a: Path, b: Path) -> bool:
    """Whether two runs ended with the same bits."""
    import torch

    one, other = (torch.load(d / "model_final.pth", weights_only=True)["model"] for d in (a, b))
    return one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)
