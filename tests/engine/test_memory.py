"""Memory that is freed and taken again costs page faults, unless it is kept."""

import subprocess
import sys

FAULTS = """
import resource, sys
import torch
from d2ext.engine.memory import keep_freed_memory
if sys.argv[1] == "keep":
    assert keep_freed_memory()
for _ in range(2):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones(16, 2**20)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def test_freed_memory_is_kept(repo):
    faults = {}
    for how in ("keep", "default"):
        done = subprocess.run(
            [sys.executable, "-W", "ignore", "-c", FAULTS, how],
            cwd=repo,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        faults[how] = int(done.stdout)
    assert faults["keep"] < 100 < faults["default"]
