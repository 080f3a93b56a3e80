"""How ranks end that all went well; the ways in which they fail are in test_signals and chaos."""

import subprocess
import sys

from tests.conftest import checkout_env

RANKS = """
import atexit, os, sys
from pathlib import Path

import torch.distributed as dist
from d2ext.launch.topology import find_topology
from d2ext.launch.spawn import start_ranks

class Told:
    def __del__(self, mkdir=os.mkdir):
        mkdir("finalised")

def work():
    global told
    rank, told = dist.get_rank(), Told()
    atexit.register(lambda: Path(f"{rank}.txt").write_text(str(dist.is_initialized())))
    return 0

if __name__ == "__main__":
    sys.exit(start_ranks(find_topology({}, num_gpus=2), work, (), 60, "cpu", Path("run")))
"""


def test_ranks_call_what_is_to_be_called_at_exit_but_do_not_finalise_python(tmp_path):
    """A thread of Gloo's that drops a tensor while Python is finalised aborts the process."""
    (tmp_path / "ranks.py").write_text(RANKS)
    done = subprocess.run(
        [sys.executable, "ranks.py"],
        env=checkout_env(),
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert [(tmp_path / f"{rank}.txt").read_text() for rank in (0, 1)] == ["False", "False"]
    assert not (tmp_path / "finalised").exists()
