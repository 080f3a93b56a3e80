"""Measure the start and the order of the images with up to a million images; store the table.

    python benchmarks/large_data.py [--images 10000 100000 1000000]

For each size, coco_file.py draws a file with 10 objects per image in the folder for temporary files
(5.2 GB for a million images, beside 4.3 GB of the store). Each number is measured in its own
process, without the time and memory of imports: the first start, with an empty cache; a later one;
and the sampler of one rank, from the store to the first batch of the second epoch. The exit status
is 3 if the largest size exceeds a limit, or the first start takes more than linear time.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
import tracemalloc
from itertools import pairwise
from pathlib import Path

from coco_file import make_coco
from common import OVER_LIMIT, keep

OBJECTS = 10  # per image
IMAGES = (10_000, 100_000, 1_000_000)
LIMITS = {"later start, s": 0.5, "sampler, s": 2, "its MB": 100}  # for the largest size
NOISE = 1.1  # the first start's time is to be linear in the number of images, up to this factor


def _start(file: str) -> dict:
    from d2ext.data.records.cache import cached_coco_records

    before = _resident()
    start, used = time.perf_counter(), resource.getrusage(resource.RUSAGE_SELF)
    records = cached_coco_records(file, "train")
    seconds, now = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_SELF)
    return {
        "images": len(records),
        "seconds": seconds,
        "user": now.ru_utime - used.ru_utime,
        "system": now.ru_stime - used.ru_stime,
        "peak": now.ru_maxrss / 1e6 - before,
    }


def _resident() -> float:
    """Return the resident memory of this process in GB."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 1e9


def _sampler(file: str) -> dict:
    from d2ext.data.loading.sampler import BatchSampler, EpochOrder
    from d2ext.data.records.cache import cached_coco_records
    from d2ext.data.records.records import columns_of

    columns = columns_of(cached_coco_records(file, "train"))

    def order() -> None:
        portrait = columns.heights > columns.widths
        sampler = BatchSampler(EpochOrder(portrait, 2, seed=0), 16, start_iter=len(portrait) // 16)
        next(iter(sampler))

    start = time.perf_counter()
    order()
    seconds = time.perf_counter() - start
    tracemalloc.start()  # slows Python down, so after the time
    order()
    return {"seconds": seconds, "peak": tracemalloc.get_traced_memory()[1] / 1e6}


def _run(what: str, file: Path, cache: str) -> dict:
    command = [sys.executable, __file__, "--measure", what, str(file)]
    environment = os.environ | {"D2EXT_CACHE": cache, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, check=True)
    return json.loads(done.stdout)


def _row(images: int) -> dict:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "instances.json"
        make_coco(file, images, OBJECTS * images)
        first, later = (_run("start", file, folder) for _ in range(2))
        sampler = _run("sampler", file, folder)
        return {
            **{"images": images, "objects": OBJECTS * images},
            "file, GB": round(file.stat().st_size / 1e9, 2),
            "first start, s": round(first["seconds"], 1),
            "its user time, s": round(first["user"], 1),
            "its system time, s": round(first["system"], 1),
            "its peak, GB": round(first["peak"], 2),
            "later start, s": round(later["seconds"], 3),
            "sampler, s": round(sampler["seconds"], 3),
            "its MB": round(sampler["peak"], 1),
        }


def main() -> int:
    """Print and store a row for each size; return 3 if a limit is exceeded."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=int, nargs="+", default=IMAGES)
    parser.add_argument("--measure", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        what, file = args.measure
        print(json.dumps({"start": _start, "sampler": _sampler}[what](file)))
        return 0
    rows = []
    for images in args.images:
        rows.append(_row(images))
        print(rows[-1], flush=True)
    keep("large data", rows)
    last = rows[-1]
    broken = [
        f"{name} {last[name]} with {last['images']} images (limit {limit})"
        for name, limit in LIMITS.items()
        if last[name] > limit
    ]
    for few, many in pairwise(rows):
        seconds, images = many["first start, s"], many["images"]
        limit = NOISE * few["first start, s"] * images / few["images"]
        if seconds > limit:
            broken.append(f"first start, s {seconds} with {images} images (limit {limit:.1f})")
    if broken:
        print(", ".join(broken))
    return OVER_LIMIT if broken else 0


if __name__ == "__main__":
    sys.exit(main())
