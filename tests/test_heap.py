"""Freed memory is reused, and returned to the system on request."""

import platform
import subprocess
import sys

import pytest

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
