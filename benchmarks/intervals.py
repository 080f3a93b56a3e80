"""Measure the time and memory of intervals: COCO's boxes and masks, 1,000 draws of the images.

python benchmarks/intervals.py [IMAGES DETECTIONS]

The files are those of evaluation.py. Each size is measured with 80 classes, and with a single class
for all objects and detections. The limit for 1,000 images and 100,000 detections is checked: the
exit status is 3 if it is exceeded.
"""

import dataclasses
import resource
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from coco_file import make_coco
from common import OVER_LIMIT, keep
from results_file import make_results

from d2ext.evaluation.bootstrap.resampling import RESAMPLES, draw_images
from d2ext.evaluation.coco import CocoMetric
from d2ext.evaluation.dataset_file import read_dataset
from d2ext.evaluation.results_file import read_results, to_detections

SIZES = [(1_000, 100_000), (5_000, 500_000)]
LIMIT = 10  # seconds, for the first size


def _measure(images: int, detections: int, folder: Path) -> list[dict]:
    annotations, results = folder / "annotations.json", folder / "results.json"
    make_coco(annotations, images, 36 * images // 5)
    make_results(annotations, results, detections)
    dataset = read_dataset(annotations, with_masks=True)
    found = to_detections(results, read_results(results), dataset)
    rows = []
    for classes in (len(dataset.ground_truth.classes), 1):
        ground_truth = dataset.ground_truth
        if classes == 1:
            ground_truth = dataclasses.replace(
                ground_truth, classes=["object"], label=np.zeros_like(ground_truth.label)
            )
            found = dataclasses.replace(found, label=np.zeros_like(found.label))
        cpu = time.process_time()
        CocoMetric().resampled(ground_truth, found, draw_images(images, RESAMPLES))
        rows.append(
            {
                **{"images": images, "detections": detections, "classes": classes},
                "CPU seconds": round(time.process_time() - cpu, 1),
                # Of the process so far, so that only a row with a new peak is exact.
                "peak GB": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6, 2),
            }
        )
        print(rows[-1], flush=True)
    return rows


def main() -> int:
    """Measure all sizes; return 3 if the limit is exceeded, otherwise 0."""
    asked = [tuple(map(int, sys.argv[1:3]))] if sys.argv[1:] else SIZES
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for images, detections in asked:
            rows += _measure(images, detections, Path(folder))
    if asked == SIZES:
        keep("seconds", rows)
    slow = [r for r in rows if r["images"] == SIZES[0][0] and r["CPU seconds"] > LIMIT]
    if slow:
        print(f"more than {LIMIT} s of CPU time for {SIZES[0][0]} images")
    return OVER_LIMIT if slow else 0


if __name__ == "__main__":
    sys.exit(main())
