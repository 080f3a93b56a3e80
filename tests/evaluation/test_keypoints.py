"""Keypoints are compared by OKS, with pycocotools' results, from models and from files."""

import contextlib
import copy
import io
import json
import math

import numpy as np
import pytest
import torch
from detectron2.config import LazyCall as L
from detectron2.data import DatasetCatalog, MetadataCatalog, get_detection_dataset_dicts
from detectron2.data.datasets import register_coco_instances
from detectron2.evaluation import COCOEvaluator
from detectron2.evaluation.coco_evaluation import instances_to_coco_json
from detectron2.structures import Boxes, Instances
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from d2ext.errors import UserError
from d2ext.evaluation.coco import CocoMetric
from d2ext.evaluation.instances import detection_columns, ground_truth_columns
from d2ext.evaluation.offline import evaluate_files
from d2ext.evaluation.predictions import predict, write_predictions
from d2ext.evaluation.suite import Suite
from tests.evaluation.edge_cases import columns
from tests.evaluation.repeated import (
    assert_close,
    distinct_scores,
    draws_of_images,
    one_draw,
    repeated_images,
)

BACKENDS = ("hotcoco", "pycocotools")
NAMES = ("AP", "AP50", "AP75", "APm", "APl", "AR", "AR50", "AR75", "ARm", "ARl")
SIDE = 200


def _official(content, results, sigmas=None):
    """Return pycocotools' results in percent, with NaN for -1."""
    with contextlib.redirect_stdout(io.StringIO()):
        ground_truth, found = COCO(), COCO()
        ground_truth.dataset = copy.deepcopy(content)
        ground_truth.createIndex()
        if results:
            found = ground_truth.loadRes(copy.deepcopy(results))
        else:
            found.dataset = {**ground_truth.dataset, "annotations": []}
            found.createIndex()
        evaluation = COCOeval(ground_truth, found, "keypoints")
        if sigmas:
            evaluation.params.kpt_oks_sigmas = np.array(sigmas)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    numbers = [100 * v if v > -1 else math.nan for v in evaluation.stats]
    return {f"keypoints/{name}": v for name, v in zip(NAMES, numbers, strict=True)}


def _dataset(seed, points=17, categories=2):
    """Return a COCO dict and results with crowds, objects without labeled keypoints, and ties."""
    random = np.random.default_rng(seed)
    annotations, results = [], []

    def result(image, category, box, places):
        values = np.column_stack([places, random.random(points)])
        row = {"image_id": image, "category_id": category, "bbox": box.tolist()}
        results.append(
            row | {"score": round(random.random(), 1), "keypoints": values.reshape(-1).tolist()}
        )

    for image in (4, 7, 9):
        for _ in range(random.integers(0, 5)):
            box = np.r_[random.uniform(0, 100, 2), random.uniform(5, 100, 2)]
            visible = random.integers(0, 3, points) * (random.random() > 0.25)
            places = np.round(box[:2] + random.random((points, 2)) * box[2:])
            values = np.column_stack([places * (visible > 0)[:, None], visible])
            category = int(random.integers(1, categories + 1))
            annotations.append(
                {
                    **{"id": len(annotations) + 1, "image_id": image, "category_id": category},
                    **{"bbox": box.tolist(), "iscrowd": int(random.random() < 0.15)},
                    "area": box[2] * box[3] * random.uniform(0.3, 0.8),
                    "keypoints": values.reshape(-1).tolist(),
                    "num_keypoints": int(np.count_nonzero(visible)),
                }
            )
            for _ in range(random.integers(0, 3)):
                near = box + np.r_[random.normal(0, 4, 2), random.uniform(0, 4, 2)]
                spread = random.choice([1, 5, 20])
                result(image, category, near, places + random.normal(0, spread, (points, 2)))
        box = np.r_[random.uniform(0, 100, 2), random.uniform(5, 100, 2)]
        result(image, 1, box, box[:2] + random.random((points, 2)) * box[2:])
    names = [{"id": i + 1, "name": f"class {i}"} for i in range(categories)]
    images = [{"id": i, "file_name": "", "height": SIDE, "width": SIDE} for i in (4, 7, 9)]
    return {"images": images, "annotations": annotations, "categories": names}, results


def _read(content, results):
    """Return ground truth and detections as a run would have them."""
    labels = {c["id"]: i for i, c in enumerate(content["categories"])}
    points = len(content["annotations"][0]["keypoints"]) // 3 if content["annotations"] else 0
    shift = np.tile([0.5, 0.5, 0], points)
    records = [
        {
            **{"file_name": "", "image_id": image["id"], "height": SIDE, "width": SIDE},
            "annotations": [
                {**a, "bbox_mode": 1, "category_id": labels[a["category_id"]]}
                | {"keypoints": (np.array(a["keypoints"]) + shift).tolist()}
                for a in content["annotations"]
                if a["image_id"] == image["id"]
            ],
        }
        for image in content["images"]
    ]
    ground_truth = ground_truth_columns(records, [c["name"] for c in content["categories"]])
    found = [{**r, "category_id": labels[r["category_id"]]} for r in results]
    return ground_truth, detection_columns(ground_truth, found)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from([17, 3]), st.booleans())
def test_both_backends_equal_pycocotools(seed, points, nothing_found):
    content, results = _dataset(seed, points)
    results = [] if nothing_found else results
    sigmas = None if points == 17 else [0.05, 0.1, 0.02]
    expected = pytest.approx(_official(content, results, sigmas), abs=1e-9, rel=0, nan_ok=True)
    for backend in BACKENDS:
        metric = CocoMetric(["keypoints"], False, backend=backend, oks_sigmas=sigmas)
        numbers = metric(*_read(content, results))
        assert numbers == expected
        assert numbers.keys() == metric.keys(["a", "b"], ["bbox"])


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000), draws_of_images)
def test_draws_of_images_equal_datasets_of_these_images(seed, draw):
    ground_truth, found = _read(*_dataset(seed))
    for backend in BACKENDS:
        metric = CocoMetric(["keypoints"], backend=backend)
        numbers = metric(ground_truth, found)
        assert_close(one_draw(metric, ground_truth, found, [1, 1, 1]), numbers)
        distinct = distinct_scores(found)
        repeated = metric(*repeated_images(ground_truth, distinct, draw[:3]))
        assert_close(one_draw(metric, ground_truth, distinct, draw[:3]), repeated)


def test_results_of_a_file_equal_pycocotools(tmp_path):
    content, results = _dataset(3)
    boxless = [{key: v for key, v in r.items() if key != "bbox"} for r in results]
    (tmp_path / "truth.json").write_text(json.dumps(content))
    for found in (results, boxless):
        (tmp_path / "found.json").write_text(json.dumps(found))
        files = tmp_path / "found.json", tmp_path / "truth.json"
        numbers = evaluate_files(files[:1], files[1], ["coco"], tasks=["keypoints"])
        theirs = {f"coco/{key}": value for key, value in _official(content, found).items()}
        assert numbers == pytest.approx(theirs, abs=1e-9, rel=0, nan_ok=True)
    assert evaluate_files(files[:1], files[1], ["coco"]).keys() > {
        "coco/keypoints/AP",
        "coco/bbox/AP",
    }


def test_keypoints_are_evaluated_if_data_and_model_have_them():
    content, results = _dataset(1)
    ground_truth, found = _read(content, results)
    metric = CocoMetric()
    assert metric.keys(["a"], ["bbox", "keypoints"]) >= {"keypoints/AP-a", "keypoints/ARl"}
    assert "keypoints/AP" in metric(ground_truth, found)
    boxes = [{key: v for key, v in r.items() if key != "keypoints"} for r in results]
    _, only_boxes = _read(content, boxes)
    assert "keypoints/AP" not in metric(ground_truth, only_boxes)
    with pytest.raises(UserError, match="the task keypoints needs keypoints"):
        CocoMetric(["keypoints"])(ground_truth, only_boxes)


def test_another_number_of_keypoints_needs_their_sigmas():
    content, results = _dataset(1, points=3)
    with pytest.raises(UserError, match="the objects have 3 keypoints, but CocoMetric has 17 oks"):
        CocoMetric()(*_read(content, results))
    for wrong in ("0.1", [0.1, 0], []):
        with pytest.raises(UserError, match="oks_sigmas="):
            CocoMetric(oks_sigmas=wrong)


def test_difficult_objects_are_ignored_by_both_backends():
    content, results = _dataset(5)
    for annotation in content["annotations"][::2]:
        annotation["difficult"] = True
    numbers = [
        CocoMetric(["keypoints"], backend=backend)(*_read(content, results)) for backend in BACKENDS
    ]
    assert numbers[0] == pytest.approx(numbers[1], abs=1e-9, rel=0, nan_ok=True)
    for annotation in content["annotations"][::2]:
        annotation |= {"num_keypoints": 0}
    theirs = _official(content, results)
    assert {k: numbers[0][k] for k in theirs} == pytest.approx(theirs, abs=1e-9, nan_ok=True)


class Found(torch.nn.Module):
    """Detect two objects with three keypoints each."""

    def forward(self, inputs):
        return [{"instances": self.instances()} for _ in inputs]

    def instances(self):
        found = Instances((SIDE, SIDE))
        found.pred_boxes = Boxes(torch.tensor([[0.0, 0, 30, 40], [50, 50, 90, 70]]))
        found.scores, found.pred_classes = torch.tensor([0.75, 0.5]), torch.tensor([0, 0])
        found.pred_keypoints = torch.arange(18.0).reshape(2, 3, 3)
        return found


def test_detections_of_a_model_are_written_as_detectron2_does(tmp_path):
    MetadataCatalog.get("keypoint_file").set(thing_classes=["a"])
    found = predict(Found(), [[{"image_id": 7}], [{"image_id": 4}]], [4, 7])
    file = write_predictions("keypoint_file", found.detections, [4, 7], tmp_path)
    theirs = [r for i in (4, 7) for r in instances_to_coco_json(Found().instances(), i)]
    assert json.loads(file.read_text()) == [{**r, "category_id": 1} for r in theirs]


def test_objects_with_different_keypoints_are_evaluated_without_them(tmp_path):
    content, results = _dataset(1)
    content["annotations"][0]["keypoints"] = [1, 1, 1]
    (tmp_path / "truth.json").write_text(json.dumps(content))
    (tmp_path / "found.json").write_text(json.dumps(results))
    numbers = evaluate_files([tmp_path / "found.json"], tmp_path / "truth.json", ["coco"])
    assert "coco/bbox/AP" in numbers and "coco/keypoints/AP" not in numbers


class Replayed(torch.nn.Module):
    """Return the detections of a results list."""

    def __init__(self, results):
        super().__init__()
        self.results = results

    def forward(self, inputs):
        return [{"instances": self._instances(sample["image_id"])} for sample in inputs]

    def _instances(self, image_id):
        rows = [r for r in self.results if r["image_id"] == image_id]
        boxes = np.array([r["bbox"] for r in rows]).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        found = Instances((SIDE, SIDE))
        found.pred_boxes = Boxes(torch.tensor(boxes))
        found.scores = torch.tensor([r["score"] for r in rows], dtype=torch.float64)
        found.pred_classes = torch.tensor([r["category_id"] - 1 for r in rows], dtype=torch.long)
        keypoints = np.array([r["keypoints"] for r in rows]).reshape(-1, 17, 3) + [0.5, 0.5, 0]
        found.pred_keypoints = torch.tensor(keypoints)
        return found


def _batches(dataset):
    return [[record] for record in dataset]


def test_a_run_equals_detectron2s_coco_evaluator(tmp_path):
    content, results = _dataset(8)
    (tmp_path / "truth.json").write_text(json.dumps(content))
    register_coco_instances("keypoint_run", {}, str(tmp_path / "truth.json"), str(tmp_path))
    tasks = ["bbox", "keypoints"]
    evaluators = {
        "ours": L(CocoMetric)(tasks=tasks),
        "theirs": L(COCOEvaluator)(tasks=tasks, use_fast_impl=False),
    }
    loader = L(_batches)(dataset=L(get_detection_dataset_dicts)(filter_empty=False, names=""))
    loader.dataset.names = "keypoint_run"
    suite = Suite(loader, OmegaConf.create(evaluators, flags={"allow_objects": True}))
    (evaluation,) = suite.evaluate(Replayed(results))
    DatasetCatalog.remove("keypoint_run")
    found = {"ours": {}, "theirs": {}}
    for key, value in evaluation.results.items():
        _, whose, name = key.split("/", 2)
        found[whose][name] = value
    assert {"keypoints/AP", "keypoints/APl", "bbox/AP50"} <= found["theirs"].keys()
    ours = {name: found["ours"][name] for name in found["theirs"]}
    assert ours == pytest.approx(found["theirs"], abs=1e-9, rel=0, nan_ok=True)


def test_malformed_keypoints_of_a_file_are_refused(tmp_path):
    content, results = _dataset(1)
    results[0]["keypoints"] = results[0]["keypoints"][:6]
    with pytest.raises(UserError, match="found.json: the keypoints are not"):
        columns(content, results, tmp_path)
