"""Bootstrap intervals of results over the images of a test set. This module needs no torch.

A test set is a sample of the photos that a model will see. Drawing images from it with replacement,
and computing a result for each such draw, shows how much the result depends on which photos were
labeled (Efron & Tibshirani, An Introduction to the Bootstrap, 1993). All results use the same
draws, so that the difference of two models on a test set is their difference draw by draw.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from d2ext.evaluation.instances import Detections, GroundTruth
from d2ext.files import atomic_write

RESAMPLES = 1_000
MAX_IMAGES = 1_000  # test sets up to this size get intervals without being asked
_SEED = 0


@dataclass(frozen=True)
class Samples:
    """Results of R draws of the images of a test set.

    Attributes:
        images: Number of images of the test set.
        ground_truth: Digest of its images and objects; draws of equal digests can be paired.
        estimates: Results on the test set itself, by key.
        values: (R,) float64 results of the draws by key; NaN where a result is undefined.
    """

    images: int
    ground_truth: str
    estimates: dict[str, float]
    values: dict[str, np.ndarray]


def draw_images(images: int, resamples: int = RESAMPLES) -> np.ndarray:
    """Return how often each draw contains each image: (resamples, images) int64, always the same.

    Args:
        images: Number of images of the test set.
        resamples: Number of draws; each draws as many images as the test set has.
    """
    shares = np.full(images, 1 / max(images, 1))
    return np.random.default_rng(_SEED).multinomial(images, shares, size=resamples)


def resample(
    metrics: Mapping[str, Any],
    ground_truth: GroundTruth,
    detections: Detections,
    results: Mapping[str, float],
    resamples: int = RESAMPLES,
) -> Samples:
    """Compute the results of metrics for many draws of the images.

    Args:
        metrics: Metrics by name; those without a method `resampled` have no samples.
        ground_truth: Ground truth of the test set.
        detections: Detections in its images.
        results: Results of the metrics on the test set, by `<metric>/<task>/<name>`.
        resamples: Number of draws.

    Returns:
        Samples by the keys of `results`.
    """
    draws = draw_images(len(ground_truth.image_ids), resamples)
    values = {
        f"{name}/{key}": np.asarray(found, np.float64)
        for name, metric in metrics.items()
        if hasattr(metric, "resampled")
        for key, found in metric.resampled(ground_truth, detections, draws).items()
    }
    estimates = {key: results[key] for key in values}
    return Samples(len(ground_truth.image_ids), digest(ground_truth), estimates, values)


def interval(estimate: float, values: np.ndarray, images: int) -> tuple[float, float] | None:
    """Return the 95 % interval of a result, or of a difference of results.

    Args:
        estimate: Result on the test set itself.
        values: (R,) results of the draws.
        images: Number of images of the test set.

    Returns:
        The lower and upper end, which enclose the estimate; None if the result is undefined.
    """
    known = values[~np.isnan(values)]
    if np.isnan(estimate) or not known.size:
        return None
    low, high = np.quantile(known, [0.025, 0.975])
    return float(min(low, estimate)), float(max(high, estimate))


def digest(ground_truth: GroundTruth) -> str:
    """Return a digest of the images, classes and objects of a test set."""
    found = hashlib.sha256()
    found.update(repr((list(map(str, ground_truth.image_ids)), ground_truth.classes)).encode())
    for column in (ground_truth.image, ground_truth.label, ground_truth.boxes):
        found.update(np.ascontiguousarray(column).tobytes())
    return found.hexdigest()


def write_samples(path: Path, samples: Mapping[str, Samples]) -> None:
    """Write the samples of test sets to an .npz file.

    Raises:
        UserError: The file cannot be written.
    """
    arrays: dict[str, np.ndarray] = {}
    for dataset, of in samples.items():
        keys = list(of.values)
        arrays[f"{dataset}/keys"] = np.array(keys)
        arrays[f"{dataset}/estimates"] = np.array([of.estimates[key] for key in keys])
        arrays[f"{dataset}/values"] = np.array([of.values[key] for key in keys], np.float32)
        arrays[f"{dataset}/test_set"] = np.array([str(of.images), of.ground_truth])
    with atomic_write(path, "wb") as f:
        np.savez_compressed(f, **arrays)


def read_samples(path: Path) -> dict[str, Samples]:
    """Read a file of `write_samples`: samples by dataset.

    Raises:
        OSError: The file cannot be read.
        ValueError: The file is damaged.
    """
    with np.load(path, allow_pickle=False) as arrays:
        found = {}
        for dataset in [name.removesuffix("/keys") for name in arrays if name.endswith("/keys")]:
            keys = arrays[f"{dataset}/keys"].tolist()
            estimates = dict(zip(keys, arrays[f"{dataset}/estimates"].tolist(), strict=True))
            rows = arrays[f"{dataset}/values"].astype(np.float64)
            images, ground_truth = arrays[f"{dataset}/test_set"].tolist()
            values = dict(zip(keys, rows, strict=True))
            found[dataset] = Samples(int(images), ground_truth, estimates, values)
    return found
