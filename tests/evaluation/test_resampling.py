"""Results of draws of images equal those of datasets that contain these images."""

import dataclasses
from statistics import NormalDist

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from d2ext.evaluation.bootstrap.resampling import (
    digest,
    draw_images,
    images_with_objects,
    interval,
    rare_classes,
    resample,
)
from d2ext.evaluation.coco import CocoMetric
from d2ext.evaluation.instances import Detections, GroundTruth
from d2ext.evaluation.lvis import LvisMetric
from d2ext.evaluation.open_images import OpenImagesMetric
from d2ext.evaluation.voc import VocMetric
from tests.evaluation.columns import detections, ground_truth
from tests.evaluation.edge_cases import columns, datasets, rle
from tests.evaluation.repeated import (
    assert_close,
    distinct_scores,
    draws_of_images,
    one_draw,
    repeated_images,
)

BOX = (10.0, 10.0, 40.0, 40.0)
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


def _crowded(seed: int) -> tuple[GroundTruth, Detections]:
    """Return images with objects of all sizes and kinds, detections of them, and errors."""
    rng = np.random.default_rng(seed)
    images, classes = 6, 4
    kinds = ["", "", "", "", "crowd", "difficult", "group_of"]
    objects, found = [], []
    for _ in range(60):
        x, y = rng.uniform(0, 800, 2)
        w, h = rng.choice([20, 31, 33, 60, 95, 97, 150], 2)
        image, label = int(rng.integers(images)), int(rng.integers(classes))
        if rng.random() < 0.4:  # often in an image without objects of the class
            found.append((image, label, (x, y, w, h), float(rng.random())))
            continue
        objects.append((image, label, (x, y, w, h), str(rng.choice(kinds))))
        for spread in rng.choice([0.02, 0.1, 0.25], rng.integers(0, 4)):
            dx, dy, dw, dh = rng.normal(0, spread, 4) * [w, h, w, h]
            box = (x + dx, y + dy, max(1, w + dw), max(1, h + dh))
            found.append((image, label, box, float(rng.random())))
    return ground_truth(objects, tuple("abcd"), images), detections(found)


@pytest.mark.parametrize(
    "metric",
    [
        CocoMetric(["bbox", "segm", "proposals"]),
        VocMetric([0.3, 0.5, 0.75]),
        VocMetric([0.5, 0.6], mode="11points"),
        OpenImagesMetric(),
        LvisMetric(["bbox"], per_class=True),
    ],
    ids=["coco", "voc", "voc 11 points", "open images", "lvis"],
)
@pytest.mark.parametrize("seed", range(5))
def test_draws_of_many_objects_equal_datasets_of_these_images(metric, seed):
    truth, found = _crowded(seed)
    masks = [rle(list(box), 1000, 1000) for box in found.boxes]
    truth, found = _with_lists(truth, seed), dataclasses.replace(found, masks=masks)
    for draw in ([1] * 6, [0, 2, 1, 3, 0, 0], [1, 0, 0, 1, 2, 2]):
        repeated = metric(*repeated_images(truth, found, draw))
        assert_close(one_draw(metric, truth, found, draw), repeated)


def _cats(images: int, with_cat: int, dog_in: int = 0) -> tuple[GroundTruth, Detections]:
    """Return images of which some have a cat that is found, and some a dog that is missed."""
    objects = [(i, 0, BOX) for i in range(with_cat)] + [(i, 1, BOX) for i in range(dog_in)]
    found = [(i, 0, BOX, 0.9 - i / 100) for i in range(with_cat)]
    # Errors with scores between those of the hits.
    found += [(i, 0, (500, 500, 20, 20), 0.895 - i / 100) for i in range(0, images, 2)]
    return ground_truth(objects, ("cat", "dog"), images), detections(found)


def test_class_absent_from_a_draw_is_undefined_and_not_part_of_the_mean():
    truth, found = _cats(6, 6, dog_in=1)
    draws = np.array([[1, 1, 1, 1, 1, 1], [0, 2, 1, 1, 1, 1], [6, 0, 0, 0, 0, 0]])
    for metric in (CocoMetric(["bbox"]), VocMetric()):
        samples = metric.resampled(truth, found, draws)
        cat, dog, mean = (samples[f"bbox/{k}"] for k in _names(metric))
        assert dog.tolist()[::2] == [0, 0] and np.isnan(dog[1])
        assert mean == pytest.approx([cat[0] / 2, cat[1], cat[2] / 2])


def _names(metric: CocoMetric | VocMetric) -> tuple[str, str, str]:
    name = "AP" if isinstance(metric, CocoMetric) else "AP50"
    return f"{name}-cat", f"{name}-dog", name


def test_images_without_objects_and_no_images():
    for truth in (ground_truth([], images=3), ground_truth([], images=0)):
        found = detections([(0, 0, BOX, 0.5)] if truth.image_ids else [])
        for metric in (CocoMetric(["bbox"]), VocMetric(), OpenImagesMetric(), LvisMetric(["bbox"])):
            samples = metric.resampled(truth, found, draw_images(len(truth.image_ids), 5))
            assert samples.keys() == metric(truth, found).keys()
            assert all(np.isnan(values).all() for values in samples.values())


def test_draws_are_the_same_each_time_and_have_as_many_images_as_the_test_set():
    draws = draw_images(13)
    assert draws.shape == (1000, 13) and (draws.sum(axis=1) == 13).all()
    assert (draws == draw_images(13)).all() and len(np.unique(draws, axis=0)) > 900


def test_samples_have_the_keys_and_estimates_of_metrics_with_draws():
    class Count:
        def __call__(self, ground_truth, detections):
            return {"bbox/count": 1.0}

    truth, found = _cats(6, 4)
    metrics = {"coco": CocoMetric(["bbox"]), "count": Count()}
    results = {f"{n}/{k}": v for n, m in metrics.items() for k, v in m(truth, found).items()}
    samples = resample(metrics, truth, found, results, 50)
    assert samples.values.keys() == results.keys() - {"count/bbox/count"}
    assert {v.shape for v in samples.values.values()} == {(50,)} and samples.images == 6
    assert samples.estimates["coco/bbox/AP"] == results["coco/bbox/AP"]
    # Twice the same draws: the difference of a model and itself is exactly 0.
    again = resample(metrics, truth, found, results, 50)
    assert (samples.values["coco/bbox/AP"] == again.values["coco/bbox/AP"]).all()


def test_interval_encloses_the_estimate_and_narrows_with_more_images():
    values = np.random.default_rng(0).normal(50, 5, 1000).clip(0, 100)
    widths = []
    for images in (3, 13, 50, 200, 100_000):
        low, high = interval(np.median(values), values, images)
        assert 0 <= low < 50 < high <= 100
        widths.append(high - low)
    assert widths == sorted(widths, reverse=True)
    assert (low, high) == pytest.approx(np.quantile(values, [0.025, 0.975]), abs=0.01)
    assert interval(90.0, values, 200)[1] == 90 and interval(1.0, values, 200)[0] == 1
    low, high = interval(-2.0, values - 52, 13)
    assert low < -2 < high


def test_interval_of_13_images_has_the_levels_of_hesterberg():
    """The level is that of the t quantile 2.179 times sqrt(13 / 12) in the normal distribution."""
    values = np.linspace(0, 100, 100_001)
    assert interval(50.0, values, 13) == pytest.approx((1.167, 98.833), abs=0.002)


def test_interval_is_lower_if_draws_are_higher_than_the_estimate():
    """With 40 % of the draws below the estimate, all levels fall by twice the 40 % quantile."""
    values = np.linspace(0, 100, 100_001)
    z, reach = -0.2533, 1.9942  # t of 99 degrees of freedom, times sqrt(100 / 99)
    levels = [100 * NormalDist().cdf(2 * z - reach), 100 * NormalDist().cdf(2 * z + reach)]
    assert interval(40.0, values, 100) == pytest.approx(levels, abs=0.01)
    # Far from all draws, the interval still reaches from the estimate to about their median.
    low, high = interval(-10.0, values, 100)
    assert low == -10 and 45 < high < 55
    # In a difference of two models, both are as much too high.
    ends = [100 * NormalDist().cdf(-reach), 100 * NormalDist().cdf(reach)]
    assert interval(40.0, values, 100, lowest=-100) == pytest.approx(ends, abs=0.01)


def test_interval_of_undefined_results():
    nothing = np.full(9, np.nan)
    assert interval(float("nan"), np.ones(9), 13) is None
    assert interval(50.0, nothing, 13) is None


def test_interval_of_objects_in_one_image_is_unknown():
    """The image is in two thirds of the draws, and its AP is the same in all of them."""
    draws = draw_images(13)
    values = np.where(draws[:, 0] > 0, 100.0, np.nan)
    assert images_with_objects(values, 13) == pytest.approx(1, abs=0.1)
    assert interval(100.0, values, 13) == (0, 100)
    assert interval(10.0, values, 13, lowest=-100) == (-100, 100)
    assert interval(80.0, np.full(1000, 80.0), 1) == (0, 100)
    values = np.where(draws[:, :3].any(axis=1), draws[:, 0], np.nan)
    assert images_with_objects(values, 13) == pytest.approx(3, abs=0.4)
    known = values[~np.isnan(values)]
    low, high = interval(1.0, values, 13)  # the levels are beyond those of 1,000 draws
    assert (low, high) == pytest.approx((known.min(), known.max()), abs=0.1)
    assert images_with_objects(np.ones(9), 13) == 13


def test_labels_of_any_kind_decide_whether_draws_can_be_paired():
    box = [[10, 10, 50, 10, 50, 50, 10, 50]]
    same = ground_truth([(0, 0, BOX)], ("a",))
    same = dataclasses.replace(same, segmentations=[box], keypoints=np.zeros((1, 2, 3)))
    yes = np.array([True])
    changes = [
        {"crowd": yes},
        {"difficult": yes},
        {"group_of": yes},
        {"areas": same.areas + 1},
        {"boxes": same.boxes + 1},
        {"segmentations": [[[*box[0][:-1], 51]]]},
        {"segmentations": [{"size": [60, 60], "counts": b"PP"}]},
        {"segmentations": [{"size": [60, 60], "counts": np.arange(3)}]},
        {"keypoints": np.ones((1, 2, 3))},
        {"negatives": [[0]]},
        {"not_exhaustive": [[0]]},
        {"classes": ["b"]},
        {"image_ids": ["other"]},
    ]
    digests = {digest(dataclasses.replace(same, **change)) for change in changes}
    assert len(digests) == len(changes) and digest(same) not in digests
    moved = dataclasses.replace(same, file_names=["elsewhere/0.jpg"])
    assert digest(moved) == digest(same)


def test_rare_classes_have_fewer_than_20_objects_to_find():
    objects = [(0, 0, BOX)] * 20 + [(0, 1, BOX)] * 19 + [(0, 1, BOX, "crowd")] * 9
    assert rare_classes(ground_truth(objects, ("a", "b", "absent"))) == ["b"]
