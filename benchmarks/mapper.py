"""Measure our mapper against Detectron2's, on the original balloon photos, on one core.

    python benchmarks/mapper.py

The augmentations of MMDetection's guide (short side 640 to 800, flips) with masks as polygons,
files in the disk cache: with all pixels decoded, with libjpeg's scaled decoding, and from the
cache.
"""

import os

os.environ["OMP_NUM_THREADS"] = "1"  # before torch

import tempfile
import time
from collections.abc import Callable

import cv2
import detectron2.data.transforms as T
import numpy as np
import torch
from common import ORIGINALS, paired, record
from detectron2.data import DatasetMapper

from d2ext.data.formats.via import read_via
from d2ext.data.loading.mapper import Mapper

ROUNDS = 5


def _mapper(kind: type, **options: object) -> Callable[[dict], dict]:
    sizes = [640, 672, 704, 736, 768, 800]
    chain = [T.ResizeShortestEdge(sizes, 1333, "choice"), T.RandomFlip(horizontal=True)]
    return kind(True, augmentations=chain, image_format="BGR", use_instance_mask=True, **options)


def main() -> None:
    """Record images per second of the three variants, each in turn with Detectron2's."""
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
    with tempfile.TemporaryDirectory() as cache:
        os.environ["D2EXT_CACHE"] = cache
        for name, options in {
            "mapper_exact": dict(),
            "mapper_scaled": dict(decode="scaled"),
            "mapper_cached": dict(cache=True),
        }.items():
            ours = _mapper(Mapper, **options)
            pairs = paired(lambda ours=ours: rate(ours), lambda: rate(theirs), ROUNDS)
            record(name, pairs, "images/s")


if __name__ == "__main__":
    main()
