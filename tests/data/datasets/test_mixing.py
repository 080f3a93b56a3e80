"""Joined, repeated and balanced datasets: how often each image is shown per epoch."""

from collections import Counter

import numpy as np
import pytest
from detectron2.data import DatasetCatalog
from hypothesis import given, settings
from hypothesis import strategies as st

from d2ext.data.datasets.mixing import training_set
from d2ext.data.loading.loader import build_train_loader
from d2ext.data.loading.sampler import BatchSampler, EpochOrder
from d2ext.errors import UserError


def _records(prefix, classes):
    """Return an image for each entry of `classes`, which lists the classes of its objects."""
    return [
        {
            "file_name": f"{prefix}{i}.jpg",
            "image_id": i,
            "height": 1 + i % 2,
            "width": 1,
            "annotations": [{"category_id": c, "iscrowd": int(c < 0)} for c in objects],
        }
        for i, objects in enumerate(classes)
    ]


@pytest.fixture
def sets():
    """Register `many` (10 images: 1 empty, 1 with only a crowd, 1 with class 1) and `few` (3)."""
    contents = {"many": [[0]] * 7 + [[0, 1], [], [-1]], "few": [[0]] * 3}
    for name, classes in contents.items():
        DatasetCatalog.register(name, lambda n=name, c=classes: _records(n, c))
    yield
    for name in contents:
        DatasetCatalog.remove(name)


def _epoch(dataset, number=0, seed=0):
    loader = build_train_loader(
        dataset,
        lambda record: record["file_name"],
        total_batch_size=len(dataset),
        num_workers=0,
        seed=seed,
        reference_batch_size=1,
        reference_world_size=1,
        start_iter=number,
    )
    return Counter(next(iter(loader)))


def test_datasets_are_joined_and_empty_images_dropped(sets):
    dataset = training_set(["many", "few"])
    assert len(dataset) == 11
    assert str(dataset) == "11 images (2 without objects dropped, filter_empty)"
    assert _epoch(dataset) == {f"many{i}.jpg": 1 for i in range(8)} | {
        f"few{i}.jpg": 1 for i in range(3)
    }
    assert len(training_set("many", filter_empty=False)) == 10


def test_small_images_are_dropped():
    DatasetCatalog.register("sized", lambda: [{**r, "width": 2} for r in _records("a", [[0]] * 5)])
    try:
        dataset = training_set("sized", min_size=2)
        with pytest.raises(UserError, match="sized: no image with an object has sides of 3 pixels"):
            training_set("sized", min_size=3)
    finally:
        DatasetCatalog.remove("sized")
    assert str(dataset) == "2 images (3 smaller images dropped, min_size)"


def test_objects_that_are_not_trained_on_become_crowds(sets):
    marks = [{}, {"difficult": 1}, {"is_group_of": 1}, {"iscrowd": 1}]
    records = _records("marked", [[0] * 4, [0]])
    for annotation, mark in zip(records[0]["annotations"], marks, strict=True):
        annotation |= mark
    records[1]["annotations"][0]["difficult"] = 1
    DatasetCatalog.register("marked", lambda: records)
    try:
        dataset = training_set("marked")
    finally:
        DatasetCatalog.remove("marked")
    assert dataset.left_out == 1  # the second image has no object to train on
    (record,) = dataset.records
    assert [a["iscrowd"] for a in record["annotations"]] == [0, 1, 1, 1]


def test_a_subset_is_the_same_in_each_run(sets):
    names = [record["file_name"] for record in training_set(["many", "few"]).records]
    chosen = [r["file_name"] for r in training_set(["many", "few"], subset=0.5).records]
    assert len(chosen) == 5
    assert chosen == [name for name in names if name in chosen]
    assert chosen == [r["file_name"] for r in training_set(["many", "few"], subset=0.5).records]
    with pytest.raises(UserError, match="dataset.subset=2: give a fraction of the images above 0"):
        training_set("many", subset=2)


def test_each_dataset_is_repeated(sets):
    dataset = training_set(["many", "few"], repeat=[1, 3])
    assert len(dataset) == 8 + 9
    assert str(dataset).endswith(
        "17 images (2 without objects dropped, filter_empty) from 11, repeated up to 3 times"
    )
    for number in range(3):
        shown = _epoch(dataset, number)
        assert {f: n for f, n in shown.items() if f.startswith("few")} == {
            f"few{i}.jpg": 3 for i in range(3)
        }
    assert len(training_set("few", repeat=2)) == 6


def test_images_with_rare_classes_are_shown_more_often(sets):
    """Class 1 is in 1 of 8 images: sqrt(0.5 / 0.125) is 2."""
    dataset = training_set("many", oversample_threshold=0.5)
    assert dataset.repeats.tolist() == [1.0] * 7 + [2.0]
    assert len(dataset) == 9
    assert _epoch(dataset)["many7.jpg"] == 2
    # sqrt(1 / 0.125) is 2.83: shown 2 or 3 times, identically in every process.
    dataset = training_set("many", oversample_threshold=1.0)
    times = [_epoch(dataset, number)["many7.jpg"] for number in range(9)]
    assert set(times) <= {2, 3} and len(dataset) == 10
    assert times == [_epoch(dataset, number)["many7.jpg"] for number in range(9)]


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.floats(1, 4), min_size=1, max_size=30),
    st.integers(1, 4),
    st.integers(1, 5),
    st.integers(0, 2),
)
def test_fractions_are_rounded_by_seed_and_epoch(repeats, group_size, batch, seed):
    repeats = np.array(repeats)
    portrait = np.arange(len(repeats)) % 3 == 0
    order = EpochOrder(portrait, group_size, seed, repeats)
    epochs = [np.bincount(order.epoch(e), minlength=len(repeats)) for e in range(4)]
    for counts in epochs:
        assert counts.sum() == len(order)  # equal to the length that the schedule assumes
        assert (counts >= np.floor(repeats)).all() and (counts <= np.floor(repeats) + 2).all()
    assert abs(len(order) - repeats.sum()) <= 0.5 + 1e-6
    # Stateless: the stream is the same from any step on.
    whole = iter(BatchSampler(EpochOrder(portrait, group_size, seed, repeats), batch))
    stream = [next(whole) for _ in range(12)]
    later = iter(BatchSampler(EpochOrder(portrait, group_size, seed, repeats), batch, start_iter=7))
    assert [next(later) for _ in range(5)] == stream[7:]


def test_fractions_hold_on_average():
    repeats = np.array([1.0, 1.25, 1.5, 2.75, 1.0, 1.5])
    order = EpochOrder(np.zeros(6, bool), 1, 0, repeats)
    assert len(order) == 9
    shown = sum(np.bincount(order.epoch(e), minlength=6) for e in range(2000)) / 2000
    assert shown == pytest.approx(repeats, abs=0.05)
    assert shown[0] == shown[4] == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(repeat=0), "dataset.repeat=0"),
        (dict(repeat=[1, 2]), r"repeat=\[1, 2\].*each of few"),
        (dict(repeat=True), "repeat=True"),
        (dict(oversample_threshold=0), "oversample_threshold=0"),
        (dict(oversample_threshold="x"), "oversample_threshold=x"),
    ],
)
def test_invalid_options_are_errors(sets, options, message):
    with pytest.raises(UserError, match=message):
        training_set("few", **options)


def test_an_empty_training_set_is_an_error(sets):
    DatasetCatalog.register("empty", lambda: _records("e", [[], [-1]]))
    try:
        with pytest.raises(UserError, match="empty: no image has an object.*filter_empty=False"):
            training_set("empty")
    finally:
        DatasetCatalog.remove("empty")
