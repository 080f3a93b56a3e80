"""Measure how often 95 % intervals contain the true result, on generated detections.

python benchmarks/interval_coverage.py [--trials 500] [--images 13 50 200]

Photos differ in how many objects they have and how hard they are: in a hard photo, more objects
are missed, boxes are less exact, scores are lower and there are more false positives. The true
result is the metric's own on a very large sample. Each trial draws a test set and computes the
intervals of its results, and of the difference of two models on these photos, of which B is better.
"""

import argparse
import sys

import numpy as np
from common import OVER_LIMIT, keep

from d2ext.evaluation.bootstrap.resampling import draw_images, interval
from d2ext.evaluation.coco import CocoMetric
from d2ext.evaluation.instances import Detections, GroundTruth

TRUTH, TRUTH_SEED = 30_000, 12_345  # photos of the sample that gives the true results
SIDE, CELL = 640, 160  # pixels; each object has a cell of the photo
MODELS = {"A": 0.0, "B": 0.5}  # how much better a model is, in standard deviations of the photos
_RARER = np.exp(-np.arange(40) / 12)
# Shares of the classes, and the results that are measured.
POPULATIONS = {
    "one class": ((1.0,), ("AP", "AP50")),
    "three classes": ((0.6, 0.3, 0.1), ("AP", "AP50", "AP-class 1", "AP-class 2")),
    "40 classes": (tuple(_RARER / _RARER.sum()), ("AP", "AP50", "AP-class 1", "AP-class 20")),
}
CHECKED = ("one class", "three classes")  # 92 to 98 % at 200 photos
METRIC = CocoMetric(["bbox"])


def sample(
    images: int, shares: tuple[float, ...], rng: np.random.Generator
) -> tuple[GroundTruth, dict[str, Detections]]:
    """Return photos and the detections of each model."""
    classes = len(shares)
    hardness = rng.normal(size=images)
    number = np.minimum(1 + rng.poisson(rng.gamma(1.5, 1.5, images)), (SIDE // CELL) ** 2)
    image = np.repeat(np.arange(images), number)
    cell = np.concatenate([rng.permutation((SIDE // CELL) ** 2)[:n] for n in number])
    size = CELL * rng.uniform(0.1, 0.7, (len(image), 1)) * rng.uniform(0.8, 1.25, (len(image), 2))
    corner = np.column_stack(np.divmod(cell, SIDE // CELL)) * CELL + CELL / 8
    boxes = np.column_stack([corner, size])
    label = rng.choice(classes, len(image), p=shares)
    nothing = np.zeros(len(image), bool)
    ids = np.arange(images)
    sides = np.full(images, SIDE)
    ground_truth = GroundTruth(
        *(ids, ids.astype(str), sides, sides, [f"class {c}" for c in range(classes)]),
        *(image, label, boxes, size.prod(axis=1), nothing, nothing, nothing, None),
    )
    # What the models share: they miss similar objects, but their boxes and errors are their own.
    luck = rng.normal(size=len(image))
    return ground_truth, {
        name: _detections(ground_truth, hardness - better, luck, rng)
        for name, better in MODELS.items()
    }


def _detections(
    ground_truth: GroundTruth, hardness: np.ndarray, luck: np.ndarray, rng: np.random.Generator
) -> Detections:
    hard = hardness[ground_truth.image]
    quality = 1.3 - 0.8 * hard + luck + 0.5 * rng.normal(size=len(luck))
    found = np.flatnonzero(quality > 0)
    size = ground_truth.boxes[found, 2:]
    shift = 0.06 * np.exp(0.35 * hard[found, None]) * rng.normal(size=(len(found), 4))
    boxes = ground_truth.boxes[found] + shift * np.tile(size, 2)
    scores = quality[found] - 0.5 + 0.7 * rng.normal(size=len(found))
    # False positives lie where no object can be.
    errors = rng.poisson(0.8 * np.exp(0.6 * hardness))
    image = np.repeat(np.arange(len(hardness)), errors)
    places = np.column_stack(
        [rng.uniform(SIDE, 2 * SIDE, (len(image), 2)), np.full((len(image), 2), 50)]
    )
    label = rng.choice(ground_truth.label, len(image))
    wrong = -0.6 + rng.normal(size=len(image))
    logits = np.concatenate([scores, wrong])
    return Detections(
        np.concatenate([ground_truth.image[found], image]),
        np.concatenate([ground_truth.label[found], label]),
        np.concatenate([boxes, places]),
        1 / (1 + np.exp(-logits)),
        None,
    )


def trials(
    shares: tuple[float, ...], keys: tuple[str, ...], images: int, number: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return the estimates (trials, 3, K) and samples (trials, 3, K, R) of A, B and B - A."""
    draws = draw_images(images)
    estimates, samples = [], []
    for trial in range(number):
        ground_truth, found = sample(images, shares, np.random.default_rng([0, images, trial]))
        results = [METRIC(ground_truth, d) for d in found.values()]
        drawn = [METRIC.resampled(ground_truth, d, draws) for d in found.values()]
        estimates.append(_with_difference(results, keys))
        samples.append(_with_difference(drawn, keys).astype(np.float32))
    return np.array(estimates), np.array(samples)


def true_results(shares: tuple[float, ...], keys: tuple[str, ...]) -> np.ndarray:
    """Return the results (3, K) of A, B and B - A on a very large sample."""
    ground_truth, found = sample(TRUTH, shares, np.random.default_rng(TRUTH_SEED))
    return _with_difference([METRIC(ground_truth, d) for d in found.values()], keys)


def _with_difference(results: list[dict], keys: tuple[str, ...]) -> np.ndarray:
    a, b = (np.array([result[f"bbox/{key}"] for key in keys]) for result in results)
    return np.array([a, b, b - a])


def coverage(
    name: str, images: int, truth: np.ndarray, estimates: np.ndarray, samples: np.ndarray
) -> list[dict]:
    """Return a row for each result: how often intervals contain the truth, in percent.

    Args:
        name: Name of the population.
        images: Number of photos of a test set.
        truth: (3, K) true results.
        estimates: (trials, 3, K) results of the test sets.
        samples: (trials, 3, K, R) results of the draws.
    """
    rows = []
    for k, key in enumerate(POPULATIONS[name][1]):
        row: dict = {"population": name, "photos": images, "result": key}
        row |= {"trials": len(estimates), "true AP": round(float(truth[0, k]), 1)}
        # Without the result where no photo has an object of the class.
        known = ~np.isnan(estimates[:, 0, k])
        bias = estimates[known, 0, k].mean() - truth[0, k]
        row["mean error"] = round(float(bias), 1)
        for kind, ends_of in (("plain", _plain), ("widened", _widened)):
            for i, model in enumerate((*MODELS, "B - A")):
                ends = np.array(
                    [
                        ends_of(e, values, images, -100.0 if i == 2 else 0.0)
                        for e, values in zip(
                            estimates[known, i, k], samples[known, i, k], strict=True
                        )
                    ]
                )
                inside = (ends[:, 0] <= truth[i, k]) & (truth[i, k] <= ends[:, 1])
                row[f"{kind} {model}"] = round(100 * float(inside.mean()), 1)
        rows.append(row)
        print(row, flush=True)
    return rows


def _plain(estimate: float, values: np.ndarray, images: int, lowest: float) -> tuple:
    return tuple(np.nanquantile(values, [0.025, 0.975]))


def _widened(estimate: float, values: np.ndarray, images: int, lowest: float) -> tuple:
    return interval(estimate, values.astype(np.float64), images, lowest) or (np.nan, np.nan)


def main() -> int:
    """Measure all populations and store the table; return 3 if coverage at 200 photos is off."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--trials", type=int, default=500)
    parser.add_argument("--images", type=int, nargs="+", default=[13, 50, 200])
    args = parser.parse_args()
    rows = []
    for name, (shares, keys) in POPULATIONS.items():
        truth = true_results(shares, keys)
        for images in args.images:
            rows += coverage(name, images, truth, *trials(shares, keys, images, args.trials))
    keep("coverage", rows)
    checked = [r for r in rows if r["photos"] == 200 and r["population"] in CHECKED]
    values = [v for r in checked for k, v in r.items() if k.startswith("widened")]
    if off := [v for v in values if not 92 <= v <= 98]:
        print(f"coverage at 200 photos is not 92 to 98 %: {off}")
    return OVER_LIMIT if off else 0


if __name__ == "__main__":
    sys.exit(main())
