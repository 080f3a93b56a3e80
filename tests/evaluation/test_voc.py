"""VOC's AP, compared with hand-worked examples and Detectron2's port of the development kit."""

import logging
import math
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from detectron2.config import LazyCall as L
from detectron2.config import instantiate
from detectron2.evaluation.pascal_voc_evaluation import parse_rec, voc_eval
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from d2ext.errors import UserError
from d2ext.evaluation import average_precision
from d2ext.evaluation.voc import VocMetric
from tests.evaluation.columns import detections, ground_truth, perfect

# A 10 x 10 box in each cell of a row; boxes in different cells do not touch.
CELL = [(20 * i, 0, 10, 10) for i in range(12)]
FAR = (900, 900, 10, 10)


def _ap(objects: list, found: list, name: str = "AP50", **settings) -> float:
    return VocMetric(**settings)(ground_truth(objects), detections(found))[f"bbox/{name}"]


def test_a_curve_worked_out_by_hand():
    """There are three objects; by score: hit, miss, hit, miss, and one object is never found.

    Precision and recall after each detection: 1 and 1/3, 1/2 and 1/3, 2/3 and 2/3, 1/2 and 2/3.
    Area: a third of recall at precision 1, a third at 2/3: 5/9.
    11 points: recalls 0 to 0.3 have precision 1, those of 0.4 to 0.6 have 2/3, the others 0: 6/11.
    """
    objects = [(0, 0, CELL[i]) for i in range(3)]
    found = [(0, 0, CELL[1], 0.7), (0, 0, FAR, 0.6), (0, 0, CELL[0], 0.9), (0, 0, FAR, 0.8)]
    assert _ap(objects, found) == pytest.approx(100 * 5 / 9, abs=1e-9)
    assert _ap(objects, found, mode="11points") == pytest.approx(100 * 6 / 11, abs=1e-9)


def test_a_recall_of_exactly_a_tenth_counts_as_reached():
    """With 3 of 5 found and no miss, the recalls 0 to 0.6 are reached: 7 of 11 points."""
    objects = [(0, 0, CELL[i]) for i in range(5)]
    found = [(0, 0, CELL[i], 0.5) for i in range(3)]
    assert _ap(objects, found, mode="11points") == pytest.approx(100 * 7 / 11, abs=1e-9)
    assert _ap(objects, found) == pytest.approx(60, abs=1e-9)


def test_a_second_hit_is_a_miss_even_if_another_object_is_free():
    """The second detection overlaps the first object by 0.85, and the second by 60/85 = 0.706.

    COCO would match it to the second object, which is free. VOC does not, so there are a hit and a
    miss, and half of the objects are found: 1/2.
    """
    objects = [(0, 0, (0, 0, 100, 100)), (0, 0, (0, 0, 100, 60))]
    found = [(0, 0, (0, 0, 100, 100), 0.9), (0, 0, (0, 0, 100, 85), 0.8)]
    assert _ap(objects, found) == 50


@pytest.mark.parametrize("flag", ["difficult", "crowd", "group_of"])
def test_difficult_objects_are_neither_hit_nor_miss(flag):
    """Neither two detections of a difficult object nor missing another one changes the AP."""
    objects = [(0, 0, CELL[0], flag), (0, 0, CELL[1]), (0, 0, CELL[2], flag)]
    found = [(0, 0, CELL[0], 0.9), (0, 0, CELL[0], 0.8), (0, 0, CELL[1], 0.7)]
    assert _ap(objects, found) == 100
    # The boxes share 4 of 10 columns, so the IoU is 40 / 160 = 0.25: a miss, and AP 1/2.
    beside = [(0, 0, (6, 0, 10, 10), 0.9), (0, 0, CELL[1], 0.7)]
    assert _ap(objects, beside) == 50


def test_an_iou_equal_to_the_threshold_is_a_hit():
    """With 6 of 10 rows, the IoU is 0.6; with an additional pixel, it is 77 of 121 = 0.636."""
    objects, found = [(0, 0, (0, 0, 10, 10))], [(0, 0, (0, 0, 10, 6), 0.5)]
    metric = VocMetric(iou_thresholds=[0.65, 0.6, 0.625])
    numbers = metric(ground_truth(objects), detections(found))
    assert numbers == {
        "bbox/AP": pytest.approx(100 / 3),
        "bbox/AP60": 100,
        "bbox/AP62.5": 0,
        "bbox/AP65": 0,
        "bbox/AP-cat": pytest.approx(100 / 3),
        "bbox/AP60-cat": 100,
        "bbox/AP62.5-cat": 0,
        "bbox/AP65-cat": 0,
    }
    assert _ap(objects, found, "AP62.5", iou_thresholds=[0.625], plus_one=True) == 100


def test_equal_scores_keep_their_order():
    objects = [(0, 0, CELL[0])]
    hit, miss = (0, 0, CELL[0], 0.5), (0, 0, FAR, 0.5)
    assert _ap(objects, [hit] + 20 * [miss]) == 100
    assert _ap(objects, 3 * [miss] + [hit]) == 25


def test_the_first_of_equally_overlapping_objects_counts():
    twins = [(0, 0, CELL[0]), (0, 0, CELL[0], "difficult")]
    assert _ap(twins, [(0, 0, CELL[0], 0.5)]) == 100
    assert _ap(twins[::-1], [(0, 0, CELL[0], 0.5)]) == 0


def test_means_are_over_classes_with_objects():
    """Cat has 100 and dog (no detection) 0; there are no owls, so a detected owl is ignored."""
    t = ground_truth([(0, 0, CELL[0]), (1, 1, CELL[0])], ("cat", "dog", "owl"), images=2)
    d = detections([(0, 0, CELL[0], 0.5), (0, 2, CELL[0], 0.9), (1, 2, CELL[0], 0.9)])
    numbers = VocMetric()(t, d)
    assert math.isnan(numbers.pop("bbox/AP50-owl")) and math.isnan(numbers.pop("bbox/AP-owl"))
    of_classes = {"bbox/AP50-cat": 100, "bbox/AP50-dog": 0, "bbox/AP-cat": 100, "bbox/AP-dog": 0}
    assert numbers == {"bbox/AP": 50, "bbox/AP50": 50} | of_classes


@pytest.mark.parametrize("mode", ["area", "11points"])
@pytest.mark.parametrize("count", [1, 3, 7, 10, 49])
def test_a_perfect_detector_scores_exactly_100(mode, count):
    """Coordinates are not integers, and IoU thresholds go up to 1."""
    rng = np.random.default_rng(count)
    objects = [
        (int(rng.integers(3)), int(rng.integers(2)), tuple(rng.uniform(0.1, 300, 4)))
        for _ in range(count)
    ]
    t = ground_truth([*objects, (0, 0, FAR)], ("cat", "dog"), images=3)
    metric = VocMetric([0.5, 0.75, 0.95, 1], mode)
    assert {v for v in metric(t, perfect(t)).values() if not math.isnan(v)} == {100.0}


@pytest.mark.parametrize("objects", [[], [(0, 0, CELL[0], "difficult")]])
@pytest.mark.parametrize("found", [[], [(0, 0, CELL[0], 0.5)]])
@pytest.mark.parametrize("mode", ["area", "11points"])
def test_without_objects_there_is_no_ap(objects, found, mode):
    assert math.isnan(_ap(objects, found, mode=mode))
    assert math.isnan(_ap(objects, found, "AP-cat", mode=mode))


def test_without_classes_or_images_there_is_no_ap():
    numbers = VocMetric()(ground_truth([], (), images=0), detections([]))
    assert set(numbers) == {"bbox/AP", "bbox/AP50"} and all(map(math.isnan, numbers.values()))


def test_invalid_boxes_are_only_false_positives():
    """They are outside of the image, empty or inverted; the object without area is not found."""
    objects = [(0, 0, CELL[0]), (0, 0, (50, 50, 0, 0))]
    bad = [(-50, -50, 20, 20), (5000, 0, 10, 10), (0, 0, 0, 0), (10, 10, -10, -10), (50, 50, 0, 0)]
    found = [(0, 0, CELL[0], 0.9), *((0, 0, box, 0.5) for box in bad)]
    assert _ap(objects, found) == 50


small = st.integers(0, 14)
boxes = st.tuples(small, small, st.integers(1, 12), st.integers(1, 12))
places = st.tuples(st.integers(0, 2), st.integers(0, 1), boxes)


@settings(max_examples=60, deadline=None)
@given(
    objects=st.lists(st.tuples(places, st.sampled_from(["", "", "difficult"])), max_size=12),
    # By distinct scores, because Detectron2's sort is not stable.
    found=st.dictionaries(st.integers(1, 999), places, max_size=25),
    threshold=st.sampled_from([0.3, 0.5, 0.75]),
    mode=st.sampled_from(["area", "11points"]),
    plus_one=st.booleans(),
)
@example([((0, 0, (0, 0, 9, 9)), "")], {5: (0, 0, (0, 0, 9, 9))}, 0.5, "area", False)
def test_results_equal_those_of_detectron2(
    tmp_path_factory, objects, found, threshold, mode, plus_one
):
    classes = ("cat", "dog")
    t = ground_truth([(*place, flag) for place, flag in objects], classes, images=3)
    d = detections([(*place, score / 1000) for score, place in found.items()])
    ours = VocMetric([threshold], mode, plus_one)(t, d)
    folder = tmp_path_factory.mktemp("voc")
    _write_voc(folder, t, d, plus_one)
    for c, name in enumerate(classes):
        mine = ours[f"bbox/AP-{name}"]
        wanted = int(((t.label == c) & ~t.difficult).sum())
        if not wanted:
            assert math.isnan(mine)
            continue
        assume(mode == "area" or wanted % 5)  # Detectron2 compares 0.1 * 6 with 3 / 5
        parse_rec.cache_clear()
        *_, theirs = voc_eval(
            f"{folder}/{{}}.txt",
            f"{folder}/{{}}.xml",
            f"{folder}/images.txt",
            name,
            threshold - 1e-9,  # Detectron2 requires an IoU above the threshold
            mode == "11points",
        )
        assert mine == pytest.approx(100 * theirs, abs=1e-9)


def _write_voc(folder: Path, t, d, plus_one: bool) -> None:
    """Write the files that VOC's evaluation reads; its boxes include their last pixel."""
    last = 0 if plus_one else 1
    for i in range(len(t.image_ids)):
        root = ElementTree.Element("annotation")
        for n in np.flatnonzero(t.image == i):
            element = ElementTree.SubElement(root, "object")
            ElementTree.SubElement(element, "name").text = t.classes[t.label[n]]
            ElementTree.SubElement(element, "pose").text = ""
            ElementTree.SubElement(element, "truncated").text = "0"
            ElementTree.SubElement(element, "difficult").text = str(int(t.difficult[n]))
            box = ElementTree.SubElement(element, "bndbox")
            x, y, w, h = map(int, t.boxes[n])
            corners = {"xmin": x, "ymin": y, "xmax": x + w - last, "ymax": y + h - last}
            for key, value in corners.items():
                ElementTree.SubElement(box, key).text = str(value)
        ElementTree.ElementTree(root).write(folder / f"{i}.xml")
    (folder / "images.txt").write_text("".join(f"{i}\n" for i in range(len(t.image_ids))))
    for c, name in enumerate(t.classes):
        lines = [
            f"{d.image[n]} {d.scores[n]} {x} {y} {x + w - last} {y + h - last}\n"
            for n, (x, y, w, h) in enumerate(d.boxes)
            if d.label[n] == c
        ]
        (folder / f"{name}.txt").write_text("".join(lines))


def test_large_datasets_are_compared_in_parts(monkeypatch):
    """Memory is bounded, and the size of the parts does not change the results."""
    rng = np.random.default_rng(0)
    t = ground_truth([(i % 3, 0, tuple(rng.uniform(1, 30, 4))) for i in range(40)], images=3)
    d = detections([(i % 3, 0, tuple(rng.uniform(1, 30, 4)), rng.random()) for i in range(200)])
    whole = VocMetric()(t, d)
    assert 0 < whole["bbox/AP"] < 100
    for pairs in (1, 13, 14, 100):
        monkeypatch.setattr(average_precision, "_PAIRS", pairs)
        assert VocMetric()(t, d) == whole


def test_the_table_is_logged(caplog):
    caplog.set_level(logging.INFO, "d2ext")
    t = ground_truth([(0, 1, CELL[0])], ("cat", "1e3"))
    VocMetric()(t, perfect(t))
    (record,) = caplog.records
    rows = [line.split() for line in record.getMessage().splitlines()]
    assert ["class", "AP", "AP50"] in rows and ["all", "100.000", "100.000"] in rows
    assert ["cat", "nan", "nan"] in rows and ["1e3", "100.000", "100.000"] in rows


@pytest.mark.parametrize("per_class", [True, False])
@pytest.mark.parametrize("classes", [(), ("cat",), ("cat", "dog")])
def test_keys_equal_those_of_the_results(classes, per_class):
    metric = VocMetric([0.5, 0.75], per_class=per_class)
    assert metric.keys(classes, ["bbox"]) == set(metric(ground_truth([], classes), detections([])))


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (dict(iou_thresholds=0.5), "iou_thresholds=0.5; give a list"),
        (dict(iou_thresholds=[]), r"iou_thresholds=\[\]"),
        (dict(iou_thresholds=[50]), "above 0 and up to 1"),
        (dict(iou_thresholds=[0]), "above 0 and up to 1"),
        (dict(iou_thresholds=["0.5"]), "numbers"),
        (dict(iou_thresholds="0.5"), "list"),
        (dict(iou_thresholds=[math.nan]), "numbers"),
        (dict(iou_thresholds=[True]), "numbers"),
        (dict(mode="11point"), "mode='11point'; choose area or 11points"),
        (dict(plus_one=1), "plus_one=1; give true or false"),
        (dict(per_class=None), "per_class=None; give true or false"),
    ],
)
def test_arguments_are_checked_on_creation(settings, said):
    with pytest.raises(UserError, match=f"^VocMetric: .*{said}"):
        VocMetric(**settings)


def test_a_metric_from_a_config():
    metric = instantiate(L(VocMetric)(iou_thresholds=[0.5, 0.75], mode="11points"))
    t = ground_truth([(0, 0, CELL[0])])
    assert metric(t, perfect(t))["bbox/AP75"] == 100
