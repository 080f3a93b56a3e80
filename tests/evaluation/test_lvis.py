"""LVIS's metric: detections of classes that were not annotated are ignored."""

import math

import pytest
from hypothesis import HealthCheck, given, settings

from d2ext.errors import UserError
from d2ext.evaluation.coco import CocoMetric
from d2ext.evaluation.instances import detection_columns, ground_truth_columns
from d2ext.evaluation.lvis import LvisMetric
from tests.evaluation.columns import detections as detections_of
from tests.evaluation.columns import ground_truth
from tests.evaluation.edge_cases import HEIGHT, WIDTH, columns, datasets


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(datasets())
def test_equals_coco_if_all_classes_were_annotated(tmp_path, dataset):
    content, results = dataset
    for annotation in content["annotations"]:
        annotation["iscrowd"] = 0  # LVIS has no crowds
    ground_truth, found = columns(content, results, tmp_path)
    numbers = LvisMetric(["bbox", "segm"], per_class=True)(ground_truth, found)
    coco = CocoMetric(["bbox", "segm"], max_detections=[300])(ground_truth, found)
    for key, value in numbers.items():
        if key[-3:] in ("APr", "APc", "APf"):
            assert math.isnan(value)
        else:
            expected = coco[
                key.replace("@300", "300") if "/AR@" in key else key.replace("@300", "")
            ]
            assert value == pytest.approx(expected, abs=1e-9, nan_ok=True)


def _content() -> dict:
    images = [{"id": i, "height": HEIGHT, "width": WIDTH, "file_name": ""} for i in (1, 2)]
    categories = [
        {"id": i, "name": name, "frequency": name[0]}
        for i, name in enumerate(("rare", "common", "frequent"), start=1)
    ]
    boxes = [[10, 10, 40, 40], [60, 60, 20, 20], [100, 20, 30, 30]]
    annotations = [
        {"id": i, "image_id": 1, "category_id": i, "bbox": box, "area": box[2] * box[3]}
        for i, box in enumerate(boxes, start=1)
    ]
    return {"images": images, "categories": categories, "annotations": annotations}


def _results(content: dict) -> list[dict]:
    names = ("image_id", "category_id", "bbox")
    return [{**{n: a[n] for n in names}, "score": 0.5} for a in content["annotations"]]


def test_frequencies_negatives_and_classes_that_are_not_exhaustive(tmp_path):
    """Each class has a false positive with a higher score; if it counts, AP is 50."""
    content = _content()
    content["images"][1] |= {"neg_category_ids": [1, 3], "not_exhaustive_category_ids": [3]}
    results = _results(content)
    for category in (1, 2, 3):
        false_alarm = {"image_id": 2, "category_id": category, "bbox": [1, 1, 9, 9], "score": 0.9}
        results.append(false_alarm)
    numbers = LvisMetric()(*columns(content, results, tmp_path))
    assert numbers["bbox/APr"] == pytest.approx(50, abs=1e-9)  # annotated as absent
    assert numbers["bbox/APc"] == 100  # not annotated
    assert numbers["bbox/APf"] == 100  # not annotated exhaustively
    assert numbers["bbox/AP"] == pytest.approx(250 / 3, abs=1e-9)


def test_dataset_dicts_as_detectron2_reads_them():
    records = [
        {"file_name": "", "image_id": i, "height": HEIGHT, "width": WIDTH, "annotations": []}
        for i in (1, 2)
    ]
    box = {"bbox": [10, 10, 40, 40], "bbox_mode": 1, "category_id": 0}
    records[0]["annotations"].append(box)
    for record in records:
        record |= {"neg_category_ids": [], "not_exhaustive_category_ids": []}
    records[1]["neg_category_ids"] = [1]  # counts from 1, category_id from 0
    ground_truth = ground_truth_columns(records, ["cat", "dog"], frequencies=["r", "f"])
    assert ground_truth.negatives == [[], [0]] and ground_truth.not_exhaustive == [[], []]
    results = [
        {"image_id": 1, "category_id": 0, "bbox": [10, 10, 40, 40], "score": 0.5},
        {"image_id": 2, "category_id": 0, "bbox": [10, 10, 40, 40], "score": 0.9},
        {"image_id": 2, "category_id": 1, "bbox": [10, 10, 40, 40], "score": 0.9},
    ]
    metric = LvisMetric(per_class=True)
    numbers = metric(ground_truth, detection_columns(ground_truth, results))
    assert numbers["bbox/APr"] == pytest.approx(50, abs=1e-9)
    assert math.isnan(numbers["bbox/APf"]) and math.isnan(numbers["bbox/AP-dog"])
    assert numbers.keys() == metric.keys(ground_truth.classes, ["bbox"])


def test_crowds_are_neither_hit_nor_miss(tmp_path):
    content = _content()
    content["annotations"][0]["iscrowd"] = 1
    for results in (_results(content), _results(content)[1:]):
        numbers = LvisMetric()(*columns(content, results, tmp_path))
        assert numbers["bbox/AP"] == 100 and math.isnan(numbers["bbox/APr"])


def test_no_detections_and_no_objects(tmp_path):
    content = _content()
    assert LvisMetric()(*columns(content, [], tmp_path))["bbox/AP"] == 0
    content["annotations"] = []
    assert all(map(math.isnan, LvisMetric()(*columns(content, [], tmp_path)).values()))


def test_300_detections_per_image_over_all_classes():
    """The dog is found after 299 or 300 false alarms for cats; COCO's limits are per class."""
    t = ground_truth([(0, 0, (0, 0, 10, 10)), (0, 1, (50, 50, 10, 10))], ("cat", "dog"))
    cats = [(0, 0, (300 + i % 40 * 15, 300 + i // 40 * 15, 10, 10), 0.9) for i in range(300)]
    dog = (0, 1, (50, 50, 10, 10), 0.5)
    for number, expected in ((299, 100), (300, 0)):
        found = detections_of([*cats[:number], dog])
        assert LvisMetric(per_class=True)(t, found)["bbox/AP-dog"] == expected
        assert CocoMetric(["bbox"])(t, found)["bbox/AP-dog"] == 100


@pytest.mark.parametrize("tasks", ["bbox", ["proposals"], []])
def test_tasks_are_checked_on_creation(tasks):
    with pytest.raises(UserError, match="bbox and segm"):
        LvisMetric(tasks)
    with pytest.raises(UserError, match="per_class='no'; give true or false"):
        LvisMetric(per_class="no")
