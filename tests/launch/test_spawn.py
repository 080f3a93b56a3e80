"""How ranks end without errors; failures are tested in test_signals.py and chaos.py."""

import subprocess
import sys

from tests.conftest import checkout_env

RANKS = """
import atexit, os, sys
from pathlib import Path

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
    return 0

if __name__ == "__main__":
    sys.exit(start_ranks(find_topology({}, num_gpus=2), work, (), 60, "cpu", Path("run")))
"""


def test_ranks_call_exit_functions_but_do_not_finalize_python(tmp_path):
    """A Gloo thread that frees a tensor while Python is being finalized aborts the process."""
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
    assert not (tmp_path / "finalized").exists()
