"""Average precision as Pascal VOC defines it, over a whole dataset at once.

From the VOC development kit, VOCevaldet.m (Everingham et al., The Pascal Visual Object Classes
Challenge, IJCV 88, 2010): each detection, the highest score first, takes the object of its image
and class that it overlaps most. If the overlap reaches the threshold, it is a hit, unless the
object has been hit before. Which object a detection takes does not depend on the other detections
(in COCO's matching it does), so no loop over detections is needed.
"""

import numpy as np

from d2ext.evaluation.instances import Detections, GroundTruth

_PAIRS = 1 << 20  # of a detection and an object, compared at a time: some 100 MB


def average_precision(
    ground_truth: GroundTruth,
    detections: Detections,
    thresholds: list[float],
    ignored: np.ndarray,
    group_of: np.ndarray,
    eleven_points: bool = False,
) -> np.ndarray:
    """AP of each class at each threshold.

    Detections of equal score keep their order, and of two objects that overlap a detection
    equally the first counts. A box without area overlaps nothing.

    Args:
        ground_truth: the objects.
        detections: any number an image; boxes may lie outside.
        thresholds: T overlaps (IoU) from above 0 to 1; one that is reached exactly is a hit.
        ignored: (N,) bool; these objects need not be found, and what hits them counts nothing.
        group_of: (N,) bool; what misses all single objects is held against these, by the part of
            the detection that lies inside. However many do, the best is one hit, and the others
            count nothing.
        eleven_points: the mean of the precisions at recalls 0, 0.1, ..., 1 (VOC until 2009) instead
            of the area under the curve (since 2010). Precision at a recall is the highest at this
            or any higher recall.

    Returns:
        (T, C) float64 from 0 to 1; NaN for a class without objects.
    """
    order = np.lexsort((-detections.scores, detections.label))  # stable
    label, boxes = detections.label[order], _corners(detections.boxes[order])
    group = detections.image[order] * len(ground_truth.classes) + label
    single, groups = (
        _nearest(ground_truth, np.flatnonzero(kind), group, boxes, inside)
        for kind, inside in ((~group_of, False), (group_of, True))
    )
    ends = np.searchsorted(label, np.arange(len(ground_truth.classes) + 1))
    wanted = np.bincount(ground_truth.label[~ignored], minlength=len(ground_truth.classes))
    result = np.full((len(thresholds), len(ground_truth.classes)), np.nan)
    for row, threshold in zip(result, thresholds, strict=True):
        hit, free = np.zeros(len(label), dtype=bool), np.zeros(len(label), dtype=bool)
        _match(*single, threshold, ignored, hit, free)
        missed = ~(hit | free)
        _match(np.where(missed, groups[0], 0), groups[1], threshold, ignored, hit, free, True)
        for c in np.flatnonzero(wanted):
            of_class = slice(ends[c], ends[c + 1])
            row[c] = _one_class(hit[of_class], free[of_class], int(wanted[c]), eleven_points)
    return result


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
        ground_truth: the objects.
        objects: indices of those to look at.
        group: (M,) int64, image and class of each detection in one number.
        boxes: (M, 4), x0, y0, x1, y1.
        inside: overlap is the part of the detection that lies inside the object, instead of IoU.

    Returns:
        (M,) float64, the overlap (0 where there is none), and (M,) int64, index of the object.
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
        begin = stop[done:until] - count[part] - base  # of each detection's pairs
        pair = np.arange(stop[until - 1] - base)
        of = objects[np.repeat(first[part] - begin, count[part]) + pair]
        values = _overlaps(
            np.repeat(boxes[part], count[part], axis=0), ground_truth_boxes[of], inside
        )
        best = np.maximum.reduceat(values, begin)
        # Of equal ones the first: the last that is written here, in reverse order.
        top = np.flatnonzero(values == np.repeat(best, count[part]))[::-1]
        overlap[part] = best
        nearest[np.repeat(part, count[part])[top]] = of[top]
        done = until
    return overlap, nearest


def _overlaps(a: np.ndarray, b: np.ndarray, inside: bool) -> np.ndarray:
    """(P,) IoU of pairs of boxes (P, 4) of corners, or the part of `a` that lies inside `b`."""
    sides = np.minimum(a[:, 2:], b[:, 2:]) - np.maximum(a[:, :2], b[:, :2])
    common = np.where((sides > 0).all(axis=1), sides.prod(axis=1), 0)
    # From corners as above, not from width and height: a box and itself have an IoU of exactly 1.
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
    first[of[::-1]] = near[::-1]  # where an index occurs twice, numpy keeps what comes last
    hit[first[of]] = True
    if group_of:
        free[near] = ~hit[near]


def _one_class(hit: np.ndarray, free: np.ndarray, wanted: int, eleven_points: bool) -> float:
    """AP of one class's detections, highest score first, with `wanted` objects to be found."""
    rank = np.cumsum(~free)[hit]
    precision = np.arange(1, len(rank) + 1) / rank
    # Only where recall rises: in between precision falls.
    precision = np.maximum.accumulate(precision[::-1])[::-1]
    if not eleven_points:
        return precision.sum() / wanted
    # In integers: 0.1 * 6 is above 3 / 5.
    hits = (np.maximum(1, -(-level * wanted // 10)) for level in range(11))
    return sum(precision[n - 1] for n in hits if n <= len(precision)) / 11
