"""Results of draws of images equal those of datasets that contain these images."""

import dataclasses

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from d2ext.evaluation.coco import CocoMetric
from d2ext.evaluation.instances import GroundTruth
from d2ext.evaluation.lvis import LvisMetric
from d2ext.evaluation.open_images import OpenImagesMetric
from d2ext.evaluation.voc import VocMetric
from tests.evaluation.edge_cases import columns, datasets
from tests.evaluation.repeated import (
    assert_close,
    distinct_scores,
    draws_of_images,
    one_draw,
    repeated_images,
)

BACKENDS = ("hotcoco", "pycocotools")
SETTINGS = settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))


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
    assert_close(one_draw(metric, ground_truth, found, draw), metric(ground_truth, found))


@pytest.mark.parametrize("backend", BACKENDS)
@SETTINGS
@given(dataset=datasets(), draw=draws_of_images, arguments=coco_arguments)
def test_draw_equals_dataset_of_repeated_images(tmp_path, backend, dataset, draw, arguments):
    ground_truth, found = columns(*dataset, tmp_path)
    found, draw = distinct_scores(found), draw[: len(ground_truth.image_ids)]
    metric = CocoMetric(["bbox", "segm", "proposals"], backend=backend, **arguments)
    repeated = metric(*repeated_images(ground_truth, found, draw))
    assert_close(one_draw(metric, ground_truth, found, draw), repeated)


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
    assert_close(one_draw(metric, ground_truth, found, draw), metric(ground_truth, found))


@SETTINGS
@given(dataset=flagged(), metric=metrics, draw=draws_of_images, seed=st.integers(0, 99))
def test_draw_equals_repeated_images_for_other_metrics(tmp_path, dataset, metric, draw, seed):
    ground_truth, found = columns(*dataset, tmp_path)
    ground_truth, found = _with_lists(ground_truth, seed), distinct_scores(found)
    draw = draw[: len(ground_truth.image_ids)]
    repeated = metric(*repeated_images(ground_truth, found, draw))
    assert_close(one_draw(metric, ground_truth, found, draw), repeated)
