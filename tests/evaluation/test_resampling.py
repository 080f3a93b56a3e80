"""Results of draws of images equal those of datasets that contain these images."""

import dataclasses

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from d2ext.evaluation.coco import CocoMetric
from d2ext.evaluation.instances import Detections, GroundTruth, take
from d2ext.evaluation.lvis import LvisMetric
from d2ext.evaluation.open_images import OpenImagesMetric
from d2ext.evaluation.voc import VocMetric
from tests.evaluation.edge_cases import columns, datasets

BACKENDS = ("hotcoco", "pycocotools")
SETTINGS = settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))


def _close(ours: dict[str, float], theirs: dict[str, float]) -> None:
    assert ours == pytest.approx(theirs, abs=1e-9, rel=0, nan_ok=True)


def _one(metric, ground_truth: GroundTruth, found: Detections, draw: list[int]) -> dict[str, float]:
    """Return the results of a draw, computed next to others."""
    images = len(ground_truth.image_ids)
    draws = np.array([np.ones(images, int), draw, np.arange(images)])
    samples = metric.resampled(ground_truth, found, draws)
    assert {values.shape for values in samples.values()} == {(3,)}
    return {key: float(values[1]) for key, values in samples.items()}


def _repeated(
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


def _distinct(found: Detections) -> Detections:
    """Return detections whose scores differ within an image, but not between images."""
    of_image = np.argsort(np.argsort(found.image, kind="stable"), kind="stable")
    first = np.searchsorted(np.sort(found.image), found.image)
    place = of_image - first
    # Lower scores first in some images, so that the order of the scores is not that of the rows.
    return dataclasses.replace(found, scores=(7 * place % 11) / 10 + place / 1000)


draws_of_images = st.lists(st.integers(0, 3), min_size=4, max_size=4)
coco_arguments = st.fixed_dictionaries(
    {
        "iou_thresholds": st.sampled_from([(0.5, 0.75), (0.1, 0.6), (1.0,)]),
        "max_detections": st.sampled_from([(1, 10, 100), (2, 3)]),
        "per_class": st.booleans(),
    }
)


@pytest.mark.parametrize("backend", BACKENDS)
@SETTINGS
@given(dataset=datasets(), arguments=coco_arguments)
def test_draw_of_all_images_has_the_results_of_coco(tmp_path, backend, dataset, arguments):
    ground_truth, found = columns(*dataset, tmp_path)
    metric = CocoMetric(["bbox", "segm", "proposals"], backend=backend, **arguments)
    draw = [1] * len(ground_truth.image_ids)
    _close(_one(metric, ground_truth, found, draw), metric(ground_truth, found))


@pytest.mark.parametrize("backend", BACKENDS)
@SETTINGS
@given(dataset=datasets(), draw=draws_of_images, arguments=coco_arguments)
def test_draw_equals_dataset_of_repeated_images(tmp_path, backend, dataset, draw, arguments):
    ground_truth, found = columns(*dataset, tmp_path)
    found, draw = _distinct(found), draw[: len(ground_truth.image_ids)]
    metric = CocoMetric(["bbox", "segm", "proposals"], backend=backend, **arguments)
    repeated = metric(*_repeated(ground_truth, found, draw))
    _close(_one(metric, ground_truth, found, draw), repeated)


@st.composite
def flagged(draw: st.DrawFn) -> tuple[dict, list[dict]]:
    """Draw a dataset with difficult objects and groups."""
    content, results = draw(datasets())
    flags = st.sampled_from([{}, {}, {"difficult": True}, {"is_group_of": 1}])
    for annotation in content["annotations"]:
        annotation |= draw(flags)
    return content, results


voc_metrics = st.builds(
    VocMetric,
    st.sampled_from([(0.5,), (0.3, 0.75)]),
    st.sampled_from(["area", "11points"]),
    st.booleans(),
    st.booleans(),
)
metrics = st.one_of(
    voc_metrics,
    st.builds(OpenImagesMetric, per_class=st.booleans()),
    st.builds(LvisMetric, st.just(("bbox", "segm")), st.booleans()),
)


def _with_lists(ground_truth: GroundTruth, seed: int) -> GroundTruth:
    """Add what only LVIS has: frequencies, and classes that were not fully annotated."""
    rng = np.random.default_rng(seed)
    classes, images = len(ground_truth.classes), len(ground_truth.image_ids)
    negatives, not_exhaustive = (
        [np.flatnonzero(rng.random(classes) < 0.5).tolist() for _ in range(images)]
        for _ in range(2)
    )
    return dataclasses.replace(
        ground_truth,
        negatives=negatives,
        not_exhaustive=not_exhaustive,
        frequencies=rng.choice(["r", "c", "f"], classes).tolist(),
    )


@SETTINGS
@given(dataset=flagged(), metric=metrics, seed=st.integers(0, 99))
def test_draw_of_all_images_has_the_results_of_other_metrics(tmp_path, dataset, metric, seed):
    ground_truth, found = columns(*dataset, tmp_path)
    ground_truth = _with_lists(ground_truth, seed)
    draw = [1] * len(ground_truth.image_ids)
    _close(_one(metric, ground_truth, found, draw), metric(ground_truth, found))


@SETTINGS
@given(dataset=flagged(), metric=metrics, draw=draws_of_images, seed=st.integers(0, 99))
def test_draw_equals_repeated_images_for_other_metrics(tmp_path, dataset, metric, draw, seed):
    ground_truth, found = columns(*dataset, tmp_path)
    ground_truth, found = _with_lists(ground_truth, seed), _distinct(found)
    draw = draw[: len(ground_truth.image_ids)]
    repeated = metric(*_repeated(ground_truth, found, draw))
    _close(_one(metric, ground_truth, found, draw), repeated)
