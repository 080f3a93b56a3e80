"""Draws of the images of a dataset, and datasets in which these images are repeated."""

import dataclasses
from typing import Any

import numpy as np
import pytest
from hypothesis import strategies as st

from d2ext.evaluation.instances import Detections, GroundTruth, take

draws_of_images = st.lists(st.integers(0, 3), min_size=4, max_size=4)  # of up to 4 images


def assert_close(ours: dict[str, float], theirs: dict[str, float]) -> None:
    """Check that two metrics have the same results."""
    assert ours == pytest.approx(theirs, abs=1e-9, rel=0, nan_ok=True)


def one_draw(
    metric: Any, ground_truth: GroundTruth, found: Detections, draw: list[int]
) -> dict[str, float]:
    """Return the results of a draw, computed next to others."""
    images = len(ground_truth.image_ids)
    draws = np.array([np.ones(images, int), draw, np.arange(images)])
    samples = metric.resampled(ground_truth, found, draws)
    assert {values.shape for values in samples.values()} == {(3,)}
    return {key: float(values[1]) for key, values in samples.items()}


def repeated_images(
    ground_truth: GroundTruth, found: Detections, draw: list[int]
) -> tuple[GroundTruth, Detections]:
    """Return a dataset that contains each image as often as the draw."""
    images = np.repeat(np.arange(len(draw)), draw)
    rows = [np.flatnonzero(ground_truth.image == i) for i in images]
    objects = np.concatenate([np.zeros(0, np.int64), *rows])
    columns = {
        name: getattr(ground_truth, name)[objects]
        for name in ("label", "boxes", "areas", "crowd", "difficult", "group_of")
    }
    masks, keypoints = ground_truth.segmentations, ground_truth.keypoints
    lists = {
        name: None if value is None else [value[i] for i in images]
        for name in ("negatives", "not_exhaustive")
        for value in [getattr(ground_truth, name)]
    }
    repeated = dataclasses.replace(
        ground_truth,
        image_ids=list(range(len(images))),
        file_names=[ground_truth.file_names[i] for i in images],
        heights=ground_truth.heights[images],
        widths=ground_truth.widths[images],
        image=np.repeat(np.arange(len(images)), list(map(len, rows))),
        segmentations=None if masks is None else [masks[i] for i in objects],
        keypoints=None if keypoints is None else keypoints[objects],
        **columns,
        **lists,
    )
    rows = [np.flatnonzero(found.image == i) for i in images]
    several = take(found, np.concatenate([np.zeros(0, np.int64), *rows]))
    image = np.repeat(np.arange(len(images)), list(map(len, rows)))
    return repeated, dataclasses.replace(several, image=image)


def distinct_scores(found: Detections) -> Detections:
    """Return detections whose scores differ within an image, but not between images."""
    of_image = np.argsort(np.argsort(found.image, kind="stable"), kind="stable")
    first = np.searchsorted(np.sort(found.image), found.image)
    place = of_image - first
    # Lower scores first in some images, so that the order of the scores is not that of the rows.
    return dataclasses.replace(found, scores=(7 * place % 11) / 10 + place / 1000)
