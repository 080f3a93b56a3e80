"""`--fix`: ids that are text, ambiguous names, runs without images, masks and edges."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from d2ext.data.validation.coco.check_file import Checks, write_fixed
from d2ext.data.validation.coco.checks.all_checks import fast_findings
from d2ext.data.validation.coco.fixes.fix import fix
from d2ext.data.validation.coco.source import Source
from d2ext.errors import UserError
from tests.data.validation.coco.conftest import annotation, valid_content


def run_fix(
    content: dict, write_json: Callable, photos: Path | None, drop: bool = False
) -> tuple[dict, list[str]]:
    """Write and fix a file; return the fixed content and the changes."""
    path = write_json(content)
    source = Source(path, photos)
    fixed = write_fixed(source, path.with_name("out.json"), Checks(source), drop)
    return json.loads(path.with_name("out.json").read_bytes()), fixed.changes


@pytest.mark.parametrize(
    ("images", "categories"),
    [
        (["x", "y", "z"], [2, 18]),
        ([3, 7, 12], ["cat", "dog"]),
        (["1", "01", "1.0"], ["", "1"]),  # three photos, not one
        ([7, "x", "y"], ["x", 1]),
    ],
)
def test_ids_that_are_text_become_numbers_everywhere(
    images: list, categories: list, content: dict, write_json: Callable, photos: Path
) -> None:
    for part, key, ids in (
        ("images", "image_id", images),
        ("categories", "category_id", categories),
    ):
        new = dict(zip((e["id"] for e in content[part]), ids, strict=True))
        for e in content[part]:
            e["id"] = new[e["id"]]
        for a in content["annotations"]:
            a[key] = new[a[key]]
    fixed, _ = run_fix(content, write_json, photos)
    assert len(fixed["annotations"]) == 5
    for a, b in zip(fixed["annotations"], valid_content()["annotations"], strict=True):
        for part, key, name in (
            ("images", "image_id", "file_name"),
            ("categories", "category_id", "name"),
        ):
            mine, right = (
                next(e[name] for e in c[part] if e["id"] == x[key])
                for c, x in ((fixed, a), (valid_content(), b))
            )
            assert mine == right
        keys = ("id", "bbox", "area", "segmentation", "iscrowd")
        assert [a[k] for k in keys] == [b[k] for k in keys]


def test_a_category_may_be_referred_to_by_its_name(content: dict) -> None:
    content["annotations"][0]["category_id"] = "Hündin"
    content["annotations"][1]["category_id"] = "cow"
    fixed = fix(content, fast_findings).content
    assert [a["category_id"] for a in fixed["annotations"]] == [18, 1, 2, 18, 2]
    assert fixed["categories"][2:] == [{"id": 1, "name": "cow"}]


def test_removing_all_annotations_is_refused(content: dict, write_json: Callable) -> None:
    for a in content["annotations"]:
        a["image_id"] = 99
    with pytest.raises(UserError, match=r"annotations of images that are not .*--drop-unusable"):
        run_fix(content, write_json, None)
    with pytest.raises(UserError, match="annotations would be left"):
        run_fix(content, write_json, None, drop=True)
    assert not write_json(content).with_name("out.json").exists()


@pytest.mark.parametrize(
    "values", [{"width": None}, {"file_name": "../x/a.jpg"}, {"file_name": "/a.jpg"}]
)
def test_images_are_not_removed_without_an_image_folder(
    values: dict, content: dict, write_json: Callable
) -> None:
    content["images"][0] |= values
    with pytest.raises(UserError, match=r"^images\[0\]: .*give --images"):
        run_fix(content, write_json, None)


def test_file_name_may_be_a_number(content: dict, write_json: Callable, photos: Path) -> None:
    (photos / "a.jpg").rename(photos / "5")
    content["images"][0]["file_name"] = 5
    fixed, _ = run_fix(content, write_json, photos)
    content["images"][0]["file_name"] = "5"
    assert fixed == content


@pytest.mark.parametrize(
    ("files", "names", "meant"),
    [
        (["a.jpg"], ["../one/a.jpg"], ["a.jpg"]),
        (["sub/a.jpg"], ["/home/me/a.jpg"], None),
        (["sub/a.jpg"], ["a.jpg"], ["sub/a.jpg"]),
        (["more/sub/a.jpg"], ["sub/a.jpg"], ["more/sub/a.jpg"]),
        (["train/a.jpg"], ["val/a.jpg"], None),  # the validation photos are not there yet
        (["train/a.jpg"], ["D:\\data\\val\\a.jpg"], None),
        (["a.jpg", "val/b.jpg"], ["val/a.jpg"], None),
        (["more/val/a.jpg", "val/b.jpg"], ["val/a.jpg"], None),
        (["train/img 2.jpg"], ["val/img_2.jpg"], None),
        (["café.png"], ["cafe.jpg"], None),
        (["img_1.png"], ["/home/me/img_1.jpg"], None),
        (["a.jpg"], ["../one/a.jpg", "../two/a.jpg"], None),
        (["a.jpg", "sub/a.jpg"], ["../one/a.jpg"], None),
        (["a.jpg"], ["../one/a.jpg", "a.jpg"], None),
        (["IMG.jpg"], ["Img.jpg"], ["IMG.jpg"]),
        (["IMG.jpg", "img.jpg"], ["Img.jpg"], None),
        (["img.jpg"], ["Img.jpg", "img.jpg"], None),
        (["img.jpg"], ["Img.jpg", "IMG.jpg"], None),
    ],
)
def test_objects_of_two_photos_are_never_mixed(
    files: list, names: list, meant: list | None, write_json: Callable, tmp_path: Path
) -> None:
    root = tmp_path / "some"
    for i, name in enumerate(files):
        (root / name).parent.mkdir(exist_ok=True, parents=True)
        Image.new("RGB", (64, 48), (i, 99, 99)).save(root / name)
    square = [[10, 10, 30, 10, 30, 26, 10, 26]]
    content = {
        "images": [
            {"id": i, "file_name": n, "width": 64, "height": 48} for i, n in enumerate(names, 1)
        ],
        "annotations": [
            annotation(i, i, 1, [10, 10, 20, 16], 320, square) for i, _ in enumerate(names, 1)
        ],
        "categories": [{"id": 1, "name": "cat"}],
    }
    if meant is None:
        with pytest.raises(UserError, match=r"nothing was written.*images\[0\].*correct file_name"):
            run_fix(content, write_json, root)
    else:
        fixed, _ = run_fix(content, write_json, root)
        assert [i["file_name"] for i in fixed["images"]] == meant
        assert fixed["annotations"] == content["annotations"]


@pytest.mark.parametrize(
    "shape",
    [
        [[[10, 10], [30, 10], [30, 26], [10, 26]]],
        [[10, 10], [30, 10], [30, 26], [10, 26]],
        [10, 10, 30, 10, 30, 26, 10, 26],
        [["10", 10, 30, 10, 30, 26, 10, 26]],
    ],
)
def test_polygon_points_may_be_nested_in_any_way(shape: list, content: dict) -> None:
    content["annotations"][0]["segmentation"] = shape
    assert fix(content, fast_findings).content == valid_content()


def test_rle_of_floats_is_converted(content: dict) -> None:
    plain = content["annotations"][3]["segmentation"]
    damaged = {"size": [48.0, "64"], "counts": list(map(float, plain["counts"]))}
    content["annotations"][3]["segmentation"] = damaged
    assert fix(content, fast_findings).content == valid_content()


def test_masks_are_clipped_with_their_boxes(content: dict) -> None:
    first, second, *_ = content["annotations"]
    first |= {"bbox": [54, 38, 30, 30], "area": 450, "segmentation": [[54, 38, 84, 38, 54, 68]]}
    second |= {"bbox": None, "area": 800, "segmentation": [[-20, 0, 20, 0, 20, 20, -20, 20]]}
    fixed = fix(content, fast_findings)
    assert {f.code for f in fixed.findings} <= {"object_anchors", "object_crowd"}
    first, second, *_ = fixed.content["annotations"]
    assert (first["bbox"], first["area"]) == ([54, 38, 10, 10], 100)
    assert (second["bbox"], second["area"]) == ([0, 0, 20, 20], 400)
    assert len(fixed.changes) == 2


@pytest.mark.parametrize(
    ("file", "name"),
    [
        ("Käfer.jpg", "Ka\u0308fer.jpg"),  # the accent as a separate character
        ("IMG_1.JPG", "img_1.jpg"),
        ("IMG_1.jpeg", "IMG_1.jpg"),
        ("img_1.png", "IMG_1.JPG"),
        ("IMG_1.jpg", "img_1"),
        ("img.1.jpg", "IMG.1"),
        ("a.jpg", "C:\\Users\\me\\photos\\a.jpg"),
        ("train/a.jpg", "D:/data/train/a.jpg"),
        ("a.jpg", "/home/me/photos/a.jpg"),
        ("a.jpg", "./../photos/./a.jpg"),
        ("a.jpg", "file:///home/me/a.jpg"),
        ("a.jpg", "https://example.com/data/a.jpg?size=full"),
        ("my photo.jpg", "my%20photo.jpg"),
        ("my photo.jpg", "my_photo.jpg"),
        ("a.jpg", " a.jpg "),
        ("100%.jpg", "100%25.jpg"),
        ("hü.jpg", "h\u00c3\u00bc.jpg"),  # UTF-8 that was read as Latin-1
        ("Kafer.jpg", "Käfer.jpg"),
        ("a.jpg", "photos\\a.jpg"),
    ],
)
def test_misspelled_name_is_corrected(
    file: str, name: str, content: dict, write_json: Callable, photos: Path
) -> None:
    (photos / file).parent.mkdir(exist_ok=True, parents=True)
    (photos / "a.jpg").rename(photos / "old")
    Image.open(photos / "old").save(photos / file)
    (photos / "old").unlink()
    content["images"][0]["file_name"] = name
    fixed, changes = run_fix(content, write_json, photos)
    content["images"][0]["file_name"] = file
    assert fixed == content and len(changes) == 1


def test_file_in_the_folders_of_the_name_is_preferred(
    content: dict, write_json: Callable, photos: Path
) -> None:
    for folder in ("train", "val"):
        (photos / folder).mkdir()
        Image.new("RGB", (64, 48)).save(photos / folder / "x.jpg")
    content["images"][0]["file_name"] = "C:\\data\\val\\x.jpg"
    fixed, _ = run_fix(content, write_json, photos)
    assert fixed["images"][0]["file_name"] == "val/x.jpg"


def test_ambiguous_name_is_refused_with_similar_files(
    content: dict, write_json: Callable, photos: Path
) -> None:
    (photos / "train").mkdir()
    (photos / "a.jpg").rename(photos / "train" / "a.jpg")
    content["images"][0]["file_name"] = "val/a.jpg"
    with pytest.raises(UserError, match=r"images\[0\] \(val/a.jpg, similar to train/a.jpg\)"):
        run_fix(content, write_json, photos)
    assert not write_json(content).with_name("out.json").exists()


def test_similar_file_of_another_size_is_not_used(
    content: dict, write_json: Callable, photos: Path
) -> None:
    """A file of the same name, such as IMG_0001.jpg, in another folder can be another photo."""
    (photos / "other").mkdir()
    Image.new("RGB", (300, 200)).save(photos / "other" / "x.jpg")
    content["images"][0]["file_name"] = "C:\\data\\x.jpg"
    with pytest.raises(UserError, match=r"nothing was written.*correct file_name"):
        run_fix(content, write_json, photos)


def test_misspelled_name_without_size_gets_both(
    content: dict, write_json: Callable, photos: Path
) -> None:
    content["images"][0] = {"id": 3, "file_name": "A.JPG", "license": 1}
    fixed, _ = run_fix(content, write_json, photos)
    assert fixed["images"][0] == valid_content()["images"][0] | {"file_name": "a.jpg"}


def _truncate_photo(photos: Path) -> None:
    (photos / "a.jpg").write_bytes((photos / "a.jpg").read_bytes()[:300])


UNUSABLE = [
    (lambda c, photos: (photos / "a.jpg").unlink(), "without a file", 1, 2),
    (lambda c, photos: _truncate_photo(photos), "cannot be read", 1, 2),
    (lambda c, photos: c["images"][0].pop("file_name"), "wrong values", 1, 2),
    (lambda c, photos: c["images"].pop(0), "not listed", 0, 2),
    (lambda c, photos: c["annotations"][0].update(image_id="z"), "not listed", 0, 1),
    (
        lambda c, photos: c["annotations"][0].update(bbox=[90, 9, 9, 9], segmentation=[]),
        "outside their image",
        0,
        1,
    ),
    (
        lambda c, photos: c["annotations"][0].update(bbox=[20, 18, 20, 16, 40], segmentation=[]),
        "wrong values",
        0,
        1,
    ),
    (
        lambda c, photos: c["annotations"][0].update(bbox={"x": 1, "y": 2}, segmentation=[]),
        "wrong values",
        0,
        1,
    ),
]


@pytest.mark.parametrize(("damage", "message", "images", "annotations"), UNUSABLE)
def test_repairable_entries_are_dropped_only_on_request(
    damage: Callable,
    message: str,
    images: int,
    annotations: int,
    content: dict,
    write_json: Callable,
    photos: Path,
) -> None:
    damage(content, photos)
    before = len(content["images"])
    with pytest.raises(UserError, match=rf"nothing was written.*{message}.*--drop-unusable"):
        run_fix(content, write_json, photos)
    assert not write_json(content).with_name("out.json").exists()
    fixed, changes = run_fix(content, write_json, photos, drop=True)
    assert before - len(fixed["images"]) == images
    assert len(valid_content()["annotations"]) - len(fixed["annotations"]) == annotations
    assert sum("removed" in change for change in changes) == images + annotations


def test_photo_over_the_pixel_limit_is_never_dropped(
    content: dict, write_json: Callable, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("D2EXT_MAX_IMAGE_PIXELS", "3000")
    for drop in (False, True):
        with pytest.raises(UserError, match=r"nothing was written.*pixel limit"):
            run_fix(content, write_json, photos, drop)


@pytest.mark.parametrize(
    ("values", "kept"),
    [
        (dict(bbox=[10, 10, 0, 16], segmentation=[]), False),
        (dict(bbox=None, segmentation=None), False),
        (dict(bbox=[30, 26, -20, -16], segmentation=[]), True),  # corners in another order
        (dict(segmentation=[[10, 10, 30, 26]]), True),  # the box is valid
        (dict(segmentation={"size": [48, 64], "counts": [5, 5]}), True),
    ],
)
def test_annotation_is_removed_only_without_any_shape(
    values: dict, kept: bool, content: dict, write_json: Callable, photos: Path
) -> None:
    content["annotations"][0].update(values)
    fixed, _ = run_fix(content, write_json, photos)
    assert (fixed["annotations"][0]["id"] == 1) == kept
    assert not kept or fixed["annotations"][0]["bbox"] == content["annotations"][0]["bbox"]


def test_rle_of_another_size_is_removed_only_on_request(
    content: dict, write_json: Callable, photos: Path
) -> None:
    content["annotations"][2]["segmentation"]["size"] = [24, 128]
    with pytest.raises(UserError, match=r"nothing was written.*RLE masks whose size differs"):
        run_fix(content, write_json, photos)
    fixed, _ = run_fix(content, write_json, photos, drop=True)
    assert "segmentation" not in fixed["annotations"][2] and len(fixed["annotations"]) == 5


@pytest.mark.parametrize("text", ["sub/b.jpg", "b.jpg", "b"])
def test_an_image_may_be_referred_to_by_its_name(text: str, content: dict) -> None:
    content["annotations"][2]["image_id"] = text
    assert fix(content, fast_findings).content == valid_content()


def test_new_id_is_not_one_that_annotations_refer_to(content: dict) -> None:
    """Otherwise the new category would take over the annotations of an unlisted one."""
    content["categories"].append({"name": "cow"})
    content["annotations"][0]["category_id"] = 1
    fixed = fix(content, fast_findings).content
    names = {c["id"]: c["name"] for c in fixed["categories"]}
    assert (names[1], names[3]) == ("category_1", "cow")


@pytest.mark.parametrize("part", ["images", "categories"])
def test_duplicate_ids_of_annotated_entries_are_refused(
    part: str, content: dict, write_json: Callable
) -> None:
    key = {"images": "file_name", "categories": "name"}[part]
    content[part].append({**content[part][0], key: "another"})
    with pytest.raises(UserError, match=r"nothing was written.*used twice"):
        run_fix(content, write_json, None)
    content["annotations"] = [a for a in content["annotations"] if a["image_id"] != 3]
    content["annotations"] = [a for a in content["annotations"] if a["category_id"] != 2]
    fixed, _ = run_fix(content, write_json, None)
    assert fixed[part][-1][key] == "another" and fixed[part][-1]["id"] == 1
