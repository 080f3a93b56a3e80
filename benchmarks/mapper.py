"""Measure our mapper against Detectron2's, on the original balloon photos, on one core.

    python benchmarks/mapper.py

The augmentations of MMDetection's guide (short side 640 to 800, flips) with masks as polygons,
files in the disk cache: with all pixels decoded, with libjpeg's scaled decoding, and from the
cache. The table of floors says how much of the mapper's time is the reading of the photos (decoding
the JPEG, or opening the cached pixels), which nothing that follows can make faster.
"""

import os

os.environ["OMP_NUM_THREADS"] = "1"  # before torch

import statistics
import tempfile
import time
from collections.abc import Callable

import cv2
import detectron2.data.transforms as T
import numpy as np
import torch
from common import ORIGINALS, keep, paired, record
from detectron2.data import DatasetMapper

from d2ext.data.formats.via import read_via
from d2ext.data.loading import mapper as mapper_module
from d2ext.data.loading.mapper import Mapper

ROUNDS = 5


def _mapper(kind: type, **options: object) -> Callable[[dict], dict]:
    sizes = [640, 672, 704, 736, 768, 800]
    chain = [T.ResizeShortestEdge(sizes, 1333, "choice"), T.RandomFlip(horizontal=True)]
    return kind(True, augmentations=chain, image_format="BGR", use_instance_mask=True, **options)


class _Timed:
    """A function that sums up the seconds of its calls."""

    def __init__(self, function: Callable):
        self.function, self.seconds = function, 0.0

    def __call__(self, *arguments: object) -> object:
        start = time.perf_counter()
        result = self.function(*arguments)
        self.seconds += time.perf_counter() - start
        return result


def main() -> None:
    """Record images per second of the three variants, in turn with Detectron2's, and the floors."""
    folder = ORIGINALS / "balloon/train"
    records = read_via(folder / "via_region_data.json", folder, ["balloon"])
    torch.set_num_threads(1)
    cv2.setNumThreads(1)

    def rate(mapper: Callable[[dict], dict]) -> float:
        np.random.seed(0)
        start = time.perf_counter()
        for each in records:
            mapper(each)
        return len(records) / (time.perf_counter() - start)

    theirs = _mapper(DatasetMapper)
    floors = []
    with tempfile.TemporaryDirectory() as cache:
        os.environ["D2EXT_CACHE"] = cache
        for name, options in {
            "mapper_exact": dict(),
            "mapper_scaled": dict(decode="scaled"),
            "mapper_cached": dict(cache=True),
        }.items():
            reader = "cached_photo" if "cache" in options else "read_photo"
            reading = _Timed(getattr(mapper_module, reader))
            setattr(mapper_module, reader, reading)
            ours = _mapper(Mapper, **options)
            spent: list[float] = []

            def measured(
                ours: Callable = ours, reading: _Timed = reading, spent: list[float] = spent
            ) -> float:
                reading.seconds = 0
                speed = rate(ours)
                spent.append(reading.seconds / len(records))
                return speed

            pairs = paired(measured, lambda: rate(theirs), ROUNDS)
            setattr(mapper_module, reader, reading.function)
            record(name, pairs, "images/s")
            whole, alternative = (1000 / statistics.median(c) for c in zip(*pairs, strict=True))
            read = 1000 * statistics.median(spent[1:])
            floors.append(
                {
                    "variant": f"`{name}`",
                    "reading, ms": round(read, 2),
                    "mapper, ms": round(whole, 2),
                    "DatasetMapper, ms": round(alternative, 2),
                    "ratio": round(alternative / whole, 2),
                    "at most": round(alternative / read, 2),
                }
            )
            print(floors[-1], flush=True)
    keep("mapper floor", floors)


if __name__ == "__main__":
    main()
