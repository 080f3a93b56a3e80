"""How long tools/check_dataset.py takes for a file of COCO's size, without images, on one core.

python benchmarks/check_dataset.py [IMAGES OBJECTS]

Beside it: what Python's own json needs only to read the file.
"""

import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from coco_file import IMAGES, OBJECTS, make_coco
from common import machine

ROOT = Path(__file__).resolve().parent.parent
ROUNDS = 3


def _measure(command: list) -> tuple[float, float]:
    """Wall and CPU seconds; what the command prints is thrown away."""
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run(command, cwd=ROOT, stdout=subprocess.DEVNULL, check=True)
    wall = time.perf_counter() - start
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> None:
    """Prints the best of three of each, in turn."""
    images, objects = map(int, sys.argv[1:3]) if len(sys.argv) > 2 else (IMAGES, OBJECTS)
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "coco.json"
        make_coco(path, images, objects)
        size = path.stat().st_size / 1e6
        commands = {
            "check_dataset.py": [sys.executable, "tools/check_dataset.py", path],
            "json.load": [sys.executable, "-c", f"import json; json.load(open({str(path)!r}))"],
        }
        taken = {name: [] for name in commands}
        for _ in range(ROUNDS):
            for name, command in commands.items():
                taken[name].append(_measure(command))
    print(machine())
    print(f"{images} images, {objects} objects, {size:.0f} MB, one core")
    for name, times in taken.items():
        wall, cpu = (min(column) for column in zip(*times, strict=True))
        print(f"{name}: {wall:.1f} s, CPU {cpu:.1f} s")
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1e6
    print(f"peak memory of these {peak:.1f} GB")


if __name__ == "__main__":
    main()
