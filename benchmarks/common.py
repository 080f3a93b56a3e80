"""What every benchmark prints: where and when its numbers were taken."""

import datetime
import os
import platform
from importlib.metadata import version


def machine() -> str:
    """One line: CPU, cores, Python, torch and the date."""
    with open("/proc/cpuinfo") as f:
        names = [line.partition(":")[2].strip() for line in f if line.startswith("model name")]
    cpu = names[0] if names else platform.processor() or platform.machine()
    cores = len(os.sched_getaffinity(0))
    return (
        f"{cpu}, {cores} cores, Python {platform.python_version()}, torch {version('torch')},"
        f" {datetime.date.today().isoformat()}"
    )
