"""Boxes as outlines: files, training and ground truth agree."""

import json

import numpy as np
import pytest
from detectron2.config import LazyCall as L
from detectron2.data import DatasetCatalog

from d2ext.data.datasets.boxes_as_masks import with_outlines
from d2ext.data.datasets.declare import annotated_dataset
from d2ext.data.datasets.mixing import training_set
from d2ext.data.datasets.register import register_datasets, unregister_datasets, use_classes
from d2ext.data.formats.annotation_kinds import POLYGON, RLE
from d2ext.data.records.columns import Columns
from d2ext.data.records.records import columns_of
from d2ext.evaluation.instances import ground_truth_columns

OUTLINE = [[1, 1, 5, 1, 5, 5]]
BOX = [[2, 3, 6, 3, 6, 8, 2, 8]]  # the bbox below


@pytest.fixture
def mixed(tmp_path):
    """Write a COCO file with an outline, two boxes (one a crowd), and an RLE."""
    rle = {"size": [10, 20], "counts": [30, 10, 160]}
    masks = [{"segmentation": OUTLINE}, {}, {"iscrowd": 1}, {"segmentation": rle}]
    annotations = [
        {"id": i, "image_id": 1, "category_id": 1 + i % 2, "bbox": [2, 3, 4, 5], "area": 20} | m
        for i, m in enumerate(masks)
    ]
    content = {
        "images": [{"id": 1, "file_name": "a.jpg", "height": 10, "width": 20}],
        "annotations": annotations,
        "categories": [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}],
    }
    (tmp_path / "a.json").write_text(json.dumps(content))
    declaration = L(annotated_dataset)(
        json_file=str(tmp_path / "a.json"), image_root=str(tmp_path), boxes_as_masks=True
    )
    register_datasets({"mixed": declaration})
    yield "mixed"
    unregister_datasets()


def test_every_object_has_a_mask_and_keeps_its_area(mixed):
    (record,) = DatasetCatalog.get(mixed)
    masks = [a["segmentation"] for a in record["annotations"]]
    assert masks[:3] == [OUTLINE, BOX, BOX] and isinstance(masks[3], dict)
    assert [a["area"] for a in record["annotations"]] == [20] * 4


def test_columns_training_and_ground_truth_agree(mixed):
    records = DatasetCatalog.get(mixed)
    assert columns_of(records).masks.tolist() == [POLYGON, POLYGON, POLYGON, RLE]
    for name in Columns.NAMES:
        ours, plain = getattr(columns_of(records), name), getattr(columns_of(list(records)), name)
        assert ours.tolist() == plain.tolist() and ours.dtype == plain.dtype, name
    (trained,) = training_set(mixed).records
    assert [a["segmentation"] for a in trained["annotations"]][1] == BOX
    assert ground_truth_columns(records, ["cat", "dog"]).segmentations[1] == BOX


def test_mapping_classes_keeps_the_outlines(mixed):
    use_classes(mixed, ["dog"])
    (record,) = records = DatasetCatalog.get(mixed)
    assert [a["segmentation"] for a in record["annotations"]][0] == BOX
    assert columns_of(records).masks.tolist() == [POLYGON, RLE]


def test_both_box_modes():
    modes = [
        {"bbox": [2, 3, 4, 5], "bbox_mode": 1},
        {"bbox": np.array([2, 3, 6, 8]), "bbox_mode": 0},
    ]
    (record,) = with_outlines([{"annotations": modes}])
    assert [a["segmentation"] for a in record["annotations"]] == [BOX, BOX]
    assert "segmentation" not in modes[0]
