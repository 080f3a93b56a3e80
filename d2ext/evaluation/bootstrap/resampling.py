"""Bootstrap intervals of results over the images of a test set. This module needs no torch.

A test set is a sample of the photos that a model will see. Drawing images from it with replacement,
and computing a result for each such draw, shows how much the result depends on which photos were
labeled (Efron & Tibshirani, An Introduction to the Bootstrap, 1993). All results use the same
draws, so that the difference of two models on a test set is their difference draw by draw.
"""

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import NormalDist
from typing import Any

import msgspec
import numpy as np

from d2ext.evaluation.instances import Detections, GroundTruth
from d2ext.files import atomic_write

RESAMPLES = 1_000
MAX_IMAGES = 1_000  # test sets up to this size get intervals without being asked
FEW_OBJECTS = 20  # a class with fewer objects has too narrow intervals
_SEED = 0
_DEVIATION = NormalDist().cdf(-1)


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
    if not images:
        return np.zeros((resamples, 0), np.int64)
    shares = np.full(images, 1 / images)
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


def interval(
    estimate: float, values: np.ndarray, images: int, lowest: float = 0.0
) -> tuple[float, float] | None:
    """Return the 95 % interval of a result, or of a difference of results.

    The ends are quantiles of the draws, at the levels of the bias-corrected percentile interval
    (DiCiccio & Efron, Bootstrap Confidence Intervals, Statistical Science 11, 1996): if most draws
    are above the estimate, the estimate is likely to be above the truth, and lower quantiles are
    taken. As the quantiles would be too close to each other for a small test set, they spread as in
    Hesterberg's expanded percentile interval (What Teachers Should Know About the Bootstrap, The
    American Statistician 69, 2015). If only some images have objects of a kind, their number
    counts; see `images_with_objects`.

    Args:
        estimate: Result on the test set itself.
        values: (R,) results of the draws.
        images: Number of images of the test set.
        lowest: Lowest possible value: 0, or -100 for a difference of results. Differences are not
            corrected, because the biases of the two results cancel out.

    Returns:
        The lower and upper end, which enclose the estimate; None if the result is undefined. With
        objects in a single image, draws tell nothing, and the ends are `lowest` and 100.
    """
    known = values[~np.isnan(values)]
    if np.isnan(estimate) or not known.size:
        return None
    size = images_with_objects(values, images)
    if size < 1.5:
        return min(lowest, estimate), max(100.0, estimate)
    below = ((known < estimate).mean() + (known <= estimate).mean()) / 2
    # Limited to one standard deviation, because both ends would meet beyond two.
    middle = NormalDist().inv_cdf(min(max(below, _DEVIATION), 1 - _DEVIATION))
    middle = 0.0 if lowest < 0 else middle
    reach = math.sqrt(size / (size - 1)) * _student_quantile(size - 1)
    levels = [NormalDist().cdf(2 * middle + step) for step in (-reach, reach)]
    low, high = np.quantile(known, levels)
    return float(min(low, estimate)), float(max(high, estimate))


def rare_classes(ground_truth: GroundTruth) -> list[str]:
    """Return the classes with 1 to `FEW_OBJECTS` - 1 objects to find; their AP is not reliable.

    AP of few objects is too high on average, and its interval too narrow: see
    `benchmarks/interval_coverage.py`. This holds for means over such classes, too.
    """
    objects = objects_by_class(ground_truth)
    return [c for c, n in zip(ground_truth.classes, objects, strict=True) if 0 < n < FEW_OBJECTS]


def objects_by_class(ground_truth: GroundTruth) -> np.ndarray:
    """Return the number of objects to find of each class: (C,) int64."""
    counted = ~(ground_truth.crowd | ground_truth.difficult | ground_truth.group_of)
    return np.bincount(ground_truth.label[counted], minlength=len(ground_truth.classes))


def images_with_objects(values: np.ndarray, images: int) -> float:
    """Return about how many images have the objects that a result is about.

    A result is undefined (NaN) in the draws without any of these images. If K of I images have
    objects, that is the case for a share of (1 - K / I) ** I of the draws. For K above 5 or so, the
    share is too small to be seen, and the number of all images is returned.

    Args:
        values: (R,) results of the draws.
        images: Number of images of the test set.
    """
    share = np.isnan(values).mean()
    return images * (1 - share ** (1 / images)) if share else images


def _student_quantile(degrees: float) -> float:
    """Return the 97.5 % quantile of Student's t (Abramowitz & Stegun, 26.7.5).

    Below 2 degrees of freedom, the series returns less than the quantile. It makes no difference,
    because the interval then reaches from the lowest to the highest draw.
    """
    z = NormalDist().inv_cdf(0.975)
    terms = (
        z,
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
    )
    return sum(term / degrees**power for power, term in enumerate(terms))


def digest(ground_truth: GroundTruth) -> str:
    """Return a digest of the images, classes and labels of a test set.

    Only what results depend on counts: not the paths of the images.
    """
    gt = ground_truth
    found = hashlib.sha256()
    lists = (gt.classes, gt.segmentations, gt.negatives, gt.not_exhaustive, gt.frequencies)
    found.update(msgspec.json.encode((list(map(str, gt.image_ids)), *lists), enc_hook=_to_list))
    arrays = (gt.image, gt.label, gt.boxes, gt.areas, gt.crowd, gt.difficult, gt.group_of)
    for column in (*arrays, *([] if gt.keypoints is None else [gt.keypoints])):
        found.update(np.ascontiguousarray(column).tobytes())
    return found.hexdigest()


def _to_list(array: Any) -> Any:
    return array.tolist()  # np.ndarray or a number of NumPy in a segmentation


def write_samples(path: Path, samples: Mapping[str, Samples]) -> None:
    """Write the samples of test sets to an .npz file.

    Raises:
        UserError: The file cannot be written.
    """
    arrays: dict[str, Any] = {}
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
