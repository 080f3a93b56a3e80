"""Measure how often 95 % intervals contain the true result, on generated detections.

python benchmarks/interval_coverage.py [--trials 500] [--images 13 50 200] [--save FILE]

Photos differ in how many objects they have and how hard they are: in a hard photo, more objects
are missed, boxes are less exact, scores are lower and there are more false positives. The true
result is the metric's own on a very large sample. Each trial draws a test set and computes the
intervals of its results, and of the difference of two models on these photos, of which B is better.
"""

import numpy as np

from d2ext.evaluation.coco import CocoMetric
from d2ext.evaluation.instances import Detections, GroundTruth
from d2ext.evaluation.resampling import draw_images

TRUTH = 30_000  # photos of the sample that gives the true results
SIDE, CELL = 640, 160  # pixels; each object has a cell of the photo
MODELS = {"A": 0.0, "B": 0.5}  # how much better a model is, in standard deviations of the photos
_RARER = np.exp(-np.arange(40) / 12)
# Shares of the classes, and the results that are measured.
POPULATIONS = {
    "one class": ((1.0,), ("AP", "AP50")),
    "three classes": ((0.6, 0.3, 0.1), ("AP", "AP50", "AP-class 1", "AP-class 2")),
    "40 classes": (tuple(_RARER / _RARER.sum()), ("AP", "AP50", "AP-class 1", "AP-class 20")),
}
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
    shares: tuple[float, ...], keys: tuple[str, ...], images: int, number: int, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return the estimates (trials, 3, K) and samples (trials, 3, K, R) of A, B and B - A."""
    draws = draw_images(images)
    estimates, samples = [], []
    for trial in range(number):
        ground_truth, found = sample(images, shares, np.random.default_rng([seed, images, trial]))
        results = [METRIC(ground_truth, d) for d in found.values()]
        drawn = [METRIC.resampled(ground_truth, d, draws) for d in found.values()]
        estimates.append(_with_difference([[r[f"bbox/{k}"] for k in keys] for r in results]))
        samples.append(_with_difference([[r[f"bbox/{k}"] for k in keys] for r in drawn]))
    return np.array(estimates), np.array(samples)


def _with_difference(pair: list) -> np.ndarray:
    a, b = map(np.array, pair)
    return np.array([a, b, b - a])
