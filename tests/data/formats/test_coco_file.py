"""The policies of the COCO reader, applied to the same entries."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from d2ext.data.formats.coco_file import (
    CocoColumns,
    read_content,
    read_repaired,
    read_strict,
    repaired_records,
)
from d2ext.data.formats.coco_objects import FLAT_BOX
from d2ext.data.validation.coco.table import read_coco_table
from d2ext.errors import UserError

_BOX, _MASK_BOX = [1.0, 2.0, 4.0, 3.0], [2.0, 2.0, 3.0, 2.0]
_MASK = [[2, 2, 5, 2, 5, 4, 2, 4]]
_OBJECT = {
    "id": 1,
    "image_id": 7,
    "category_id": 3,
    "bbox": _BOX,
    "area": 5.5,
    "iscrowd": 1,
    "segmentation": _MASK,
}
_NAN = [np.nan] * 4


def _without(*names: str) -> dict:
    return {name: value for name, value in _OBJECT.items() if name not in names}


def _write(folder: Path, *annotations: dict) -> Path:
    content = {
        "images": [
            {"id": 9, "file_name": "b.jpg", "height": 20, "width": 30},
            {"id": 7, "file_name": "a.jpg", "height": 10, "width": 12},
        ],
        "annotations": annotations,
        "categories": [{"id": 5, "name": "dog"}, {"id": 3, "name": "cat"}],
    }
    file = folder / "coco.json"
    file.write_text(json.dumps(content))
    return file


def _repair(file: Path) -> list[tuple]:
    info: dict[str, Any] = {}
    records, _ = repaired_records(read_content(file), file, "imgs", info=info)
    found = [a for record in records for a in record["annotations"]]
    corners = [(*a["bbox"][:2], *np.subtract(a["bbox"][2:], a["bbox"][:2])) for a in found]
    rows = [(list(c), a["area"], bool(a["iscrowd"])) for c, a in zip(corners, found, strict=True)]
    return rows or [info["left_out"]]


def _strict(file: Path) -> list[tuple]:
    columns = read_strict(file, with_masks=True)
    return list(zip(columns.boxes.tolist(), columns.areas, columns.crowd, strict=True))


def _as_is(file: Path) -> list[tuple]:
    table = read_coco_table(file)
    if reasons := table.malformed["annotations"]:
        return [reasons]
    return list(zip(table.box.tolist(), table.area, table.crowd, strict=True))


# An entry, and its box, area and crowd flag with `repair`, `strict` and `as_is`.
_POLICIES = {
    "whole": (_OBJECT, (_BOX, 5.5, True), (_BOX, 5.5, True), (_BOX, 5.5, True)),
    "no bbox": (
        _without("bbox"),
        (_MASK_BOX, 5.5, True),
        (_MASK_BOX, 5.5, True),
        (_NAN, 5.5, True),
    ),
    "no area": (_without("area"), (_BOX, 6, True), (_BOX, 6, True), (_BOX, np.nan, True)),
    "no area, no mask": (
        _without("area", "segmentation"),
        (_BOX, 12, True),
        (_BOX, 12, True),
        (_BOX, np.nan, True),
    ),
    "no iscrowd": (_without("iscrowd"), (_BOX, 5.5, False), (_BOX, 5.5, False), (_BOX, 5.5, False)),
    "flat box": (
        {**_OBJECT, "bbox": [1.0, 2.0, 0.0, 3.0]},
        {FLAT_BOX: 1},
        ([1, 2, 0, 3], 5.5, True),
        ([1, 2, 0, 3], 5.5, True),
    ),
    "malformed": (
        {**_OBJECT, "area": "large"},
        r"annotations\[0\] is malformed",
        r"annotations\[0\]\.area",
        {0: "Expected `float | null`, got `str` - at `area`"},
    ),
    "no bbox, no mask": (
        _without("bbox", "segmentation"),
        {FLAT_BOX: 1},
        "neither bbox nor segmentation",
        (_NAN, 5.5, True),
    ),
}


@pytest.mark.parametrize("case", _POLICIES)
def test_each_policy_on_the_same_entry(tmp_path: Path, case: str) -> None:
    entry, *expected = _POLICIES[case]
    file = _write(tmp_path, entry)
    for read, wanted in zip((_repair, _strict, _as_is), expected, strict=True):
        if isinstance(wanted, str):
            with pytest.raises(UserError, match=wanted):
                read(file)
            continue
        (got,) = read(file)
        if isinstance(wanted, dict):
            assert got == wanted, read
        else:
            for value, number in zip(got, wanted, strict=True):
                np.testing.assert_array_equal(value, number, err_msg=read.__name__)


@pytest.mark.parametrize("classes", [None, ["dog"], ["dog", "cat"]])
@pytest.mark.parametrize(
    "annotations",
    [
        [],
        [_OBJECT],
        [{**_OBJECT, "image_id": 9}, _OBJECT, {**_OBJECT, "category_id": 5}],
        [_without("iscrowd"), _without("area"), _without("area", "segmentation")],
        [{**_OBJECT, "bbox": [1, 2, 0, 3]}, {**_OBJECT, "bbox": [1, 2, 1e7, 3]}, _OBJECT],
        [{**_OBJECT, "segmentation": [[1, 2, 3, 4]]}, {**_OBJECT, "segmentation": []}],
        [{**_OBJECT, "segmentation": {"size": [10, 12], "counts": [20, 3, 97]}}],
        [{**_OBJECT, "ignore": 1}, {**_OBJECT, "is_group_of": True, "keypoints": [1, 1, 2]}],
    ],
)
def test_repaired_columns_equal_repaired_records(
    tmp_path: Path, annotations: list[dict], classes: list[str] | None
) -> None:
    file = _write(tmp_path, *annotations)
    columns, info = read_repaired(file, "imgs", classes)
    assert isinstance(columns, CocoColumns)
    expected: dict[str, Any] = {}
    records, ids = repaired_records(read_content(file), file, "imgs", classes, expected)
    assert {name: info[name] for name in expected} == expected
    assert info["category_ids"] == [list(pair) for pair in ids.items()]
    assert info["classes"] == (classes or ["cat", "dog"])

    assert columns.image_ids == [record["image_id"] for record in records]
    assert columns.image_names == [record["file_name"] for record in records]
    assert columns.heights.tolist() == [record["height"] for record in records]
    assert columns.widths.tolist() == [record["width"] for record in records]
    objects = [(i, a) for i, record in enumerate(records) for a in record["annotations"]]
    assert columns.image.tolist() == [i for i, _ in objects]
    assert columns.label.tolist() == [a["category_id"] for _, a in objects]
    assert columns.areas.tolist() == [a["area"] for _, a in objects]
    assert columns.crowd.tolist() == [bool(a["iscrowd"]) for _, a in objects]
    assert columns.difficult.tolist() == [bool(a.get("difficult")) for _, a in objects]
    assert columns.group_of.tolist() == [bool(a.get("is_group_of")) for _, a in objects]
    corners = np.hstack([columns.boxes[:, :2], columns.boxes[:, :2] + columns.boxes[:, 2:]])
    assert corners.tolist() == [list(a["bbox"]) for _, a in objects]
    masks = [json.loads(bytes(text)) or None for text in columns.masks]
    assert masks == [a.get("segmentation") for _, a in objects]
