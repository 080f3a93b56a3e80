"""Our AP is pycocotools' AP, and odd input gives defined numbers."""

import contextlib
import copy
import io
import math

import numpy as np
import pycocotools.mask
import pytest
from detectron2.config import LazyCall as L
from detectron2.config import instantiate
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from d2ext.data.formats.coco import read_coco, to_coco
from d2ext.errors import UserError
from d2ext.evaluation.coco import CocoMetric
from d2ext.files import write_json

CLASSES = ("balloon", "kite")


def _record(image_id: int, boxes: list[tuple[int, int, int, int, int]]) -> dict:
    annotations = [
        {
            "bbox": [x, y, x + w, y + h],
            "bbox_mode": 0,
            "category_id": c,
            "iscrowd": 0,
            "segmentation": [[x, y, x + w, y, x + w, y + h, x, y + h]],
        }
        for x, y, w, h, c in boxes
    ]
    return dict(
        file_name=f"{image_id}.jpg",
        image_id=image_id,
        height=128,
        width=128,
        annotations=annotations,
    )


def _prediction(image_id: int, box: tuple[int, int, int, int, int], score: float) -> dict:
    x, y, w, h, c = box
    mask = np.zeros((128, 128), dtype=np.uint8, order="F")
    mask[y : y + h, x : x + w] = 1
    rle = pycocotools.mask.encode(mask)
    rle["counts"] = rle["counts"].decode()
    return dict(image_id=image_id, category_id=c, bbox=[x, y, w, h], score=score, segmentation=rle)


def _pycocotools(records: list[dict], predictions: list[dict], task: str) -> dict[str, float]:
    found = [p | {"category_id": p["category_id"] + 1} for p in predictions]
    return _official(to_coco(records, CLASSES), found, task)


def _official(content: dict, results: list[dict], task: str) -> dict[str, float]:
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO()
        truth.dataset = copy.deepcopy(content)
        truth.createIndex()
        evaluation = COCOeval(truth, truth.loadRes(copy.deepcopy(results)), task)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    names = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100")
    return dict(zip(names, evaluation.stats[:9] * 100, strict=True))


boxes = st.tuples(
    st.integers(0, 60),
    st.integers(0, 60),
    st.integers(2, 60),
    st.integers(2, 60),
    st.integers(0, 1),
)


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.lists(boxes, max_size=4), min_size=1, max_size=3),
    st.lists(st.tuples(st.integers(1, 3), boxes, st.integers(1, 1000)), min_size=1, max_size=12),
)
def test_numbers_are_those_of_pycocotools(truth, found):
    records = [_record(i + 1, image) for i, image in enumerate(truth)]
    # Equal scores are ordered differently by every implementation.
    found = {score: (image_id, box) for image_id, box, score in found}
    predictions = [
        _prediction(min(image_id, len(records)), box, score / 1000)
        for score, (image_id, box) in found.items()
    ]
    ours = CocoMetric(tasks=["bbox", "segm"])(records, CLASSES, predictions)
    for task in ("bbox", "segm"):
        for name, theirs in _pycocotools(records, predictions, task).items():
            mine = ours[f"{task}/{name}"]
            assert math.isnan(mine) if theirs < 0 else mine == pytest.approx(theirs, abs=1e-6)


def test_a_perfect_detector_has_ap_100():
    """Also for the first annotation, whose id pycocotools must not see as 0."""
    box = (10, 10, 40, 40, 0)
    numbers = CocoMetric()([_record(1, [box])], CLASSES, [_prediction(1, box, 0.9)])
    assert numbers["bbox/AP"] == pytest.approx(100)
    assert numbers["segm/AP"] == pytest.approx(100)
    assert numbers["segm/AP-balloon"] == pytest.approx(100)
    assert math.isnan(numbers["segm/AP-kite"])


def test_no_predictions_is_zero_and_no_truth_is_nan():
    assert CocoMetric()([_record(1, [(1, 1, 9, 9, 0)])], CLASSES, [])["segm/AP"] == 0
    numbers = CocoMetric()([_record(1, [])], CLASSES, [_prediction(1, (1, 1, 9, 9, 0), 0.5)])
    assert math.isnan(numbers["bbox/AP"])
    assert math.isnan(CocoMetric()([_record(1, [])], CLASSES, [])["bbox/AP"])


def test_scores_that_are_no_numbers_are_dropped():
    box = (10, 10, 40, 40, 0)
    good, bad = _prediction(1, box, 0.9), _prediction(1, box, math.nan)
    records = [_record(1, [box])]
    assert CocoMetric()(records, CLASSES, [bad, good]) == pytest.approx(
        CocoMetric()(records, CLASSES, [good]), nan_ok=True
    )


def test_boxes_without_masks_give_boxes_only():
    record, prediction = _record(1, [(1, 1, 9, 9, 0)]), _prediction(1, (1, 1, 9, 9, 0), 0.5)
    del prediction["segmentation"]
    assert {k.split("/")[0] for k in CocoMetric()([record], CLASSES, [prediction])} == {"bbox"}


def test_sizes_are_those_of_the_file(tmp_path):
    """COCO's areas are those of the masks as drawn, not of the polygons: they decide APs to APl."""
    truth = to_coco([_record(1, [(5, 5, 40, 40, 0), (60, 60, 60, 60, 0)])], CLASSES)
    truth["annotations"][0]["area"] = 900.0  # small, though its polygon is of medium size
    write_json(tmp_path / "truth.json", truth)
    records, _ = read_coco(tmp_path / "truth.json", tmp_path, CLASSES)
    predictions = [
        _prediction(1, (5, 5, 40, 40, 0), 0.9),
        _prediction(1, (60, 60, 50, 60, 0), 0.8),
        _prediction(1, (10, 70, 30, 20, 0), 0.7),
    ]
    ours = CocoMetric()(records, CLASSES, predictions)
    found = [p | {"category_id": p["category_id"] + 1} for p in predictions]
    for task in ("bbox", "segm"):
        official = _official(truth, found, task)
        assert official["APs"] > 0 and 0 < official["APm"] < 100 and official["APl"] < 0
        for name in ("AP", "APs", "APm"):
            assert ours[f"{task}/{name}"] == pytest.approx(official[name], abs=1e-6)
        assert math.isnan(ours[f"{task}/APl"])


@pytest.mark.parametrize("tasks", ["bbox", ["box"], ["bbox", None], [["bbox"]], 3, {"bbox": 1}])
def test_tasks_are_checked_at_once(tasks):
    with pytest.raises(UserError) as e:
        CocoMetric(tasks=tasks)
    assert repr(tasks) in str(e.value) and "bbox and segm" in str(e.value)


def test_tasks_of_a_config():
    metric = instantiate(L(CocoMetric)(tasks=["segm"]))
    box = (10, 10, 40, 40, 0)
    numbers = metric([_record(1, [box])], CLASSES, [_prediction(1, box, 0.9)])
    assert {key.split("/")[0] for key in numbers} == {"segm"}
