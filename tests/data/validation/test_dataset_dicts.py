"""The check before a run: counts, and errors that would otherwise occur hours later."""

import copy
import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from d2ext.data.formats.coco import read_coco, to_coco
from d2ext.data.formats.images import image_size
from d2ext.data.formats.via import read_via
from d2ext.data.validation.dataset_dicts import (
    check_dataset_dicts,
    check_masks,
    check_trainable,
    format_summary,
)
from d2ext.errors import UserError
from tests.balloons import write_balloons
from tests.conftest import checkout_env


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with four small photos."""
    root = tmp_path_factory.mktemp("small")
    write_balloons(root, num_train=4, num_val=0)
    return root / "train"


@pytest.fixture
def records(folder: Path) -> list[dict]:
    """Return the dataset dicts of `folder`."""
    return read_via(folder / "via_region_data.json", folder, ["balloon"])


def test_images_and_objects_are_counted(records: list[dict]) -> None:
    total = sum(len(r["annotations"]) for r in records)
    assert total > 4
    records[0]["annotations"] = []
    records[1]["annotations"] = [{**records[1]["annotations"][0], "iscrowd": 1}]
    left = sum(len(r["annotations"]) for r in records[2:])
    summary = check_dataset_dicts("some_train", records, ["balloon", "kite"])
    assert (summary.name, summary.images, summary.instances) == ("some_train", 4, left)
    assert summary.per_class == {"balloon": left, "kite": 0}
    assert summary.empty == 2
    assert summary.problems == [
        f"1 of {left + 1} annotations is not trained on: 1 crowd",
        "no object of kite",
        "2 of 4 images have no objects",
    ]
    header, line, *notes = format_summary([summary]).splitlines()
    assert header.split()[:2] == ["dataset", "images"]
    assert line.split() == ["some_train", "4", str(left), "balloon", f"{left},", "kite", "0"]
    assert [n.split("note: ")[1] for n in notes] == summary.problems


def test_summary_table_is_aligned_and_narrow(records: list[dict]) -> None:
    classes = ["balloon", *(f"class {i}" for i in range(300))]
    names = ("a", "a_much_longer_name")
    summaries = [check_dataset_dicts(name, records, classes) for name in names]
    lines = [x for x in format_summary(summaries).splitlines() if "note:" not in x]
    assert (
        len({line.index("objects per class" if "images" in line else "balloon ") for line in lines})
        == 1
    )
    assert max(map(len, lines)) < 140


def test_missing_images_are_counted_and_the_first_is_named(
    records: list[dict], folder: Path, tmp_path: Path
) -> None:
    shutil.copytree(folder, tmp_path / "copy")
    moved = copy.deepcopy(records)
    for record in moved:
        record["file_name"] = str(tmp_path / "copy" / Path(record["file_name"]).name)
    assert check_dataset_dicts("x", moved, ["balloon"]).images == 4
    Path(moved[1]["file_name"]).unlink()
    moved[3]["file_name"] = str(tmp_path / "no folder" / "d.jpg")
    with pytest.raises(UserError) as e:
        check_dataset_dicts("x", moved, ["balloon"], {"image_root": "my photos"})
    assert "dataset 'x': 2 of 4 images are missing" in str(e.value)
    assert moved[1]["file_name"] in str(e.value) and "datasets.x.image_root" in str(e.value)
    assert "--fix" not in str(e.value)
    with pytest.raises(UserError, match="or correct the file_name of each record") as e:
        check_dataset_dicts("x", moved, ["balloon"])
    assert "image_root" not in str(e.value)


def test_command_in_the_message_fixes_misspelled_names(
    records: list[dict], folder: Path, tmp_path: Path, repo: Path
) -> None:
    content = to_coco(records, ["balloon"], folder)
    for image in content["images"]:
        image["file_name"] = f"photos\\{image['file_name'].upper()}"
    file, fixed = tmp_path / "my a.json", tmp_path / "fixed.json"
    file.write_text(json.dumps(content))
    misspelled, _ = read_coco(file, folder)
    about = {"json_file": str(file), "image_root": str(folder)}
    with pytest.raises(UserError, match="4 of 4 images are missing") as e:
        check_dataset_dicts("x", misspelled, ["balloon"], about)
    command = re.search(r"d2ext check .*--fix OUT.json", str(e.value))[0]
    words = [str(fixed) if word == "OUT.json" else word for word in shlex.split(command)]
    subprocess.run([sys.executable, "-m", *words], check=True, cwd=tmp_path, env=checkout_env())
    again, _ = read_coco(fixed, folder)
    assert check_dataset_dicts("x", again, ["balloon"]).images == 4


@pytest.mark.parametrize("category", [1, -1])
def test_category_out_of_range_is_reported(records: list[dict], category: int) -> None:
    records[2]["annotations"][0]["category_id"] = category
    with pytest.raises(UserError) as e:
        check_dataset_dicts("x", records, ["balloon"])
    assert f"{records[2]['file_name']} has category_id {category}" in str(e.value)
    assert "datasets.x.classes" in str(e.value)


def test_empty_dataset_is_refused() -> None:
    with pytest.raises(UserError, match="'x' holds no images"):
        check_dataset_dicts("x", [], ["balloon"])


@pytest.mark.parametrize("side", ["height", "width"])
@pytest.mark.parametrize("value", [None, "100", True, 0, -3, 160.0, float("nan")])
def test_sizes_must_be_positive_integers(records: list[dict], side: str, value: object) -> None:
    records[3][side] = value
    with pytest.raises(UserError) as e:
        check_dataset_dicts("x", records, ["balloon"])
    assert f"{records[3]['file_name']} has {side}={value!r}" in str(e.value)


def test_sizes_may_be_numpy_integers(records: list[dict]) -> None:
    records[0]["height"] = np.int64(records[0]["height"])
    assert check_dataset_dicts("x", records, ["balloon"]).images == 4


def test_classes_and_image_ids_must_be_distinct(records: list[dict]) -> None:
    with pytest.raises(UserError, match="datasets.x.classes names 'balloon' twice"):
        check_dataset_dicts("x", records, ["balloon", "kite", "balloon"])
    records[1]["image_id"] = records[3]["image_id"]
    with pytest.raises(UserError, match="'x' has the image_id 4 twice"):
        check_dataset_dicts("x", records, ["balloon"])
    del records[1]["image_id"]
    with pytest.raises(UserError, match=f"{records[1]['file_name']} has no image_id"):
        check_dataset_dicts("x", records, ["balloon"])


def test_objects_without_masks_are_counted(records: list[dict]) -> None:
    total = sum(len(r["annotations"]) for r in records)
    check_masks("x", records, "polygon")
    del records[1]["annotations"][0]["segmentation"]
    records[2]["annotations"][0]["segmentation"] = []
    for mask_format in ("polygon", "bitmask"):
        with pytest.raises(UserError) as e:
            check_masks("x", records, mask_format)
        assert f"dataset 'x': 2 of {total} objects have no outline (`segmentation`)" in str(e.value)
        assert f"the first is in {records[1]['file_name']};" in str(e.value)
        assert "dataloader.train.mapper.use_instance_mask=False" in str(e.value)
        assert "with custom/faster_rcnn_lite0_fpn.py" in str(e.value)
        assert "datasets.x.boxes_as_masks=True" in str(e.value)
    check_masks("x", records, None)
    for record in records[1:3]:
        record["annotations"][0]["iscrowd"] = 1
    check_masks("x", records, "polygon")


def test_skipped_annotations_are_counted_by_reason(records: list[dict]) -> None:
    total = sum(len(r["annotations"]) for r in records)
    # The readers of VOC and Open Images mark difficult objects and groups as crowds, too.
    marks = [{"iscrowd": 1}, {"iscrowd": 1, "difficult": 1}, {"iscrowd": 1, "is_group_of": 1}]
    for annotation, mark in zip(records[0]["annotations"], marks, strict=False):
        annotation |= mark
    metadata = {"json_file": "my a.json", "left_out": {"of a class": 2}}
    summary = check_dataset_dicts("x", records, ["balloon"], metadata)
    assert summary.skipped == {
        "crowd": 1,
        "marked difficult or ignore": 1,
        "group (is_group_of)": 1,
        "of a class": 2,
    }
    assert summary.instances == total - 3
    assert (
        f"5 of {total + 2} annotations are not trained on: 1 crowd, 1 marked" in summary.problems[0]
    )
    check_trainable([summary])
    val = check_dataset_dicts("x", records, ["balloon"], metadata, use="evaluated")
    assert "annotations are not evaluated: 1 crowd" in val.problems[0]


def test_training_set_of_crowds_is_refused_with_a_command(
    records: list[dict], tmp_path: Path
) -> None:
    """The command in the message turns the crowds into objects."""
    file = tmp_path / "my a.json"
    content = to_coco(records, ["balloon"])
    for annotation in content["annotations"]:
        annotation["iscrowd"] = 1
    file.write_text(json.dumps(content))
    crowds, _ = read_coco(file, "/")
    total = len(content["annotations"])
    summary = check_dataset_dicts("x", crowds, ["balloon"], {"json_file": str(file)})
    with pytest.raises(UserError, match=f"{total} of {total} annotations .*: {total} crowds") as e:
        check_trainable([summary])
    command = re.search(r"sed .*objects\.json", str(e.value))[0]
    subprocess.run(command, shell=True, check=True, cwd=tmp_path)
    again, _ = read_coco(tmp_path / "objects.json", "/")
    assert check_dataset_dicts("x", again, ["balloon"]).instances == total
    # It is enough if another training set has objects, and images without annotations are valid.
    some = check_dataset_dicts("y", records, ["balloon"])
    check_trainable([summary, some])
    for record in records:
        record["annotations"] = []
    check_trainable([check_dataset_dicts("z", records, ["balloon"])])


def test_maximum_number_of_objects_per_image_is_counted(records: list[dict]) -> None:
    first = records[0]["annotations"][0]
    records[1]["annotations"] = [{**first, "category_id": i % 3} for i in range(300)]
    records[1]["annotations"] += [{**first, "iscrowd": 1}] * 5
    summary = check_dataset_dicts("x", records, ["balloon", "kite", "bird"])
    assert (summary.most, summary.most_of_a_class) == (300, 100)


def test_unknown_mask_format_is_refused(records: list[dict]) -> None:
    with pytest.raises(UserError, match="instance_mask_format='rle': give polygon or bitmask"):
        check_masks("x", records, "rle")


def test_sizes_that_differ_from_the_images_are_refused(records: list[dict]) -> None:
    records[2]["width"] += 1
    with pytest.raises(UserError, match="pixels for .* but the image has .*d2ext check$"):
        check_dataset_dicts("x", records, ["balloon"])


@pytest.mark.parametrize("key", ["exif", "xmp"])
def test_sizes_of_rotated_photos_match_detectron2(tmp_path: Path, key: str) -> None:
    from detectron2.data.detection_utils import read_image

    exif = Image.Exif()
    exif[0x0112] = 6
    xmp = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><d tiff:Orientation="6"/></x:xmpmeta>'
    more = {"exif": exif} if key == "exif" else {"xmp": xmp}
    Image.new("RGB", (40, 30)).save(tmp_path / "a.jpg", **more)
    height, width = read_image(tmp_path / "a.jpg").shape[:2]
    assert image_size(tmp_path / "a.jpg") == (width, height) == (30, 40)
