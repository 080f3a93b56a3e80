"""Measure the order of COCO train's images: seconds to start late in a run, ms per batch.

python benchmarks/sampler.py
"""

import itertools
import statistics
import time

import numpy as np
from common import machine

from d2ext.data.loading.sampler import BatchSampler, EpochOrder

IMAGES, BATCH, START = 118_287, 16, 90_000


def main() -> None:
    """Print the time of the first batch at iteration 90,000 and of the batches after it."""
    portrait = np.random.default_rng(0).random(IMAGES) < 0.3
    start = time.perf_counter()
    batches = iter(BatchSampler(EpochOrder(portrait, 2, seed=0), BATCH, start_iter=START))
    next(batches)
    first = time.perf_counter() - start
    seconds = []
    for _ in range(2000):
        start = time.perf_counter()
        next(batches)
        seconds.append(time.perf_counter() - start)
    epoch = itertools.takewhile(lambda s: s < 0.05, seconds)
    print(machine())
    print(
        f"{IMAGES} images, batch {BATCH}: first batch at iteration {START} after {first:.3f} s;"
        f" then {1000 * statistics.median(epoch):.3f} ms a batch (median)"
    )


if __name__ == "__main__":
    main()
