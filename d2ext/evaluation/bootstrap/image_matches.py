"""Match the detections of each image as COCO's tools do, as arrays for `Matches`."""

import contextlib
import io
from collections.abc import Iterator, Sequence
from itertools import chain
from typing import Any, NamedTuple

import numpy as np

from d2ext.data.formats.json_io import no_collection
from d2ext.evaluation.backends import detection_areas, prepared
from d2ext.evaluation.bootstrap.draws import Matches
from d2ext.evaluation.instances import Detections, GroundTruth, take

_IMAGES = 100  # images matched at a time


class Columns(NamedTuple):
    """D detections and N objects that must be found, each for every size; T thresholds.

    A group is a class and a size: class * 4 + size.
    """

    group: np.ndarray  # (D,)
    image: np.ndarray  # (D,), index into the images
    rank: np.ndarray  # (D,), position among the detections of the image and class
    score: np.ndarray  # (D,)
    hit: np.ndarray  # (T, D) bool
    counted: np.ndarray  # (T, D) bool, False if ignored
    object_group: np.ndarray  # (N,)
    object_image: np.ndarray  # (N,)


def coco_matches(
    ground_truth: GroundTruth,
    detections: Detections,
    task: str,
    iou_thresholds: np.ndarray,
    max_detections: Sequence[int],
    backend: str,
    by_class: bool = True,
    oks_sigmas: Sequence[float] | None = None,
) -> Iterator[list[Matches]]:
    """Return the matches of each class for the 4 sizes, for the arguments of `backends.matched`.

    The backend sees only detections in images with objects of their class; the others cannot match,
    and Python's lists of all matches would take most of the time.
    """
    classes = len(ground_truth.classes) if by_class else 1
    pair, pair_of_object = (
        columns.image * classes + (columns.label if by_class else 0)
        for columns in (detections, ground_truth)
    )
    near = np.isin(pair, pair_of_object)
    evaluation = prepared(
        ground_truth,
        take(detections, np.flatnonzero(near)),
        task,
        iou_thresholds,
        max_detections,
        backend,
        by_class,
        oks_sigmas,
    )
    alone = take(detections, np.flatnonzero(~near))
    others = _unmatched(
        alone, pair[~near], detection_areas(alone, task), classes, evaluation.params
    )
    parts = evaluated(evaluation, len(ground_truth.image_ids), by_class)
    return by_group([*parts, others], classes)


def evaluated(evaluation: Any, images: int, by_class: bool = True) -> list[Columns]:
    """Return the matches of a COCOeval of either backend that has not been evaluated yet.

    Args:
        evaluation: COCOeval of `backends`.
        images: Number of images.
        by_class: False if all classes are treated as one.
    """
    parts = []
    with contextlib.redirect_stdout(io.StringIO()), no_collection():
        # In parts, because lists of Python's booleans need 10 times the memory of arrays.
        for first in range(0, max(images, 1), _IMAGES):
            last = min(first + _IMAGES, images)
            evaluation.params.imgIds = list(range(first + 1, last + 1))
            evaluation.evaluate()
            parts.append(_columns(evaluation, by_class))
    return parts


def by_group(parts: Sequence[Columns], classes: int) -> Iterator[list[Matches]]:
    """For each class, yield its matches for the 4 sizes, highest score first."""
    all_of = Columns(*(np.concatenate(column, axis=-1) for column in zip(*parts, strict=True)))
    used = np.flatnonzero(all_of.counted.any(axis=0))
    keys = (all_of.rank, all_of.image, -all_of.score, all_of.group)
    order = used[np.lexsort([key[used] for key in keys])]
    objects = np.argsort(all_of.object_group, kind="stable")
    sizes = 4
    groups = np.arange(classes * sizes + 1)
    ends = np.searchsorted(all_of.group[order], groups)
    object_ends = np.searchsorted(all_of.object_group[objects], groups)
    for c in range(classes):
        found = []
        for g in range(c * sizes, (c + 1) * sizes):
            rows = order[ends[g] : ends[g + 1]]
            found.append(
                Matches(
                    all_of.image[rows],
                    all_of.hit[:, rows],
                    all_of.counted[:, rows],
                    all_of.object_image[objects[object_ends[g] : object_ends[g + 1]]],
                    all_of.rank[rows],
                )
            )
        yield found


def _columns(evaluation: Any, by_class: bool) -> Columns:
    """Return the matches of COCOeval's `evalImgs`."""
    sizes = {tuple(map(float, limits)): i for i, limits in enumerate(evaluation.params.areaRng)}
    entries = [e for e in evaluation.evalImgs if e is not None]
    label = [e["category_id"] - 1 if by_class else 0 for e in entries]
    size = [sizes[tuple(map(float, e["aRng"]))] for e in entries]
    group = np.array(label, np.int64) * len(sizes) + np.array(size, np.int64)
    image = np.array([e["image_id"] - 1 for e in entries], np.int64)
    length = np.array([len(e["dtScores"]) for e in entries], np.int64)
    entry = np.repeat(np.arange(len(entries)), length)
    first = (np.cumsum(length) - length)[entry]
    rank = np.arange(len(entry)) - first
    # Each entry has a list of its detections for each threshold.
    thresholds = len(evaluation.params.iouThrs)
    at = thresholds * first + rank + np.arange(thresholds)[:, None] * length[entry]
    matched, ignored = (
        np.fromiter(chain.from_iterable(chain.from_iterable(e[name] for e in entries)), np.int64)
        for name in ("dtMatches", "dtIgnore")
    )
    matched, ignored = matched[at] > 0, ignored[at] > 0
    found = [sum(not ignore for ignore in e["gtIgnore"]) for e in entries]
    of = np.repeat(np.arange(len(entries)), np.array(found, np.int64))
    score = np.fromiter(chain.from_iterable(e["dtScores"] for e in entries), np.float64)
    return Columns(
        group[entry],
        image[entry],
        rank,
        score,
        matched & ~ignored,
        ~ignored,
        group[of],
        image[of],
    )


def _unmatched(
    detections: Detections, pair: np.ndarray, areas: np.ndarray, classes: int, params: Any
) -> Columns:
    """Return the columns of detections in images without objects of their class.

    Args:
        detections: Detections.
        pair: (D,) int64, image * classes + class.
        areas: (D,) float64, square pixels.
        classes: Number of classes.
        params: Parameters of COCOeval.
    """
    order = np.lexsort((-detections.scores, pair))
    pair, score, areas = pair[order], detections.scores[order], areas[order]
    rank = np.arange(len(pair)) - np.searchsorted(pair, pair)
    low, high = np.array(params.areaRng, np.float64).T[..., None]
    within = (rank < params.maxDets[-1]) & (areas >= low) & (areas <= high)
    size, rows = np.nonzero(within)
    counted = np.ones((len(params.iouThrs), len(rows)), bool)
    nothing = np.zeros(0, np.int64)
    return Columns(
        pair[rows] % classes * len(low) + size,
        pair[rows] // classes,
        rank[rows],
        score[rows],
        np.zeros_like(counted),
        counted,
        nothing,
        nothing,
    )
