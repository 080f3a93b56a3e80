"""Freed memory is reused, and returned to the system on request."""

import platform
import subprocess
import sys
from types import SimpleNamespace

import pytest

from d2ext.heap import reuse_freed_memory

CODE = """
import resource
from pathlib import Path

from d2ext.heap import return_freed_memory, reuse_freed_memory

def pages():
    return int(Path("/proc/self/statm").read_text().split()[1])

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    b"x" * 2**26
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

first = faults()
reuse_freed_memory()
faults()
kept, second = pages(), faults()
return_freed_memory()
print(first, second, kept * resource.getpagesize() - pages() * resource.getpagesize())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc is changed")
def test_freed_memory_is_reused_until_it_is_returned():
    run = subprocess.run([sys.executable, "-c", CODE], check=True, capture_output=True, text=True)
    first, second, returned = map(int, run.stdout.split())
    assert second < first / 2
    assert returned > 2**25


@pytest.mark.parametrize(
    ("accepted", "calls"),
    [
        (2**28, [(-3, 2**28), (-1, 2**30)]),
        (2**25, [(-3, 2**28), (-3, 2**25), (-1, 2**30)]),
        (0, [(-3, 2**28), (-3, 2**25)]),
    ],
)
def test_older_glibc_accepts_smaller_blocks(monkeypatch, accepted, calls):
    """If it refuses a threshold for mmap, the other one alone would make it slower."""
    made = []

    def mallopt(option, value):
        made.append((option, value))
        return int(option == -1 or value <= accepted)

    library = SimpleNamespace(mallopt=mallopt)
    monkeypatch.setattr("d2ext.heap.ctypes", SimpleNamespace(CDLL=lambda name: library))
    reuse_freed_memory()
    assert made == calls
