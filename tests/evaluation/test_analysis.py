"""Confusion matrix, score thresholds, error causes and images, checked against examples."""

import json

import msgspec
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings

from d2ext.evaluation.analysis import (
    Analysis,
    ImageScore,
    ScoreThreshold,
    analyze,
    printed,
)
from d2ext.evaluation.coco import CocoMetric
from tests.evaluation.edge_cases import HEIGHT, WIDTH, columns, datasets, rle

PARTS = {"confusion_matrix": True, "pr_curves": True, "errors": True}


def _content(objects: list[tuple]) -> dict:
    """Return three images with objects of (image, category, box)."""
    return {
        "images": [
            {"id": i, "height": HEIGHT, "width": WIDTH, "file_name": f"{i}.jpg"} for i in (1, 2, 3)
        ],
        "categories": [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}],
        "annotations": [
            {"id": i, "image_id": image, "category_id": category, "bbox": box, "area": 400}
            for i, (image, category, box) in enumerate(objects, start=1)
        ],
    }


def _result(image: int, category: int, box: list, score: float) -> dict:
    return {"image_id": image, "category_id": category, "bbox": box, "score": score}


A, B, C = [10, 10, 20, 20], [60, 60, 20, 20], [110, 20, 20, 20]


def test_the_confusion_matrix(tmp_path):
    content = _content([(1, 1, A), (1, 1, B), (1, 2, C), (2, 2, A)])
    results = [
        _result(1, 1, A, 0.9),
        _result(1, 2, B, 0.8),  # a cat detected as a dog
        _result(1, 2, C, 0.7),
        _result(3, 1, A, 0.6),  # no object
        _result(3, 1, B, 0.1),  # score too low
    ]
    analysis = Analysis(*columns(content, results, tmp_path))
    matrix = analysis.confusion_matrix(min_score=0.5)
    assert matrix.classes == ["cat", "dog"]
    assert matrix.matrix == [[1, 1, 0], [0, 1, 1], [1, 0, 0]]
    assert analysis.confusion_matrix().min_score == 0.7 == analysis.best_score().score


def test_crowds_and_difficult_objects_are_not_in_the_confusion_matrix(tmp_path):
    content = _content([(1, 1, A), (1, 1, [50, 50, 60, 60]), (2, 2, B)])
    content["annotations"][1]["iscrowd"] = 1
    content["annotations"][2]["ignore"] = 1
    results = [_result(1, 1, box, 0.9) for box in (A, [52, 52, 9, 9], [70, 70, 9, 9])]
    results.append(_result(2, 2, B, 0.9))
    analysis = Analysis(*columns(content, results, tmp_path))
    assert analysis.outcome.tolist() == [1, -1, -1, -1]
    assert analysis.confusion_matrix(0).matrix == [[1, 0, 0], [0, 0, 0], [0, 0, 0]]
    assert analysis.images().worst == analysis.images().best
    assert [c.count for c in analysis.errors().causes.values()] == [0] * 6


def test_the_threshold_with_the_highest_f1(tmp_path):
    """With 3 objects and hit, false alarm, hit, false alarm, F1 is 1/2, 2/5, 2/3, 4/7."""
    content = _content([(1, 1, A), (1, 1, B), (1, 1, C)])
    results = [
        _result(1, 1, A, 0.9),
        _result(2, 1, A, 0.8),
        _result(1, 1, B, 0.7),
        _result(2, 1, B, 0.6),
    ]
    cat, dog = Analysis(*columns(content, results, tmp_path)).pr_curves()
    assert cat.best == ScoreThreshold(
        score=0.7,
        f1=pytest.approx(2 / 3),
        precision=pytest.approx(2 / 3),
        recall=pytest.approx(2 / 3),
    )
    assert cat.curve.precision[33] == 1 and cat.curve.score[33] == 0.9
    assert cat.curve.precision[66] == pytest.approx(2 / 3)
    assert cat.curve.precision[67] == 0 and cat.curve.score[67] is None
    assert dog.best is None and dog.AP50 is None and set(dog.curve.precision) == {None}


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(datasets())
def test_thresholds_and_curves_equal_those_of_brute_force(tmp_path, dataset):
    ground_truth, found = columns(*dataset, tmp_path)
    results = analyze(ground_truth, found, "bbox", PARTS)
    json.dumps(msgspec.to_builtins(results), allow_nan=False)
    assert printed(results)
    analysis = Analysis(ground_truth, found)
    ap50 = CocoMetric(["bbox"], iou_thresholds=[0.5])(ground_truth, found)
    for c, curve in enumerate(results["pr_curves"]):
        expected = ap50[f"bbox/AP-{curve.name}"]
        assert curve.AP50 == pytest.approx(expected if expected == expected else None, abs=1e-9)
        ours = (found.label == c) & (analysis.outcome >= 0)
        best = 0.0
        for score in set(found.scores[ours]):
            kept = ours & (found.scores >= score)
            hits = np.sum(analysis.outcome[kept] == 1)
            best = max(best, 2 * hits / (np.sum(kept) + curve.objects))
        assert (curve.best.f1 if curve.best else 0) == pytest.approx(best)
    matrix = np.array(analysis.confusion_matrix(0).matrix)
    assert matrix[:-1].sum() == analysis.counted.sum()
    assert matrix[:, :-1].sum() == (analysis.outcome >= 0).sum()


def test_errors_by_cause(tmp_path):
    """There is one error of each kind, and a hit."""
    content = _content([(1, 1, A), (1, 2, B), (2, 1, A), (3, 2, A), (3, 1, C), (1, 1, C)])
    results = [
        _result(1, 1, A, 0.9),
        _result(1, 1, [11, 10, 20, 20], 0.8),  # a second detection
        _result(1, 1, B, 0.7),  # wrong class
        _result(2, 1, [20, 10, 20, 20], 0.6),  # IoU 1/3
        _result(2, 2, C, 0.5),  # no object
        _result(3, 1, [20, 10, 20, 20], 0.4),  # wrong class and place
        _result(1, 1, C, 0.3),
    ]
    errors = Analysis(*columns(content, results, tmp_path)).errors()
    counts = {cause: numbers.count for cause, numbers in errors.causes.items()}
    assert counts == {"Cls": 1, "Dupe": 1, "Loc": 1, "Bkg": 1, "Both": 1, "Miss": 2}


NEAR_A, NEAR_B = [20, 10, 20, 20], [70, 60, 20, 20]  # IoU 1/3
CAT_A, CAT_B, DOG_C = (1, 1, A), (1, 1, B), (2, 2, C)


@pytest.mark.parametrize(
    ("cause", "objects", "found", "before", "after"),
    [
        # One of two is found, so precision is 1 at the recalls 0, 0.01, ..., 0.5: 51 of 101.
        ("Loc", [CAT_A, CAT_B], [(1, 1, A), (1, 1, NEAR_B)], 51 / 101, 1),
        ("Miss", [CAT_A, CAT_B], [(1, 1, A)], 51 / 101, 1),
        ("Bkg", [CAT_A], [(3, 1, A), (1, 1, A)], 1 / 2, 1),
        ("Dupe", [CAT_A, CAT_B], [(1, 1, A), (1, 1, A), (1, 1, B)], (51 + 50 * 2 / 3) / 101, 1),
        ("Cls", [CAT_A], [(1, 2, A)], 0, 1),
        # The AP is the mean over two classes, and the other one is missed.
        ("Both", [CAT_A, DOG_C], [(1, 2, NEAR_A), (2, 2, C)], 1 / 4, 1 / 2),
    ],
)
def test_the_ap_lost_to_a_cause(tmp_path, cause, objects, found, before, after):
    results = [_result(*what, 0.9 - 0.1 * i) for i, what in enumerate(found)]
    errors = Analysis(*columns(_content(objects), results, tmp_path)).errors()
    assert errors.causes[cause].count == 1
    assert errors.AP50 == pytest.approx(100 * before, abs=1e-9)
    assert errors.causes[cause].delta_AP == pytest.approx(100 * (after - before), abs=1e-9)


def test_only_masks_matter_for_the_analysis_of_masks(tmp_path):
    """All three boxes are correct, but one mask is elsewhere and one is too small."""
    content = _content([CAT_A, CAT_B, (1, 2, C)])
    for annotation in content["annotations"]:
        annotation["segmentation"] = rle(annotation["bbox"])
    shapes = [(1, A, A), (1, B, [68, 68, 4, 4]), (2, C, [112, 22, 12, 12])]
    results = [
        _result(1, category, box, 0.9) | {"segmentation": rle(shape)}
        for category, box, shape in shapes
    ]
    ground_truth, found = columns(content, results, tmp_path)
    boxes, masks = (Analysis(ground_truth, found, task) for task in ("bbox", "segm"))
    assert boxes.confusion_matrix(0).matrix == [[2, 0, 0], [0, 1, 0], [0, 0, 0]]
    assert masks.confusion_matrix(0).matrix == [[1, 0, 1], [0, 0, 1], [1, 1, 0]]
    counts = {cause: row.count for cause, row in masks.errors().causes.items()}
    assert counts == {"Cls": 0, "Dupe": 0, "Loc": 1, "Bkg": 1, "Both": 0, "Miss": 1}
    assert masks.errors().AP50 == pytest.approx(100 * (51 / 101) / 2, abs=1e-9)
    assert boxes.errors().AP50 == 100


def test_best_and_worst_images(tmp_path):
    content = _content([(1, 1, A), (1, 1, B), (2, 1, A), (2, 2, C)])
    results = [_result(1, 1, A, 0.9), _result(1, 1, B, 0.9), _result(2, 1, A, 0.9)]
    images = Analysis(*columns(content, results, tmp_path)).images()
    assert [i.image_id for i in images.best] == [1, 2]  # the third image is empty
    assert images.worst[0] == ImageScore(
        image_id=2,
        file_name="2.jpg",
        f1=pytest.approx(2 / 3),
        hits=1,
        false_alarms=0,
        missed=1,
    )
