"""MMDetection's middle format."""

import json

import pytest
from pycocotools import mask

from d2ext.data.formats.coco import to_coco
from d2ext.data.formats.middle import middle_classes, read_middle
from d2ext.errors import UserError

SQUARE = [1, 1, 5, 1, 5, 5, 1, 5]


def content(**changes):
    """Return a file of two images; the first has a polygon, an RLE and an object to ignore."""
    rle = {"size": [8, 10], "counts": [9, 4, 67]}
    instances = [
        {"bbox": [1, 1, 5, 5], "bbox_label": 1, "ignore_flag": 0, "mask": [SQUARE]},
        {"bbox": [1, 1, 2, 5], "bbox_label": 0, "ignore_flag": 0, "mask": rle},
        {"bbox": [0, 0, 4, 4], "bbox_label": 0, "ignore_flag": 1},
        {"bbox": [3, 3, 3, 4], "bbox_label": 0, "ignore_flag": 0},
    ]
    size = {"height": 8, "width": 10}
    return {
        "metainfo": {"classes": ["cat", "dog"], "task_name": "det"},
        "data_list": [
            {"img_path": "sub/a.jpg", **size, "instances": instances},
            {"img_path": "b.jpg", **size, "instances": []},
        ],
        **changes,
    }


def with_instance(**changes):
    made = content()
    instances = made["data_list"][0]["instances"]
    instances[0] = {k: v for k, v in {**instances[0], **changes}.items() if v != "absent"}
    return made


@pytest.fixture
def read(tmp_path):
    def run(what, classes=None):
        (tmp_path / "a.json").write_text(json.dumps(what))
        return read_middle(tmp_path / "a.json", "/photos", classes)

    return run


def test_a_file_is_read(read, tmp_path, caplog):
    first, second = read(content())
    assert middle_classes(tmp_path / "a.json") == ("cat", "dog")
    assert (first["file_name"], first["image_id"]) == ("/photos/sub/a.jpg", 1)
    assert (second["file_name"], second["annotations"]) == ("/photos/b.jpg", [])
    polygon, rle, crowd = first["annotations"]
    assert polygon == {
        "bbox": [1, 1, 5, 5],
        "bbox_mode": 0,
        "segmentation": [SQUARE],
        "iscrowd": 0,
        "area": 16,
        "category_id": 1,
    }
    assert mask.area(rle["segmentation"]) == 4 and rle["area"] == 4
    assert crowd["iscrowd"] == 1 and "segmentation" not in crowd
    assert "1 instances skipped: 1 without a box of positive size" in caplog.text
    made = to_coco(read(content()), ["cat", "dog"], "/photos")
    assert [i["file_name"] for i in made["images"]] == ["sub/a.jpg", "b.jpg"]
    assert [a["category_id"] for a in made["annotations"]] == [2, 1, 1]


@pytest.mark.parametrize("box", [None, []])
def test_an_empty_box_is_computed_from_the_mask(read, box):
    made = content()
    made["data_list"][0]["instances"][0]["bbox"] = box
    assert read(made)[0]["annotations"][0]["bbox"] == [1, 1, 5, 5]


def test_classes_are_matched_by_name(read):
    first, _ = read(content(), ["dog"])
    assert [a["category_id"] for a in first["annotations"]] == [0]
    with pytest.raises(UserError, match=r"no class 'dogs'; did you mean 'dog'\?"):
        read(content(), ["dogs"])


def test_image_ids_of_the_file_are_kept(read):
    made = content()
    for image, number in zip(made["data_list"], (7, 3), strict=True):
        image["img_id"] = number
    assert [r["image_id"] for r in read(made)] == [7, 3]
    made["data_list"][1]["img_id"] = 7
    with pytest.raises(UserError, match="img_id appears twice"):
        read(made)


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ([], "no dict 'metainfo'"),
        ({"metainfo": {}}, "no list 'data_list'"),
        (content(metainfo={}), "metainfo.classes=None"),
        (content(metainfo={"classes": ["a", "a"]}), "metainfo.classes"),
        (content(data_list=[{"img_path": "a.jpg"}]), r"data_list\[0\] is malformed \(no 'height'"),
        (content(data_list=["a.jpg"]), r"data_list\[0\] is malformed"),
        (with_instance(bbox_label=2), r"instances\[0\].*bbox_label is 2, but there are 2"),
        (with_instance(bbox_label="cat"), "bbox_label is 'cat'"),
        (with_instance(bbox="absent"), r"instances\[0\] is malformed \(no 'bbox'"),
        (with_instance(ignore_flag=9), "ignore_flag is 9"),
        (with_instance(mask={"size": [8, 10], "counts": "?"}), "RLE"),
    ],
)
def test_bad_files_are_refused(read, tmp_path, what, message):
    with pytest.raises(UserError, match=message) as e:
        read(what)
    assert str(tmp_path / "a.json") in str(e.value)


def test_images_outside_of_the_folder_are_refused(read):
    made = content()
    made["data_list"][1]["img_path"] = "../b.jpg"
    with pytest.raises(UserError, match=r"data_list\[1\]: the image '../b.jpg' is not in"):
        read(made)
