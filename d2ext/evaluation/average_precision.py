"""Average precision as Pascal VOC defines it, over a whole dataset at once.

As in the VOC development kit, VOCevaldet.m (Everingham et al., The Pascal Visual Object Classes
Challenge, IJCV 88, 2010): each detection, highest score first, is assigned the object of its image
and class with the largest overlap. If the overlap reaches the threshold, the detection is a hit,
unless the object was hit before. Unlike in COCO's matching, the assignment does not depend on the
other detections, so no loop over detections is needed.
"""

from collections.abc import Iterable, Iterator

import numpy as np

from d2ext.evaluation.bootstrap.draws import Matches
from d2ext.evaluation.instances import Detections, GroundTruth

_PAIRS = 1 << 20  # pairs of a detection and an object compared at a time: about 100 MB


def average_precision(
    ground_truth: GroundTruth,
    detections: Detections,
    thresholds: list[float],
    ignored: np.ndarray,
    group_of: np.ndarray,
    eleven_points: bool = False,
) -> np.ndarray:
    """Return the AP of each class at each threshold.

    Detections of equal score keep their order; if two objects overlap a detection equally, the
    first one counts. A box without area overlaps nothing.

    Args:
        ground_truth: Ground truth of the dataset.
        detections: Detections, any number per image; boxes may extend beyond the image.
        thresholds: T IoU thresholds above 0, up to 1; an IoU equal to the threshold is a hit.
        ignored: (N,) bool, objects that need not be found; detections that hit them are ignored.
        group_of: (N,) bool, groups. Detections that miss all single objects are compared with the
            groups, by the fraction of the detection inside the group. The best of those that reach
            the threshold is a hit, the others are ignored.
        eleven_points: Return the mean of the precisions at recalls 0, 0.1, ..., 1 (VOC until 2009)
            instead of the area under the curve (since 2010). The precision at a recall is the
            highest at this or any higher recall.

    Returns:
        (T, C) float64 from 0 to 1; NaN for a class without objects.
    """
    result = np.full((len(thresholds), len(ground_truth.classes)), np.nan)
    for c, found in enumerate(voc_matches(ground_truth, detections, thresholds, ignored, group_of)):
        wanted = len(found.objects)
        for t in range(len(thresholds) if wanted else 0):
            result[t, c] = _one_class(found.hit[t], ~found.counted[t], wanted, eleven_points)
    return result


def voc_matches(
    ground_truth: GroundTruth,
    detections: Detections,
    thresholds: list[float],
    ignored: np.ndarray,
    group_of: np.ndarray,
) -> Iterator[Matches]:
    """For each class, yield the matches that `average_precision` counts, for the same arguments."""
    order = np.lexsort((-detections.scores, detections.label))  # stable
    label, boxes = detections.label[order], _corners(detections.boxes[order])
    image = detections.image[order]
    group = image * len(ground_truth.classes) + label
    single, groups = (
        _nearest(ground_truth, np.flatnonzero(kind), group, boxes, inside)
        for kind, inside in ((~group_of, False), (group_of, True))
    )
    hit, free = np.zeros((2, len(thresholds), len(label)), dtype=bool)
    for t, threshold in enumerate(thresholds):
        _match(*single, threshold, ignored, hit[t], free[t])
        missed = ~(hit[t] | free[t])
        _match(np.where(missed, groups[0], 0), groups[1], threshold, ignored, hit[t], free[t], True)
    ends = np.searchsorted(label, np.arange(len(ground_truth.classes) + 1))
    rank = np.zeros(len(label), np.int64)  # VOC does not limit the number of detections
    for c in range(len(ground_truth.classes)):
        rows = slice(ends[c], ends[c + 1])
        objects = ground_truth.image[~ignored & (ground_truth.label == c)]
        yield Matches(image[rows], hit[:, rows], ~free[:, rows], objects, rank[rows])


def sampled_precision(
    matches: Iterable[Matches], draws: np.ndarray, eleven_points: bool = False
) -> np.ndarray:
    """Return the result of `average_precision` for draws of the images.

    Args:
        matches: Matches of C classes at T thresholds.
        draws: (R, I) how often each draw contains each image.
        eleven_points: As in `average_precision`.

    Returns:
        (T, C, R) float64 from 0 to 1; NaN where a draw has no objects of a class.
    """
    levels = _eleven_levels if eleven_points else np.divide
    draws = draws.astype(np.int32)
    return np.stack([found.average_precision(draws, levels) for found in matches], axis=1)


def _eleven_levels(found: np.ndarray, objects: np.ndarray) -> np.ndarray:
    """Return the fraction of the recalls 0, 0.1, ..., 1 that are reached by a hit."""
    return ((found > 0) + 10 * found // objects) / 11


def _corners(boxes: np.ndarray) -> np.ndarray:
    return np.hstack([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]])


def _nearest(
    ground_truth: GroundTruth,
    objects: np.ndarray,
    group: np.ndarray,
    boxes: np.ndarray,
    inside: bool,
) -> tuple[np.ndarray, np.ndarray]:
    """Return the object that each detection overlaps most.

    Args:
        ground_truth: Ground truth of the dataset.
        objects: Indices of the objects to consider.
        group: (M,) int64, image and class of each detection as one number.
        boxes: (M, 4) boxes as x0, y0, x1, y1.
        inside: Measure overlap by the fraction of the detection inside the object instead of IoU.

    Returns:
        (M,) float64, the overlaps (0 without an object), and (M,) int64, the objects' indices.
    """
    theirs = ground_truth.image[objects] * len(ground_truth.classes) + ground_truth.label[objects]
    objects = objects[np.argsort(theirs, kind="stable")]
    theirs = np.sort(theirs)
    first = np.searchsorted(theirs, group)
    count = np.searchsorted(theirs, group, side="right") - first
    overlap, nearest = np.zeros(len(group)), np.zeros(len(group), dtype=np.int64)
    rows = np.flatnonzero(count)
    stop = np.cumsum(count[rows])
    ground_truth_boxes = _corners(ground_truth.boxes)
    done = 0
    while done < len(rows):
        base = stop[done - 1] if done else 0
        until = max(done + 1, int(np.searchsorted(stop, base + _PAIRS, side="right")))
        part = rows[done:until]
        begin = stop[done:until] - count[part] - base  # first pair of each detection
        pair = np.arange(stop[until - 1] - base)
        of = objects[np.repeat(first[part] - begin, count[part]) + pair]
        values = _overlaps(
            np.repeat(boxes[part], count[part], axis=0), ground_truth_boxes[of], inside
        )
        best = np.maximum.reduceat(values, begin)
        # The first of several equal overlaps must win, so they are written in reverse order.
        top = np.flatnonzero(values == np.repeat(best, count[part]))[::-1]
        overlap[part] = best
        nearest[np.repeat(part, count[part])[top]] = of[top]
        done = until
    return overlap, nearest


def _overlaps(a: np.ndarray, b: np.ndarray, inside: bool) -> np.ndarray:
    """Return the (P,) IoUs of (P, 4) boxes as corners, or the fractions of `a` inside `b`."""
    sides = np.minimum(a[:, 2:], b[:, 2:]) - np.maximum(a[:, :2], b[:, :2])
    common = np.where((sides > 0).all(axis=1), sides.prod(axis=1), 0)
    # From corners as above, not from width and height, so that equal boxes have exactly IoU 1.
    area = (a[:, 2:] - a[:, :2]).prod(axis=1)
    if not inside:
        area = area + (b[:, 2:] - b[:, :2]).prod(axis=1) - common
    return np.divide(common, area, out=np.zeros(len(a)), where=common > 0)


def _match(
    overlap: np.ndarray,
    nearest: np.ndarray,
    threshold: float,
    ignored: np.ndarray,
    hit: np.ndarray,
    free: np.ndarray,
    group_of: bool = False,
) -> None:
    """Mark detections, highest score first, that hit an object or are ignored."""
    near = np.flatnonzero(overlap >= threshold)
    of = nearest[near]
    free[near[ignored[of]]] = True
    near, of = near[~ignored[of]], of[~ignored[of]]
    first = np.zeros(len(ignored), dtype=np.int64)
    first[of[::-1]] = near[::-1]  # for repeated indices, numpy keeps the last value
    hit[first[of]] = True
    if group_of:
        free[near] = ~hit[near]


def _one_class(hit: np.ndarray, free: np.ndarray, wanted: int, eleven_points: bool) -> float:
    """Return the AP of a class from its detections, highest score first, and number of objects."""
    rank = np.cumsum(~free)[hit]
    precision = np.arange(1, len(rank) + 1) / rank
    # Only hits count, where recall rises; between them precision falls.
    precision = np.maximum.accumulate(precision[::-1])[::-1]
    if not eleven_points:
        return precision.sum() / wanted
    # In integers, because 0.1 * 6 > 3 / 5 in floating point.
    hits = (np.maximum(1, -(-level * wanted // 10)) for level in range(11))
    return sum(precision[n - 1] for n in hits if n <= len(precision)) / 11
