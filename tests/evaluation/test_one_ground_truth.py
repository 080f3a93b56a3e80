"""Runs and evaluate.py read the same ground truth from a file."""

import json
import math

import numpy as np
import pytest
from detectron2.config import LazyCall as L
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image

from d2ext.data.convert import convert_to_coco
from d2ext.data.datasets.declare import coco_dataset
from d2ext.data.datasets.register import register_datasets, unregister_datasets
from d2ext.evaluation.coco import CocoMetric
from d2ext.evaluation.dataset_file import read_dataset
from d2ext.evaluation.instances import GroundTruth, ground_truth_columns
from d2ext.evaluation.open_images import OpenImagesMetric
from d2ext.evaluation.voc import VocMetric
from tests.evaluation.columns import detections
from tests.evaluation.edge_cases import HEIGHT, WIDTH, corners, rle

COLUMNS = ("image", "label", "boxes", "areas", "crowd", "difficult", "group_of")
BOXES = [[10, 10, 40, 40], [60, 60, 20, 20], [100, 20, 30, 30], [5, 60, 40, 50], [90, 70, 60, 40]]


@pytest.fixture
def of_a_run(tmp_path, monkeypatch):
    """Return a function that loads the ground truth from a COCO file as a run does."""
    monkeypatch.setenv("D2EXT_CACHE", str(tmp_path / "cache"))

    def load(file) -> GroundTruth:
        made = L(coco_dataset)(json_file=str(file), image_root=str(tmp_path))
        register_datasets({"one_ground_truth": made})
        records = DatasetCatalog.get("one_ground_truth")
        return ground_truth_columns(records, MetadataCatalog.get("one_ground_truth").thing_classes)

    yield load
    unregister_datasets()


def _content() -> dict:
    """Return two images, each with a plain object and an object with each flag."""
    flags = [{}, {"ignore": 1}, {"difficult": True}, {"is_group_of": 1}, {"iscrowd": 1}]
    rows = [(i, box, flag) for i in (7, 4) for box, flag in zip(BOXES, flags, strict=True)]
    return {
        "images": [
            {"id": i, "file_name": f"{i}.jpg", "height": HEIGHT, "width": WIDTH} for i in (7, 4)
        ],
        "categories": [{"id": 9, "name": "cat"}, {"id": 3, "name": "dog"}],
        "annotations": [
            {
                "id": n,
                "image_id": image,
                "category_id": 9,
                "bbox": box,
                "area": box[2] * box[3],
                "iscrowd": 0,
                "segmentation": rle(box) if "iscrowd" in flag else corners(box),
            }
            | flag
            for n, (image, box, flag) in enumerate(rows)
        ],
    }


def _numbers(ground_truth: GroundTruth) -> dict[str, float]:
    """Return the results of all box metrics for detections on and inside the objects."""
    shifts = (0, 1, 3)
    found = detections(
        [
            (image, 1, (x + shift, y, w, h), 0.9 - 0.1 * i - 0.01 * shift)
            for image in (0, 1)
            for i, (x, y, w, h) in enumerate(BOXES)
            for shift in shifts
        ]
        + [(0, 1, (x + 4, y + 4, 8, 8), 0.95) for x, y, _, _ in BOXES]
    )
    metrics = {"coco": CocoMetric(["bbox"]), "voc": VocMetric(), "oi": OpenImagesMetric()}
    return {
        f"{name}/{key}": value
        for name, metric in metrics.items()
        for key, value in metric(ground_truth, found).items()
    }


@pytest.mark.parametrize("slow_reader", [False, True])
def test_flags_have_the_same_effect_in_a_run_and_in_evaluate(tmp_path, of_a_run, slow_reader):
    content = _content()
    if slow_reader:  # the fast reader does not support these values
        del content["annotations"][0]["area"]
        content["annotations"][5]["ignore"] = False
    file = tmp_path / "flags.json"
    file.write_text(json.dumps(content))
    run, offline = of_a_run(file), read_dataset(file, with_masks=True).ground_truth
    assert offline.difficult.sum() == 4 and offline.group_of.sum() == offline.crowd.sum() == 2
    rows = (
        np.lexsort((run.boxes[:, 0], run.image)),
        np.lexsort((offline.boxes[:, 0], offline.image)),
    )
    for name in COLUMNS:
        mine, theirs = (
            getattr(t, name)[order] for t, order in zip((run, offline), rows, strict=True)
        )
        assert mine.tolist() == theirs.tolist(), name
    numbers, expected = _numbers(run), _numbers(offline)
    assert numbers == pytest.approx(expected, abs=1e-9, nan_ok=True)
    for name in ("coco", "voc", "oi"):
        assert 0 < numbers[f"{name}/bbox/AP50"] < 100
    # Without flags the results differ, so the flags had an effect.
    for annotation in content["annotations"]:
        annotation |= dict.fromkeys(("ignore", "difficult", "is_group_of", "iscrowd"), 0)
    file.write_text(json.dumps(content))
    unregister_datasets()
    plain = _numbers(of_a_run(file))
    assert all(plain[f"{n}/bbox/AP50"] != numbers[f"{n}/bbox/AP50"] for n in ("coco", "voc", "oi"))


def test_difficult_objects_of_a_voc_file_need_not_be_found(tmp_path, of_a_run):
    (tmp_path / "images").mkdir()
    Image.new("RGB", (100, 100)).save(tmp_path / "images" / "a.jpg")
    objects = "".join(
        f"<object><name>cat</name><difficult>{hard}</difficult><bndbox><xmin>{x0}</xmin>"
        f"<ymin>{x0}</ymin><xmax>{x1}</xmax><ymax>{x1}</ymax></bndbox></object>"
        for x0, x1, hard in ((1, 20, 0), (51, 90, 1))
    )
    (tmp_path / "a.xml").write_text(f"<annotation><filename>a.jpg</filename>{objects}</annotation>")
    file = tmp_path / "voc.json"
    convert_to_coco("voc", tmp_path / "a.xml", tmp_path / "images", file)
    easy, hard = (0, 0, (0, 0, 20, 20), 0.5), (0, 0, (50, 50, 40, 40), 0.9)
    for ground_truth in (of_a_run(file), read_dataset(file, with_masks=False).ground_truth):
        for metric in (CocoMetric(["bbox"]), VocMetric(), OpenImagesMetric()):
            for found in ([easy], [easy, hard]):
                numbers = metric(ground_truth, detections(found))
                assert numbers["bbox/AP50"] == 100, type(metric)
            assert metric(ground_truth, detections([hard]))["bbox/AP50"] == 0
            nothing = metric(ground_truth, detections([]))
            assert nothing["bbox/AP50"] == 0 and not math.isnan(nothing["bbox/AP50"])
