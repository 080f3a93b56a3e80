"""Both backends give pycocotools' results, and edge cases have defined results."""

import copy
import dataclasses
import logging
import math
from pathlib import Path

import numpy as np
import pytest
from detectron2.config import LazyCall as L
from detectron2.config import instantiate
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from d2ext.data.formats.coco import read_coco, to_coco
from d2ext.data.formats.via import read_via, via_classes
from d2ext.errors import UserError
from d2ext.evaluation.coco import CocoMetric
from d2ext.evaluation.instances import detection_columns, ground_truth_columns
from d2ext.evaluation.lvis import LvisMetric
from d2ext.evaluation.open_images import OpenImagesMetric
from d2ext.evaluation.voc import VocMetric
from tests.evaluation.edge_cases import HEIGHT, WIDTH, columns, corners, datasets, official, rle

BACKENDS = ("hotcoco", "pycocotools")
backends = pytest.mark.parametrize("backend", BACKENDS)
# Flags of objects, and values that may be absent.
UNUSUAL = [{}, {}, {"ignore": 1}, {"difficult": True}, {"is_group_of": 1}, {"segmentation": None}]
UNUSUAL += [{"area": None}, {"area": 0}, {"area": 1e12}, {"iscrowd": None}, {"id": 0}]


def _close(ours: dict[str, float], theirs: dict[str, float]) -> None:
    assert ours == pytest.approx(theirs, abs=1e-9, rel=0, nan_ok=True)


@settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))
@given(datasets())
def test_both_backends_equal_pycocotools(tmp_path, dataset):
    content, results = dataset
    ground_truth, found = columns(content, results, tmp_path)
    for task in ("bbox", "segm"):
        theirs = official(content, results, task)
        for backend in BACKENDS:
            metric = CocoMetric(tasks=[task], per_class=False, backend=backend)
            _close(metric(ground_truth, found), {f"{task}/{k}": v for k, v in theirs.items()})


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    datasets(),
    st.lists(st.sampled_from([0.1, 0.5, 0.6, 0.75, 1.0]), min_size=1, unique=True).map(sorted),
    st.lists(st.integers(1, 9), min_size=1, unique=True).map(sorted),
    st.lists(st.sampled_from(UNUSUAL), min_size=8, max_size=8),
)
def test_both_backends_agree_for_all_arguments(tmp_path, dataset, thresholds, limits, extras):
    content, results = dataset
    for annotation, extra in zip(content["annotations"], extras, strict=False):
        annotation |= extra
    ground_truth, found = columns(content, results, tmp_path)
    hotcoco, pycocotools = (
        CocoMetric(
            ["bbox", "segm", "proposals"],
            iou_thresholds=thresholds,
            max_detections=limits,
            backend=backend,
        )
        for backend in BACKENDS
    )
    numbers = hotcoco(ground_truth, found)
    _close(numbers, pycocotools(ground_truth, found))
    assert numbers.keys() == hotcoco.keys(ground_truth.classes, ["bbox"])


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(datasets())
def test_proposals_equal_pycocotools(tmp_path, dataset):
    content, results = dataset
    numbers = CocoMetric(["proposals"])(*columns(content, results, tmp_path))
    theirs = official(content, results, "bbox", useCats=0, maxDets=[100, 300, 1000])
    for ours, name in [("AR@100", "AR1"), ("AR@300", "AR10"), ("AR@1000", "AR100")]:
        _close({"": numbers[f"proposals/{ours}"]}, {"": theirs[name]})
    _close({"": numbers["proposals/ARs@1000"]}, {"": theirs["ARs"]})


def _content(*images: list[list]) -> dict:
    """Return images with objects of [x, y, width, height, class]."""
    objects = [(i, *o) for i, image in enumerate(images, start=1) for o in image]
    return {
        "images": [
            {"id": i + 1, "file_name": f"{i}.jpg", "height": HEIGHT, "width": WIDTH}
            for i in range(len(images))
        ],
        "categories": [{"id": 1, "name": "balloon"}, {"id": 2, "name": "kite"}],
        "annotations": [
            {
                "id": i,  # the first is 0, which means "no match" to pycocotools
                "image_id": image,
                "category_id": category,
                "bbox": box,
                "area": box[2] * box[3],
                "iscrowd": 0,
                "segmentation": corners(box),
            }
            for i, (image, *box, category) in enumerate(objects)
        ],
    }


def _result(image: int, category: int, box: list[float], score: float) -> dict:
    return {"image_id": image, "category_id": category, "bbox": box, "score": score}


def _copied(content: dict) -> list[dict]:
    """Return perfect results."""
    return [
        _result(a["image_id"], a["category_id"], a["bbox"], 0.9)
        for a in content["annotations"]
        if not a["iscrowd"]
    ]


@backends
def test_a_perfect_detector_scores_exactly_100(tmp_path, backend):
    content = _content([[10, 10, 40, 40, 1], [60, 60, 20, 20, 1]])
    numbers = CocoMetric(backend=backend)(*columns(content, _copied(content), tmp_path))
    assert numbers["bbox/AP"] == numbers["bbox/AP50"] == numbers["bbox/AP-balloon"] == 100
    assert numbers["bbox/APs"] == numbers["bbox/APm"] == numbers["bbox/AR100"] == 100
    assert numbers["bbox/AR1"] == 50
    assert math.isnan(numbers["bbox/APl"]) and math.isnan(numbers["bbox/AP-kite"])


@backends
@pytest.mark.parametrize("shift, thresholds", [(1, 8), (2, 6), (3, 4), (5, 1), (6, 0), (40, 0)])
def test_shifted_boxes_score_as_computed_by_hand(tmp_path, backend, shift, thresholds):
    """A 16 x 16 box moved by s has the IoU (16 - s) / (16 + s): .88, .78, .68, .52, .45, 0."""
    content = _content([[10, 10, 16, 16, 1]], [[30, 50, 16, 16, 2]])
    moved = copy.deepcopy(_copied(content))
    for result in moved:
        result["bbox"][0] += shift
    numbers = CocoMetric(backend=backend)(*columns(content, moved, tmp_path))
    assert numbers["bbox/AP"] == pytest.approx(10 * thresholds, abs=1e-9)
    assert numbers["bbox/AP50"] == (100 if thresholds else 0)


@backends
def test_no_detections_means_0_and_no_objects_means_nan(tmp_path, backend):
    metric = CocoMetric(["bbox", "proposals"], backend=backend)
    content = _content([[10, 10, 40, 40, 1]])
    numbers = metric(*columns(content, [], tmp_path))
    assert numbers["bbox/AP"] == numbers["bbox/AR100"] == numbers["proposals/AR@100"] == 0
    empty, found = _content([]), [_result(1, 1, [1, 1, 9, 9], 0.5)]
    for results in (found, []):
        assert all(map(math.isnan, metric(*columns(empty, results, tmp_path)).values()))
    empty["images"] = []
    assert all(map(math.isnan, metric(*columns(empty, [], tmp_path)).values()))
    masks = CocoMetric(["segm"], backend=backend)
    assert masks(*columns(content, [], tmp_path))["segm/AP"] == 0


@pytest.mark.parametrize(
    ("columns_of_model", "tasks"),
    [
        ({}, {"bbox", "segm"}),
        ({"masks": []}, {"bbox", "segm"}),
        ({"keypoints": np.zeros((0, 17, 3))}, {"bbox"}),
    ],
)
def test_tasks_of_a_model_that_finds_nothing(tmp_path, columns_of_model, tasks):
    """A model with a keypoint head has no results for masks."""
    ground_truth, found = columns(_content([[10, 10, 40, 40, 1]]), [], tmp_path)
    found = dataclasses.replace(found, **columns_of_model)
    assert {key.split("/")[0] for key in CocoMetric()(ground_truth, found)} == tasks


@backends
def test_difficult_objects_are_neither_hit_nor_miss(tmp_path, backend):
    content = _content([[10, 10, 40, 40, 1], [60, 60, 20, 20, 1]])
    content["annotations"][1]["ignore"] = 1
    both = _copied(content)
    both[1]["score"] = 1.0
    for results in (both, both[:1]):
        metric = CocoMetric(backend=backend)
        assert metric(*columns(content, results, tmp_path))["bbox/AP"] == 100
    both.append(_result(1, 1, [61, 61, 20, 20], 0.95))  # only one detection is ignored
    assert metric(*columns(content, both, tmp_path))["bbox/AP"] == 50


@backends
def test_groups_are_crowds(tmp_path, backend):
    content = _content([[10, 10, 40, 40, 1], [60, 60, 60, 40, 1]])
    content["annotations"][1]["is_group_of"] = True
    results = _copied(content)[:1]
    results += [_result(1, 1, [60 + x, 60, 10, 10], 0.95) for x in (0, 10, 20)]
    assert CocoMetric(backend=backend)(*columns(content, results, tmp_path))["bbox/AP"] == 100


@backends
def test_detections_with_non_finite_values_are_dropped(tmp_path, backend, caplog):
    content = _content([[10, 10, 40, 40, 1]])
    results = _copied(content)
    good = CocoMetric(backend=backend)(*columns(content, results, tmp_path))
    bad = [_result(1, 1, [10, 10, 41, 40], math.nan), _result(1, 1, [9, 9, 41, 40], math.inf)]
    bad += [_result(1, 1, [10, 10, math.nan, 40], 0.95)]
    _close(CocoMetric(backend=backend)(*columns(content, bad + results, tmp_path)), good)
    assert "3 of 4 detections dropped" in caplog.text


@backends
def test_objects_without_a_mask_have_their_box_as_mask(tmp_path, backend):
    content = _content([[10, 10, 40, 40, 1], [60, 60, 20, 20, 1]])
    del content["annotations"][1]["segmentation"]
    results = [r | {"segmentation": _rectangle(r["bbox"])} for r in _copied(content)]
    assert CocoMetric(backend=backend)(*columns(content, results, tmp_path))["segm/AP"] == 100


def _rectangle(box: list[int]) -> dict:
    x, y, w, h = box
    counts = [x * HEIGHT + y, *([h, HEIGHT - h] * w)][:-1]
    return {"size": [HEIGHT, WIDTH], "counts": [*counts, HEIGHT * WIDTH - sum(counts)]}


@backends
def test_a_single_class_has_its_own_line(tmp_path, backend, caplog):
    content = _content([[10, 10, 40, 40, 1]])
    del content["categories"][1]
    with caplog.at_level(logging.INFO):
        numbers = CocoMetric(backend=backend)(*columns(content, _copied(content), tmp_path))
    assert numbers["bbox/AP-balloon"] == 100
    assert "balloon" in caplog.text and f"COCO bbox ({backend})" in caplog.text


def test_masks_are_evaluated_if_both_sides_have_them(tmp_path):
    content = _content([[10, 10, 40, 40, 1]])
    boxes = _copied(content)
    masks = [r | {"segmentation": rle(r["bbox"])} for r in boxes]
    for results, tasks in ((boxes, {"bbox"}), (masks, {"bbox", "segm"}), ([], {"bbox", "segm"})):
        numbers = CocoMetric()(*columns(content, results, tmp_path))
        assert {key.split("/")[0] for key in numbers} == tasks
    with pytest.raises(UserError, match="needs masks"):
        CocoMetric(["segm"])(*columns(content, boxes, tmp_path))


@pytest.mark.parametrize("tasks", ["bbox", [], ["box"], ["bbox", None], [["bbox"]], 3, {"bbox": 1}])
def test_tasks_are_checked_on_creation(tasks):
    with pytest.raises(UserError) as e:
        CocoMetric(tasks=tasks)
    assert repr(tasks) in str(e.value) and "bbox, segm, keypoints and proposals" in str(e.value)


@pytest.mark.parametrize(
    "wrong",
    [
        {"iou_thresholds": []},
        {"iou_thresholds": [0.5, 0.5]},
        {"iou_thresholds": [0, 0.5]},
        {"iou_thresholds": [50]},
        {"iou_thresholds": 0.5},
        {"max_detections": [100, 10]},
        {"max_detections": [1.5]},
        {"max_detections": [0]},
        {"backend": "fast"},
        {"per_class": "no"},
    ],
)
def test_settings_are_checked_on_creation(wrong):
    with pytest.raises(UserError, match=next(iter(wrong))):
        CocoMetric(**wrong)


def test_settings_from_a_config(tmp_path):
    metric = instantiate(L(CocoMetric)(tasks=["bbox"], iou_thresholds=[0.3], max_detections=[7]))
    content = _content([[10, 10, 40, 40, 1]])
    numbers = metric(*columns(content, _copied(content), tmp_path))
    assert numbers["bbox/AP"] == numbers["bbox/AR7"] == 100 and "bbox/AP50" not in numbers


def test_dataset_dicts_give_the_same_results_as_their_file(tmp_path):
    """APs to APl depend on the areas in the file, which differ from those of the polygons."""
    content = _content([[5, 5, 40, 40, 1], [60, 60, 60, 50, 2]])
    content["annotations"][0]["area"] = 900.0  # small, although its polygon is medium-sized
    results = [r | {"segmentation": rle(r["bbox"])} for r in _copied(content)]
    results.append(_result(1, 1, [10, 70, 30, 20], 0.7) | {"segmentation": rle([10, 70, 30, 20])})
    expected = CocoMetric()(*columns(content, results, tmp_path))
    assert expected["bbox/APs"] == 100 and math.isnan(expected["bbox/APl"])
    records, ids = read_coco(tmp_path / "ground_truth.json", tmp_path)
    ground_truth = ground_truth_columns(records, ["balloon", "kite"])
    found = [r | {"category_id": ids[r["category_id"]]} for r in results]
    _close(CocoMetric()(ground_truth, detection_columns(ground_truth, found)), expected)


def _balloons(folder: Path, classes: list[str]) -> dict:
    records = read_via(folder / "via_region_data.json", folder, ["balloon"])
    for i, record in enumerate(records, start=1):
        record["image_id"] = i
    return to_coco(records, classes)


def _balloons_with_crowds(folder: Path) -> dict:
    """Return the balloons as COCO; every third is a kite, every seventh a crowd with RLE."""
    from pycocotools import mask

    content = _balloons(folder, ["balloon", "kite"])
    sizes = {i["id"]: (i["height"], i["width"]) for i in content["images"]}
    categories = [c["id"] for c in content["categories"]]
    for i, a in enumerate(content["annotations"]):
        a["category_id"] = categories[i % 3 == 0]
        if i % 7 == 0:
            (shape,) = mask.frPyObjects(a["segmentation"], *sizes[a["image_id"]])
            a["segmentation"] = {**shape, "counts": shape["counts"].decode()}
            a["iscrowd"] = 1
    return content


@pytest.mark.parametrize("split", ["train", "val"])
def test_real_photos_with_crowds(tmp_path, real_balloon, split):
    """With moved, missing and invented objects, both backends give pycocotools' results."""
    content = _balloons_with_crowds(real_balloon / split)
    rng = np.random.default_rng(0)
    sizes = {i["id"]: (i["height"], i["width"]) for i in content["images"]}
    names, results = [c["id"] for c in content["categories"]], []
    for a in content["annotations"]:
        for wrong in rng.choice([0.02, 0.1, 0.3], rng.integers(0, 4)):
            box = np.array(a["bbox"]) + rng.normal(0, wrong, 4) * np.tile(a["bbox"][2:], 2)
            box = np.abs(box).round(2).tolist()
            category = a["category_id"] if rng.random() < 0.8 else int(rng.choice(names))
            result = _result(a["image_id"], category, box, round(rng.random(), 1))
            results.append(result | {"segmentation": rle(box, *sizes[a["image_id"]])})
    ground_truth, found = columns(content, results, tmp_path)
    for task in ("bbox", "segm"):
        theirs = official(content, results, task)
        assert 1 < theirs["AP"] < 99
        for backend in BACKENDS:
            numbers = CocoMetric([task], per_class=False, backend=backend)(ground_truth, found)
            _close(numbers, {f"{task}/{k}": v for k, v in theirs.items()})


def _perfect(content: dict, folder: Path) -> None:
    ground_truth = columns(content, [], folder)[0]
    sizes = {i["id"]: (i["height"], i["width"]) for i in content["images"]}
    from pycocotools import mask

    results = []
    for a in content["annotations"]:
        if not a["iscrowd"]:
            shape = a["segmentation"]
            if isinstance(shape, list):
                shape = mask.merge(mask.frPyObjects(shape, *sizes[a["image_id"]]))
                shape["counts"] = shape["counts"].decode()
            result = _result(a["image_id"], a["category_id"], a["bbox"], 0.9)
            results.append(result | {"segmentation": shape})
    ground_truth, found = columns(content, results, folder)
    for backend in BACKENDS:
        numbers = CocoMetric(max_detections=[100], backend=backend)(ground_truth, found)
        assert {v for v in numbers.values() if not math.isnan(v)} == {100}
        assert {"bbox/AP", "segm/AP"} <= {k for k, v in numbers.items() if v == 100}
    others = [VocMetric([0.5, 0.95, 1]), VocMetric(mode="11points"), VocMetric(plus_one=True)]
    for metric in (*others, OpenImagesMetric(), LvisMetric(per_class=True)):
        numbers = metric(ground_truth, found)
        assert {v for v in numbers.values() if not math.isnan(v)} == {100}, type(metric)
    # Detecting the crowds as well does not change the result.
    crowds = [a for a in content["annotations"] if a["iscrowd"]]
    results = [{k: v for k, v in r.items() if k != "segmentation"} for r in results]
    results += [_result(a["image_id"], a["category_id"], a["bbox"], 0.95) for a in crowds]
    ground_truth, found = columns(content, results, folder)
    for metric in (CocoMetric(["bbox"], max_detections=[100]), *others, OpenImagesMetric()):
        numbers = metric(ground_truth, found)
        assert {v for v in numbers.values() if not math.isnan(v)} == {100}, type(metric)


@pytest.mark.parametrize("split", ["train", "val"])
def test_perfect_detections_on_photos_with_crowds(tmp_path, real_balloon, split):
    _perfect(_balloons_with_crowds(real_balloon / split), tmp_path)


def test_perfect_detections_on_shapes_drawn_with_via(tmp_path, via_shapes):
    path = via_shapes / "via_region_data.json"
    classes, _ = via_classes(path)
    records = read_via(path, via_shapes, classes)
    _perfect(to_coco(records, classes), tmp_path)


@pytest.mark.parametrize("split", ["train", "val"])
def test_perfect_detections_on_the_balloons(tmp_path, real_balloon, split):
    _perfect(_balloons(real_balloon / split, ["balloon"]), tmp_path)
