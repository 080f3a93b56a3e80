"""COCO files: reading, errors, and correct evaluation of written files."""

import contextlib
import copy
import io
import json
import logging
import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools import mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from d2ext.data.formats.coco import coco_classes, read_coco, to_coco
from d2ext.data.formats.coco_objects import read_object
from d2ext.data.formats.via import read_via
from d2ext.errors import UserError
from tests.balloons import write_balloons

SQUARE = [1, 1, 5, 1, 5, 5, 1, 5]


def content(**changes: object) -> dict:
    """Return a small file with unordered categories, gaps in ids and an image without objects."""
    image = {"height": 8, "width": 10}
    annotation = {"iscrowd": 0, "area": 16, "bbox": [1, 1, 4, 4], "segmentation": [SQUARE]}
    return {
        "images": [
            {**image, "id": 30, "file_name": "c.jpg"},
            {**image, "id": 7, "file_name": "sub/a.jpg"},
        ],
        "categories": [{"id": 18, "name": "dog"}, {"id": 3, "name": "cat"}],
        "annotations": [
            {**annotation, "id": 5, "image_id": 7, "category_id": 18},
            {**annotation, "id": 6, "image_id": 7, "category_id": 3},
        ],
        **changes,
    }


def read(folder: Path, what: object, classes: list | None = None) -> list[dict]:
    """Write a file and read it."""
    (folder / "coco.json").write_text(json.dumps(what))
    return read_coco(folder / "coco.json", "/photos", classes)[0]


def with_annotation(**changes: object) -> dict:
    """Return the small file with its first annotation only, modified; None removes a key."""
    made = content()
    annotation = {**made["annotations"][0], **changes}
    made["annotations"] = [{k: v for k, v in annotation.items() if v is not None}]
    return made


def test_images_and_classes_are_ordered_by_id(tmp_path: Path) -> None:
    first, second = read(tmp_path, content())
    assert coco_classes(tmp_path / "coco.json") == ("cat", "dog")
    assert [a["category_id"] for a in first.pop("annotations")] == [1, 0]
    assert first == {"file_name": "/photos/sub/a.jpg", "image_id": 7, "height": 8, "width": 10}
    assert (second["image_id"], second["annotations"]) == (30, [])


def test_all_values_of_an_annotation_are_read(tmp_path: Path) -> None:
    first, _ = read(tmp_path, with_annotation())
    assert first["annotations"] == [
        {
            "bbox": [1, 1, 5, 5],
            "bbox_mode": 0,
            "category_id": 1,
            "segmentation": [SQUARE],
            "iscrowd": 0,
            "area": 16,
        }
    ]


def test_classes_are_matched_by_name(tmp_path: Path) -> None:
    first, _ = read(tmp_path, content(), ["dog", "cat"])
    assert [a["category_id"] for a in first["annotations"]] == [0, 1]
    first, _ = read(tmp_path, content(), ["dog"])
    assert [a["category_id"] for a in first["annotations"]] == [0]
    assert read_coco(tmp_path / "coco.json", "/photos", ["dog", "cat"])[1] == {3: 1, 18: 0}
    assert read_coco(tmp_path / "coco.json", "/photos", ["dog"])[1] == {18: 0}
    with pytest.raises(UserError, match=r"no category 'dogs'; did you mean 'dog'\?"):
        read(tmp_path, content(), ["cat", "dogs"])


def test_dropped_annotations_are_counted_by_reason(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    made = content()
    template = made["annotations"][0]
    for i, change in enumerate(
        (
            {"bbox": None, "segmentation": []},
            {"bbox": [1, 1, 0, 4]},
            {"bbox": [1, 1, 4, -4]},
            {"bbox": [float("nan"), 1, 4, 4]},
            {"segmentation": [[1, 1, 2, 2], [1, 1, 2, 2, 3, 3, 4]]},
            {"segmentation": [[1, 1, 2, 2], SQUARE]},
            {"segmentation": None},
        )
    ):
        made["annotations"].append({**template, "id": 10 + i, **change})
    first, _ = read(tmp_path, made)
    assert [a.get("segmentation") for a in first["annotations"]] == [[SQUARE]] * 3 + [None]
    (warning,) = caplog.messages
    assert "5 annotations skipped" in warning
    assert "3 without a box of positive size" in warning
    assert (
        "1 with a box that is not finite or too large" in warning
        and "1 without a valid polygon" in warning
    )


@pytest.mark.parametrize("box", [None, []], ids=["absent", "empty"])
@pytest.mark.parametrize(
    ("shape", "corners"),
    [
        ([SQUARE, [1, 1, 2, 2]], [1, 1, 5, 5]),
        ({"size": [8, 10], "counts": [8 + 2, 3, 5, 3, 59]}, [1, 2, 3, 5]),
    ],
    ids=["polygons", "RLE"],
)
def test_a_missing_box_is_computed_from_the_mask(
    tmp_path: Path, caplog, box: list | None, shape: object, corners: list
) -> None:
    caplog.set_level(logging.INFO)
    made = with_annotation(segmentation=shape, bbox=box)
    (annotation,) = read(tmp_path, made)[0]["annotations"]
    assert annotation["bbox"] == corners and "1 without bbox (the mask's)" in caplog.text


@pytest.mark.parametrize(
    ("marks", "read_as"),
    [
        ({"ignore": 1}, {"difficult": 1}),
        ({"difficult": True, "ignore": 0}, {"difficult": 1}),
        ({"is_group_of": True}, {"is_group_of": 1}),
        ({"difficult": 1, "is_group_of": 1}, {"difficult": 1, "is_group_of": 1}),
        ({"difficult": 0, "is_group_of": False, "ignore": None}, {}),
    ],
)
def test_flags_of_objects_are_kept(tmp_path: Path, marks: dict, read_as: dict) -> None:
    plain = read(tmp_path, with_annotation())[0]["annotations"][0]
    (annotation,) = read(tmp_path, with_annotation(**marks))[0]["annotations"]
    assert annotation == plain | read_as
    (written,) = to_coco([read(tmp_path, with_annotation(**marks))[0]], ["cat", "dog"])[
        "annotations"
    ]
    assert {k: v for k, v in written.items() if k in ("difficult", "is_group_of")} == read_as


def test_rle_is_kept_and_compressed(tmp_path: Path) -> None:
    pixels = np.zeros((8, 10), np.uint8)
    pixels[2:5, 3:9] = 1
    flat, runs, value = pixels.T.ravel(), [0], 0
    for pixel in flat:
        if pixel != value:
            runs.append(0)
            value = pixel
        runs[-1] += 1
    compressed = mask.encode(np.asfortranarray(pixels))
    compressed["counts"] = compressed["counts"].decode()
    for rle in ({"size": [8, 10], "counts": runs}, compressed):
        records = read(tmp_path, with_annotation(segmentation=rle, iscrowd=1, area=None))
        (annotation,) = records[0]["annotations"]
        assert annotation["iscrowd"] == 1
        assert (mask.decode(annotation["segmentation"]) == pixels).all()
        made = json.loads(json.dumps(to_coco(records, ["cat", "dog"])))["annotations"][0]
        assert made["area"] == 18
        assert (mask.decode(made["segmentation"]) == pixels).all()


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ([], "is not a COCO annotation file: it has no list 'images'"),
        ({"images": []}, "it has no list 'annotations'"),
        (content(images=[{"id": 7, "file_name": "a.jpg", "width": 1}]), r"images\[0\].*height"),
        (content(images=[{**content()["images"][0], "id": "x"}]), r"images\[0\].*'x'"),
        (content(images=content()["images"] * 2), "image id 30 appears twice"),
        (content(categories=[{"id": 1}]), "`categories` is malformed.*name"),
        (content(categories=[{"id": i, "name": "cat"} for i in (1, 2)]), "repeats"),
        (with_annotation(image_id=8), r"annotations\[0\] refers to the image 8, which"),
        (with_annotation(image_id=None), r"annotations\[0\].*image_id"),
        (with_annotation(category_id=4), r"annotations\[0\] refers to the category 4, which"),
        (with_annotation(bbox=[1, 2, 3]), r"annotations\[0\] is malformed"),
        (with_annotation(bbox=[1, 2, 3, "4"]), r"annotations\[0\] is malformed"),
        (with_annotation(area="16"), r"annotations\[0\] is malformed"),
        (with_annotation(area=float("inf")), r"annotations\[0\].*area is inf"),
        (with_annotation(segmentation=[1, 2, 3]), r"annotations\[0\] is malformed"),
        (with_annotation(segmentation={"counts": [3]}), r"annotations\[0\].*size"),
        (with_annotation(segmentation={"counts": [3], "size": [1, 3]}), r"size \[1, 3\]"),
    ],
)
def test_bad_files_are_refused(tmp_path: Path, what: object, message: str) -> None:
    with pytest.raises(UserError, match=message) as e:
        read(tmp_path, what)
    assert str(tmp_path / "coco.json") in str(e.value)


def test_the_area_in_the_file_is_used(tmp_path: Path) -> None:
    for area, made in ((12.5, 12.5), (0, 0), (None, 16)):
        records = read(tmp_path, with_annotation(area=area))
        assert to_coco(records, ["cat", "dog"])["annotations"][0]["area"] == made


def test_box_modes(tmp_path: Path) -> None:
    records = read(tmp_path, with_annotation())
    as_read = to_coco(records, ["cat", "dog"])
    annotation = records[0]["annotations"][0]
    annotation.update(bbox=[1, 1, 4, 4], bbox_mode=1)  # XYWH_ABS
    assert to_coco(records, ["cat", "dog"]) == as_read
    assert as_read["annotations"][0]["bbox"] == [1, 1, 4, 4]
    annotation.update(bbox=[3, 3, 4, 4, 30], bbox_mode=4)  # XYWHA_ABS, rotated
    with pytest.raises(UserError, match="mode 4"):
        to_coco(records, ["cat", "dog"])


def average_precision(ground_truth: dict, task: str) -> float:
    """Return pycocotools' AP of detections that equal the ground truth."""
    with contextlib.redirect_stdout(io.StringIO()):
        gt = COCO()
        gt.dataset = json.loads(json.dumps(ground_truth))
        gt.createIndex()
        results = [{**copy.deepcopy(a), "score": 0.9} for a in gt.dataset["annotations"]]
        for result in results:
            result["segmentation"] = gt.annToRLE(result)
        evaluation = COCOeval(gt, gt.loadRes(results), task)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return evaluation.stats[0]


boxes = st.tuples(st.integers(0, 50), st.integers(0, 50), st.integers(1, 50), st.integers(1, 50))


@settings(max_examples=30, deadline=None)
@given(
    st.lists(
        st.lists(st.tuples(boxes, st.integers(0, 1)), max_size=4), min_size=1, max_size=3
    ).filter(any)  # pycocotools rejects empty results
)
def test_perfect_detections_have_an_ap_of_1(images: list) -> None:
    records = []
    for image_id, objects in enumerate(images, start=1):
        annotations = []
        for (x, y, w, h), category in objects:
            polygon = [x, y, x + w, y, x + w, y + h, x, y + h]
            box = {"bbox": [x, y, x + w, y + h], "bbox_mode": 0, "segmentation": [polygon]}
            annotations.append({**box, "category_id": category})
        records.append(
            {
                "file_name": f"{image_id}.jpg",
                "image_id": image_id,
                "height": 100,
                "width": 100,
                "annotations": annotations,
            }
        )
    ground_truth = to_coco(records, ["cat", "dog"])
    assert all(a["area"] == a["bbox"][2] * a["bbox"][3] for a in ground_truth["annotations"])
    assert average_precision(ground_truth, "bbox") == pytest.approx(1)


def test_perfect_masks_of_balloons_have_an_ap_of_1(tmp_path: Path) -> None:
    write_balloons(tmp_path, num_train=4, num_val=0)
    records = read_via(tmp_path / "train/via_region_data.json", tmp_path / "train", ["balloon"])
    ground_truth = to_coco(records, ["balloon"], tmp_path / "train")
    names = [os.path.basename(r["file_name"]) for r in records]
    assert [i["file_name"] for i in ground_truth["images"]] == names
    assert average_precision(ground_truth, "segm") == pytest.approx(1)


def test_an_image_may_have_polygons_and_rle(tmp_path: Path) -> None:
    made = with_annotation()
    rle = {"size": [8, 10], "counts": [9, 4, 67]}
    made["annotations"].append({**made["annotations"][0], "segmentation": rle})
    first, _ = read(tmp_path, made)
    polygons, encoded = (a["segmentation"] for a in first["annotations"])
    assert polygons == [SQUARE]
    assert mask.decode(encoded).T.ravel().nonzero()[0].tolist() == [9, 10, 11, 12]


def test_missing_values_are_filled_in_and_logged(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    first, _ = read(tmp_path, with_annotation(area=None, iscrowd=None))
    assert (first["annotations"][0]["area"], first["annotations"][0]["iscrowd"]) == (16, 0)
    (message,) = caplog.messages
    assert "repaired: 1 without iscrowd (0), 1 without area" in message


@settings(max_examples=200, deadline=None)
@given(st.integers(1, 40), st.integers(1, 40), st.data())
def test_valid_rle_is_accepted_and_damaged_rle_is_not(h, w, data) -> None:
    bits = data.draw(st.lists(st.booleans(), min_size=h * w, max_size=h * w))
    pixels = np.array(bits, np.uint8).reshape(h, w)
    rle = mask.encode(np.asfortranarray(pixels))
    text = rle["counts"].decode()
    read_, _ = read_object([0, 0, 1, 1], {"size": [h, w], "counts": text}, h, w)
    assert (mask.decode(read_["segmentation"]) == pixels).all()
    cut = data.draw(st.integers(0, len(text) - 1))
    with pytest.raises(ValueError, match="RLE"):  # too few pixels
        read_object([0, 0, 1, 1], {"size": [h, w], "counts": text[:cut]}, h, w)


@pytest.mark.parametrize(
    "change",
    [
        {"segmentation": {"size": [8, 10], "counts": [1, 2]}},
        {"segmentation": {"size": [8, 10], "counts": [-1, 81]}},
        {"segmentation": {"size": [8, 10], "counts": [1.5, 78.5]}},
        {"segmentation": {"size": [8, 10], "counts": "\x7f\x7f"}},
        {"segmentation": {"size": [8, 10], "counts": "ooooooooooo0"}},
        {"segmentation": {"size": [8, 10], "counts": None}},
        {"segmentation": [["1", 1, 5, 1, 5, 5]]},
        {"segmentation": "RLE"},
        {"bbox": [True, [], 4, 4]},
        {"bbox": [10**400, 1, 4, 4]},
        {"iscrowd": 7},
        {"ignore": 7},
        {"difficult": "yes"},
        {"is_group_of": [1]},
        {"area": [16]},
    ],
)
def test_damaged_annotations_are_refused(tmp_path: Path, change: dict) -> None:
    with pytest.raises(UserError, match=r"annotations\[0\] is malformed"):
        read(tmp_path, with_annotation(**change))


@pytest.mark.parametrize("point", [float("nan"), float("inf"), 1e7, -1e300])
def test_polygons_beyond_any_image_are_dropped(tmp_path: Path, point: float) -> None:
    far = [1, 1, point, 1, 5, 5]
    first, _ = read(tmp_path, with_annotation(segmentation=[far, SQUARE]))
    assert first["annotations"][0]["segmentation"] == [SQUARE]
    assert read(tmp_path, with_annotation(segmentation=[far]))[0]["annotations"] == []


@pytest.mark.parametrize("name", ["../../etc/passwd", "/etc/passwd", "", 7, None])
def test_images_outside_of_the_folder_are_refused(tmp_path: Path, name: object) -> None:
    made = content()
    made["images"][1]["file_name"] = name
    with pytest.raises(UserError, match=r"coco.json: images\[1\]"):
        read(tmp_path, made)


@pytest.mark.parametrize("size", [(0, 8), (8.5, 8), ("8", 8), (True, 8), (8, 10**9), (8, -1)])
def test_images_without_a_valid_size_are_refused(tmp_path: Path, size: tuple) -> None:
    made = content()
    made["images"][0].update(height=size[0], width=size[1])
    with pytest.raises(UserError, match=r"images\[0\] is malformed.*not a positive integer"):
        read(tmp_path, made)


def test_deep_nesting_is_reported_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "coco.json").write_text("[" * 200_000)
    with pytest.raises(UserError, match="is not valid JSON"):
        read_coco(tmp_path / "coco.json", tmp_path)
