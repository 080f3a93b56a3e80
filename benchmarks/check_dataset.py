"""Measure tools/check_dataset.py on a COCO-size file, without images.

python benchmarks/check_dataset.py [IMAGES OBJECTS]

The alternative is Python's own json, which only reads the file.
"""

import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from coco_file import IMAGES, OBJECTS, make_coco
from common import record

ROOT = Path(__file__).resolve().parent.parent
ROUNDS = 5


def _seconds(command: list) -> float:
    """Return the seconds that a command takes, without its output."""
    start = time.perf_counter()
    subprocess.run(command, cwd=ROOT, stdout=subprocess.DEVNULL, check=True)
    return time.perf_counter() - start


def main() -> None:
    """Run both in turn."""
    images, objects = map(int, sys.argv[1:3]) if len(sys.argv) > 2 else (IMAGES, OBJECTS)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "coco.json"
        make_coco(path, images, objects)
        size = path.stat().st_size / 1e6
        check = [sys.executable, "tools/check_dataset.py", path]
        load = [sys.executable, "-c", f"import json; json.load(open({str(path)!r}))"]
        pairs = [(_seconds(check), _seconds(load)) for _ in range(ROUNDS)]
    print(f"{images} images, {objects} objects, {size:.0f} MB")
    record("check_dataset", pairs, "s", on_photos=False)
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1e6
    print(f"peak memory of these {peak:.1f} GB")


if __name__ == "__main__":
    main()
