"""Values that a user's dataset function may return (numpy, torch, paths, tuples), and errors."""

import copy
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.structures import BoxMode
from pycocotools import mask

from d2ext.data.records.plain_records import plain_records
from d2ext.errors import UserError

CORNERS = [1.0, 2.0, 9.0, 2.0, 9.0, 8.0]
BITMAP = np.zeros((10, 20), bool)
BITMAP[2:8, 1:9] = True
RLE = mask.encode(np.asfortranarray(BITMAP, np.uint8))


def _record(annotation=None, **changes):
    annotation = {"bbox": [1.0, 2.0, 8.0, 6.0], "bbox_mode": 1, "category_id": 0} | (
        annotation or {}
    )
    record = {"file_name": "a.jpg", "image_id": 1, "height": 10, "width": 20}
    return {**record, "annotations": [annotation], **changes}


def _read(*records):
    left_out = Counter()
    return plain_records(records, "mine", left_out), left_out


@pytest.mark.parametrize(
    "changes",
    [
        {"file_name": Path("a.jpg")},
        {"file_name": np.str_("a.jpg")},
        {"height": 10.0, "width": np.int64(20), "image_id": np.int32(1)},
        {"height": torch.tensor(10), "image_id": torch.tensor(1)},
        {"height": np.array(10), "width": np.float32(20)},
        {"annotations": tuple(_record()["annotations"])},
        {"annotations": np.array(_record()["annotations"], dtype=object)},
    ],
)
def test_values_of_a_record(changes):
    ((record,), left_out) = _read(_record(**changes))
    ((plain,), _) = _read(_record())
    assert record == plain and not left_out
    assert {type(record[key]) for key in ("height", "width", "image_id")} == {int}
    assert type(record["file_name"]) is str


@pytest.mark.parametrize("absent", [{}, {"annotations": None}, {"annotations": ()}])
def test_missing_annotations_become_an_empty_list(absent):
    record = {"file_name": "a.jpg", "image_id": "x", "height": 10, "width": 20} | absent
    ((read,), _) = _read(record)
    assert read["annotations"] == [] and read["image_id"] == "x"


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"bbox": np.array([1, 2, 8, 6])}, {}),
        ({"bbox": torch.tensor([1.0, 2, 8, 6]), "bbox_mode": np.int64(1)}, {}),
        ({"bbox": tuple(map(np.float32, (1, 2, 8, 6)))}, {}),
        ({"bbox": (1, 2, 9, 8), "bbox_mode": BoxMode.XYXY_ABS}, {}),
        ({"bbox_mode": BoxMode.XYWH_ABS}, {}),
        ({"category_id": np.int64(3)}, {"category_id": 3}),
        ({"category_id": torch.tensor(3)}, {"category_id": 3}),
        ({"category_id": 3.0}, {"category_id": 3}),
        ({"iscrowd": np.bool_(True)}, {"iscrowd": 1}),
        ({"ignore": 1}, {"ignore": 1, "difficult": 1}),
        ({"area": np.float32(4)}, {"area": 4.0}),
        ({"keypoints": np.array([1.0, 2, 2])}, {"keypoints": [1.0, 2.0, 2.0]}),
        ({"segmentation": None}, {}),
        ({"segmentation": []}, {}),
        ({"segmentation": [np.array(CORNERS)]}, {"segmentation": [CORNERS]}),
        ({"segmentation": np.array([CORNERS])}, {"segmentation": [CORNERS]}),
        ({"segmentation": [torch.tensor(CORNERS)]}, {"segmentation": [CORNERS]}),
        ({"segmentation": tuple(CORNERS)}, {"segmentation": [CORNERS]}),
        ({"segmentation": np.reshape(CORNERS, (3, 2))}, {"segmentation": [CORNERS]}),
        ({"segmentation": [np.reshape(CORNERS, (3, 2)).tolist()]}, {"segmentation": [CORNERS]}),
        ({"segmentation": [CORNERS, [1, 2]]}, {"segmentation": [CORNERS]}),
    ],
)
def test_values_of_an_annotation(changes, expected):
    ((record,), left_out) = _read(_record(changes))
    plain = {"bbox": [1, 2, 9, 8], "bbox_mode": 0, "category_id": 0}
    assert record["annotations"] == [plain | expected] and not left_out
    assert all(type(v) in (int, float) for v in record["annotations"][0]["bbox"])


@pytest.mark.parametrize(
    "given", [RLE, {**RLE, "size": (10, 20)}, BITMAP, BITMAP.astype(np.uint8), torch.tensor(BITMAP)]
)
def test_masks_become_compressed_rle(given):
    ((record,), _) = _read(_record({"segmentation": given}))
    read = record["annotations"][0]["segmentation"]
    assert np.array_equal(mask.decode(read), BITMAP)


def test_several_rles_become_their_union():
    polygons = [CORNERS, [10.0, 2.0, 15.0, 2.0, 15.0, 6.0]]
    rles = mask.frPyObjects(polygons, 10, 20)
    ((record,), _) = _read(_record({"segmentation": rles}))
    read = record["annotations"][0]["segmentation"]
    assert np.array_equal(mask.decode(read), mask.decode(mask.merge(rles)))
    assert type(read["counts"]) is str
    (_, left_out) = _read(_record({"segmentation": rles, "bbox": [1, 2, 0, 6]}))
    assert left_out.total() == 1


def test_the_input_is_not_modified():
    records = [_record({"bbox": np.array([1, 2, 8, 6]), "segmentation": np.array([CORNERS])})]
    before = copy.deepcopy(records)
    _read(*records)
    assert repr(records) == repr(before)


def test_objects_without_extent_are_dropped_and_counted():
    records = [
        _record({"bbox": [1, 2, 0, 6]}),
        _record({"segmentation": [[1, 2, 3, 4]]}),
        _record(),
    ]
    read, left_out = _read(*records)
    assert [len(r["annotations"]) for r in read] == [0, 0, 1]
    assert left_out == {"without a box of positive size": 1, "without a valid polygon": 1}


@pytest.mark.parametrize(
    ("record", "words"),
    [
        (3, "record 1 is a int"),
        ({"height": 10}, "record 1: file_name=None"),
        ({"file_name": b"a.jpg"}, "record 1: file_name"),
        (_record(image_id=[1]), r"record 1 \(a.jpg\): image_id=\[1\]"),
        (_record(image_id=1.5), "image_id=1.5"),
        (_record(annotations=3), "annotations=3: give a list of dicts"),
        (_record(annotations=[[1, 2]]), "annotations=.*give a list of dicts"),
        (_record({"bbox": [1, 2, 3]}), r"annotations\[0\] needs a bbox of four numbers"),
        (_record({"bbox": np.ones((1, 4))}), "needs a bbox of four numbers"),
        (_record({"bbox": [1, 2, 3, float("nan")]}), "needs a bbox of four numbers"),
        (_record({"bbox": ["1", 2, 3, 4]}), "needs a bbox of four numbers"),
        (_record({"bbox_mode": None}), "bbox_mode=None"),
        (_record({"bbox_mode": BoxMode.XYWHA_ABS}), "bbox_mode"),
        (_record({"segmentation": "x"}), r"annotations\[0\]: segmentation: 'x' is neither"),
        (_record({"segmentation": {"size": [20, 10], "counts": [200]}}), "the RLE has the size"),
        (_record({"segmentation": {"size": [10, 20]}}), "segmentation: no 'counts'"),
        (
            _record({"segmentation": BITMAP.T}),
            r"segmentation: the mask has the shape \(20, 10\), but its image has \(10, 20\)",
        ),
        (_record({"segmentation": torch.tensor(BITMAP)[None]}), r"the shape \(1, 10, 20\)"),
        (_record({"segmentation": BITMAP[2:8, 1:9].astype(int)}), r"the shape \(6, 8\)"),
        (_record({"segmentation": 255 * BITMAP.T.astype(np.uint8)}), r"the shape \(20, 10\)"),
        (_record({"segmentation": [RLE, {"size": [1, 1]}]}), "segmentation: no 'counts'"),
        (_record({"segmentation": [RLE, CORNERS]}), "segmentation: .* are not numbers"),
        (_record({"iscrowd": 2}), "iscrowd=2"),
        (_record({"area": float("inf")}), "area=inf"),
        (_record({"area": "big"}), "area='big'"),
    ],
)
def test_errors_name_the_record_and_the_key(record, words):
    with pytest.raises(UserError, match=f"datasets.mine: .*{words}"):
        _read(_record(), record)
