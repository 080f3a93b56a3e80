"""Measure start-up time and memory per process with an annotation file of COCO train's size.

    python benchmarks/coco_size.py [FILE]

coco_file.py makes FILE if it is not given (118,287 images, 860,000 objects). Each number is
measured in its own process: the first start (an empty cache), a later one, a further rank (which
iterates over all records while another process does the same) and Detectron2's `load_coco_json`
with the serialized list that its loaders make. Times exclude imports. USS is memory that no other
process shares; some of it is pages of files, which the system reclaims when necessary.
"""

import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from coco_file import make_coco
from common import machine, record

IMAGES = "train2017"
ROUNDS = 5


def _unique(kind: str = "Private") -> float:
    """Return the unique memory of this process in MB, all or of one kind."""
    with open("/proc/self/smaps_rollup") as f:
        return sum(int(line.split()[1]) for line in f if line.startswith(kind)) / 1024


def _store(file: str) -> dict:
    from d2ext.data.records.cache import cached_coco_records

    return _measured(lambda: cached_coco_records(file, IMAGES))


def _detectron2(file: str) -> dict:
    from detectron2.data import DatasetFromList
    from detectron2.data.datasets import load_coco_json

    return _measured(lambda: DatasetFromList(load_coco_json(file, IMAGES), copy=False))


def _measured(load: object) -> dict:
    """Measure seconds and MB of loading, then of iterating; wait for a line of input at the end."""
    before, start, cpu = _unique(), time.perf_counter(), time.process_time()
    records = load()
    numbers = {"seconds": time.perf_counter() - start, "cpu": time.process_time() - cpu}
    numbers["peak"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    start = time.perf_counter()
    numbers["objects"] = sum(len(record["annotations"]) for record in records)
    numbers |= {"iterate": time.perf_counter() - start, "uss": _unique() - before}
    numbers["clean"] = _unique("Private_Clean")
    print(json.dumps(numbers), flush=True)
    sys.stdin.readline()
    return numbers


def _run(what: str, file: Path, cache: str) -> tuple[subprocess.Popen, dict]:
    command = [sys.executable, __file__, str(file), what]
    environment = os.environ | {"D2EXT_CACHE": cache, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        command, env=environment, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    return process, json.loads(process.stdout.readline())


def main() -> None:
    """Print a table of each round, and record the times."""
    print(f"{machine()}; load {os.getloadavg()[0]:.1f} before")
    with tempfile.TemporaryDirectory() as folder:
        file = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(folder) / "instances.json"
        if len(sys.argv) == 1:
            make_coco(file)
        print(f"{file.stat().st_size / 1e6:.0f} MB\n")
        print("| | seconds | of the CPU | peak MB | USS MB | of the file | all records, seconds |")
        print("|---|---|---|---|---|---|---|")
        rounds = [_round(file) for _ in range(ROUNDS)]
        record("store_first", [(n[0], n[2]) for n in rounds], "s", on_photos=False)
        record("store_later", [(n[1], n[2]) for n in rounds], "s", on_photos=False)


def _round(file: Path) -> list[float]:
    """Return the seconds of a first start, a later one and Detectron2's; print their rows."""
    running, seconds = [], []
    with tempfile.TemporaryDirectory() as cache:
        for name, what in (
            ("first start", "store"),
            ("later start, further rank", "store"),
            ("Detectron2, each rank", "detectron2"),
        ):
            process, n = _run(what, file, cache)
            running.append(process)
            seconds.append(n["seconds"])
            print(
                f"| {name} | {n['seconds']:.2f} | {n['cpu']:.2f} | {n['peak']:.0f} |"
                f" {n['uss']:.0f} | {n['clean']:.0f} | {n['iterate']:.1f} |",
                flush=True,
            )
        for process in running:
            process.communicate("\n")
    return seconds


if __name__ == "__main__":
    if len(sys.argv) == 3:
        {"store": _store, "detectron2": _detectron2}[sys.argv[2]](sys.argv[1])
    else:
        main()
