"""How ranks end without errors; failures are tested in test_signals.py and chaos.py."""

import subprocess
import sys

import pytest

from tests.conftest import checkout_env

RANKS = """
import atexit, os, sys
from pathlib import Path

import cv2
import torch
import torch.distributed as dist
from d2ext.launch.topology import find_topology
from d2ext.launch.spawn import start_ranks

class Finalized:
    def __del__(self, mkdir=os.mkdir):
        mkdir("finalized")

def work():
    global marker
    rank, marker = dist.get_rank(), Finalized()
    atexit.register(lambda: Path(f"{rank}.txt").write_text(str(dist.is_initialized())))
    Path(f"{rank}.threads").write_text(f"{torch.get_num_threads()} {cv2.getNumThreads()}")
    return 0

if __name__ == "__main__":
    Path("threads").write_text(str(torch.get_num_threads()))
    sys.exit(start_ranks(find_topology({}, num_gpus=2), work, (), 60, "cpu", Path("run")))
"""


@pytest.mark.parametrize("given", [None, pytest.param("2", marks=pytest.mark.nightly)])
def test_ranks_share_the_cores_and_do_not_finalize_python(tmp_path, given):
    """A Gloo thread that frees a tensor while Python is being finalized aborts the process."""
    (tmp_path / "ranks.py").write_text(RANKS)
    env = checkout_env()
    env.pop("OMP_NUM_THREADS", None)
    done = subprocess.run(
        [sys.executable, "ranks.py"],
        env=env | ({"OMP_NUM_THREADS": given} if given else {}),
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    threads = [(tmp_path / f"{rank}.threads").read_text().split() for rank in (0, 1)]
    before = int((tmp_path / "threads").read_text())
    share = before if given else max(before // 2, 1)
    assert [int(of_torch) for of_torch, _ in threads] == [share, share]
    assert given or [int(of_cv2) for _, of_cv2 in threads] == [share, share]
    assert [(tmp_path / f"{rank}.txt").read_text() for rank in (0, 1)] == ["False", "False"]
    assert not (tmp_path / "finalized").exists()
