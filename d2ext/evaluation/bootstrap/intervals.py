"""Intervals of the results of one model, and what they do not say."""

import math
from dataclasses import replace

import numpy as np

from d2ext.evaluation.bootstrap.resampling import (
    FEW_OBJECTS,
    MAX_IMAGES,
    Samples,
    interval,
    objects_by_class,
    rare_classes,
)
from d2ext.evaluation.instances import GroundTruth
from d2ext.text import plural, shortened

Interval = tuple[float, float]

ABOUT_INTERVALS = (
    "[low, high] is a 95 % bootstrap interval: where the number would probably be on all photos"
    " like these. It is wider the fewer photos there are, and rough below about 50 photos. If low"
    " and high are equal, all draws gave the same number, which does not make it exact. The"
    " interval does not cover the variation between seeds."
)

NO_INTERVALS = (
    f"A result has no interval if intervals were off, if the test set has more than {MAX_IMAGES:,}"
    " images (train.intervals=True), if a Detectron2 evaluator or a metric without `resampled`"
    " computed it, or if an older version of d2ext made the run."
)


def wants_intervals(images: int, intervals: bool | None, resamples: int) -> bool:
    """Return whether to compute intervals of a test set.

    Args:
        images: Number of images of the test set.
        intervals: True or False; None for test sets of up to 1,000 images.
        resamples: Number of draws.
    """
    wanted = images <= MAX_IMAGES if intervals is None else intervals
    return wanted and images > 0 and resamples > 0


def rare_classes_note(ground_truth: GroundTruth) -> str:
    """Return how classes with few objects bias AP and its intervals; "" if there are none."""
    if not (rare := rare_classes(ground_truth)):
        return ""
    known = int(np.count_nonzero(objects_by_class(ground_truth)))
    have = "has" if len(rare) == 1 else "have"
    return (
        f"{len(rare)} of {plural(known, 'class')} {have} fewer than {FEW_OBJECTS} objects"
        f" ({shortened(rare, 5)}): AP there and over all classes is probably too high, and its"
        " interval too narrow"
    )


def intervals(samples: Samples) -> dict[str, Interval | None]:
    """Return the interval of each result that has samples; None if the result is undefined."""
    found = {}
    for key, values in samples.values.items():
        ends = interval(samples.estimates[key], values, samples.images)
        found[key] = ends if ends and all(map(math.isfinite, ends)) else None
    return found


def without_classes(samples: Samples) -> Samples:
    """Return the samples without those of single classes, `<metric>/<task>/<name>-<class>`."""
    values = {k: v for k, v in samples.values.items() if "-" not in k.split("/", 2)[-1]}
    return replace(samples, estimates={k: samples.estimates[k] for k in values}, values=values)
