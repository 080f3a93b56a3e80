"""Every kind of problem is found in the right place, and nothing else is reported."""

import copy
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from d2ext.data.validation.coco.check_file import Checks
from d2ext.data.validation.coco.checks.all_checks import fast_findings
from d2ext.data.validation.coco.checks.statistics import Anchors
from d2ext.data.validation.coco.finding import KINDS, Finding
from d2ext.data.validation.coco.source import Source
from d2ext.data.validation.coco.table import read_coco_table
from d2ext.errors import UserError

# The valid file has tiny objects and a crowd, which are reported, but are not errors.
ALWAYS = {"object_anchors", "object_crowd"}


def codes(findings: list[Finding]) -> dict[str, list[int]]:
    """Return the rows by code."""
    return {f.code: [int(r) for r in f.rows] for f in findings if f.code not in ALWAYS}


def test_valid_file_has_no_findings(content: dict, photos: Path, write_json: Callable) -> None:
    path = write_json(content)
    assert codes(fast_findings(content)) == codes(fast_findings(path)) == {}
    assert codes(Checks(Source(path, photos))(read_coco_table(path))) == {}


def test_absolute_names_are_valid_inside_the_image_folder(content: dict, photos: Path) -> None:
    for image in content["images"]:
        image["file_name"] = str(photos.resolve() / image["file_name"])
    assert codes(fast_findings(content)) == {"image_path": [0, 1, 2]}
    assert codes(fast_findings(content, images=photos)) == {}


def change(part: str, row: int, **values: object) -> Callable[[dict], None]:
    return lambda content: content[part][row].update(values)


def lose(part: str, row: int, key: str) -> Callable[[dict], None]:
    return lambda content: content[part][row].pop(key)


def repeat(part: str, row: int, **values: object) -> Callable[[dict], None]:
    return lambda content: content[part].append({**content[part][row], **values})


DAMAGES = [
    (change("images", 1, width="64"), {"image_malformed": [1], "unknown_image": [2, 3]}),
    (change("images", 1, height=0), {"image_malformed": [1], "unknown_image": [2, 3]}),
    (change("images", 1, height=10**6), {"image_malformed": [1], "unknown_image": [2, 3]}),
    (change("images", 0, file_name="/etc/a.jpg"), {"image_path": [0]}),
    (change("images", 0, file_name="sub/../../a.jpg"), {"image_path": [0]}),
    (change("images", 0, file_name="h\u00c3\u00bc.jpg"), {"image_mojibake": [0]}),
    (repeat("images", 0, file_name="d.jpg"), {"image_duplicate_id": [3], "image_empty": [3]}),
    (repeat("images", 0, id=99), {"image_duplicate_entry": [3], "image_empty": [3]}),
    (repeat("images", 0, id=99, file_name="d.jpg"), {"image_empty": [3]}),
    (repeat("categories", 0, name="cow"), {"category_duplicate_id": [2], "category_unused": [2]}),
    (repeat("categories", 0, id=5), {"category_duplicate_name": [2], "category_unused": [2]}),
    (change("categories", 0, name="K\u00c3\u00a4fer"), {"category_mojibake": [0]}),
    (change("categories", 0, name=7), {"category_malformed": [0], "unknown_category": [0, 2, 4]}),
    (change("annotations", 0, id=0), {"annotation_id_zero": [0]}),
    (change("annotations", 0, id=5), {"annotation_duplicate_id": [2]}),
    (repeat("annotations", 0, id=99), {"annotation_duplicate": [5]}),
    (change("annotations", 0, image_id=4), {"unknown_image": [0]}),
    (change("annotations", 0, category_id=4), {"unknown_category": [0]}),
    (change("annotations", 0, bbox=[1, 2, float("nan"), 4]), {"annotation_malformed": [0]}),
    (change("annotations", 0, area=float("inf")), {"annotation_malformed": [0]}),
    (change("annotations", 0, bbox=[1, 2, 3]), {"annotation_malformed": [0]}),
    (change("annotations", 0, image_id="3"), {"annotation_malformed": [0]}),
    (change("annotations", 0, iscrowd=2), {"annotation_malformed": [0]}),
    (change("annotations", 0, id=10**30), {"annotation_malformed": [0]}),
    (change("annotations", 0, segmentation=[1, 1, 9, 1, 9, 9]), {"annotation_malformed": [0]}),
    (lose("annotations", 0, "id"), {"annotation_malformed": [0]}),
    (lose("annotations", 0, "segmentation"), {"mask_none": [0]}),
    (change("annotations", 0, segmentation=[]), {"mask_none": [0]}),
    (lose("annotations", 0, "area"), {"area_missing": [0]}),
    (lose("annotations", 0, "bbox"), {"box_none": [0]}),
    (change("annotations", 0, bbox=[10, 10, 0, 16]), {"box_none": [0], "box_not_of_mask": None}),
    (change("annotations", 0, bbox=[64, 10, 9, 9]), {"box_outside": [0], "box_not_of_mask": [0]}),
    (change("annotations", 1, bbox=[0, 0, 66, 48]), {"box_over_edge": [1]}),
    (change("annotations", 0, bbox=[10, 10, 30, 26]), {"box_not_of_mask": [0]}),
    (change("annotations", 0, area=3), {"area_not_of_mask": [0]}),
    (change("annotations", 2, area=900), {"area_not_of_mask": [2]}),
    (change("annotations", 0, area=-1), {"area_not_of_mask": [0]}),
    (change("annotations", 0, segmentation=[[1, 1, 5, 5]]), {"polygon_degenerate": [0]}),
    (change("annotations", 0, segmentation=[[1, 1, 5, 5, 9]]), {"polygon_degenerate": [0]}),
    (change("annotations", 0, segmentation=[[1, 1, 5, 5, 9, 9]]), {"polygon_degenerate": [0]}),
    (
        change("annotations", 0, segmentation=[[10, 10, 30, 26, 30, 10, 10, 27]]),
        {"polygon_crossing": [0]},
    ),
    (
        # A pentagram turns only one way around its center, but twice.
        change("annotations", 0, segmentation=[[20, 9, 26, 27, 10, 16, 30, 16, 14, 27]]),
        {"polygon_crossing": [0]},
    ),
    (
        change("annotations", 3, segmentation={"size": [48, 64], "counts": [965, 10, 38]}),
        {"rle_invalid": [3]},
    ),
    (
        change("annotations", 2, segmentation={"size": [48, 64], "counts": "\x00~~~\u1234oops"}),
        {"rle_invalid": [2]},
    ),
    (
        # If it were read as a question mark (a run of 15), the runs would add up to the size.
        change("annotations", 2, segmentation={"size": [48, 64], "counts": "\u1234ao2"}),
        {"rle_invalid": [2]},
    ),
    (
        change("annotations", 2, segmentation={"size": [48, 64], "counts": [10**400]}),
        {"annotation_malformed": [2], "image_empty": [1]},
    ),
    (change("images", 1, width=63), {"rle_size": [2, 3]}),
    (change("annotations", 0, ignore=1), {"object_ignored": [0]}),
    (change("annotations", 0, difficult=True), {"object_ignored": [0]}),
    (
        change("annotations", 0, attributes={"rotation": 40.0}, segmentation=[]),
        {"object_rotated": [0], "mask_none": [0]},
    ),
    (change("annotations", 0, attributes={"rotation": 40.0}), {}),  # its polygon is exact
    (change("annotations", 0, keypoints=[3, 4, 2]), {"object_keypoints": [0]}),
    (change("annotations", 0, keypoints=[0, 0, 0]), {}),
    (change("annotations", 0, attributes="none"), {}),
    (change("annotations", 0, keypoints="none"), {"keypoints_malformed": [0]}),
    (change("annotations", 0, keypoints=[3, 4]), {"keypoints_malformed": [0]}),
    (lambda c: c["annotations"].clear(), {"image_empty": [0, 1, 2], "category_unused": [0, 1]}),
]


@pytest.mark.parametrize(("damage", "expected"), DAMAGES)
def test_problem_is_found_and_located(
    damage: Callable, expected: dict, content: dict, write_json: Callable
) -> None:
    damage(content)
    expected = {code: rows for code, rows in expected.items() if rows is not None}
    findings = fast_findings(content)
    assert codes(findings) == expected
    assert codes(fast_findings(write_json(content))) == expected  # parsed another way
    for f in findings:
        assert f.severity in ("error", "warning", "info") and f.fix and f.what
        assert f"[{f.rows[0]}]" in f.example


def test_image_entries_are_compared_with_their_files(
    content: dict, photos: Path, write_json: Callable
) -> None:
    (photos / "sub" / "b.jpg").write_bytes((photos / "sub" / "b.jpg").read_bytes()[:200])
    (photos / "c.png").unlink()
    turned = Image.new("RGB", (64, 48), "blue")
    exif = Image.Exif()
    exif[0x0112] = 6  # stored in landscape, shown in portrait orientation
    turned.save(photos / "a.jpg", exif=exif)
    path = write_json(content)
    found = {f.code: f for f in Checks(Source(path, photos))(read_coco_table(path))}
    assert codes(found.values()) == {
        "image_missing": [2],
        "image_unreadable": [1],
        "image_size": [0],
    }
    assert "64 x 48, but the file has 48 x 64 (its EXIF" in found["image_size"].example


def test_pixels_are_decoded_on_request(content: dict, photos: Path, write_json: Callable) -> None:
    path = write_json(content)
    noise = Image.effect_noise((64, 48), 90).convert("RGB")
    noise.save(photos / "a.jpg")
    whole = (photos / "a.jpg").read_bytes()
    (photos / "a.jpg").write_bytes(whole[: len(whole) // 2])
    headers, pixels = (
        codes(Checks(Source(path, photos, decode=decode))(read_coco_table(path)))
        for decode in (False, None)
    )
    assert headers == {} and pixels == {"image_unreadable": [0]}


def test_identical_images_are_found(content: dict, photos: Path, write_json: Callable) -> None:
    shutil.copy(photos / "a.jpg", photos / "sub" / "b.jpg")
    path = write_json(content)
    assert codes(Checks(Source(path, photos))(read_coco_table(path))) == {"image_identical": [1]}


def test_images_shared_with_the_other_set_are_found(
    content: dict, photos: Path, write_json: Callable, tmp_path: Path
) -> None:
    other = copy.deepcopy(content)
    other["images"], other["annotations"] = [{**content["images"][2], "file_name": "z.png"}], []
    other["categories"][1]["name"] = "dog"
    (tmp_path / "val").mkdir()
    shutil.copy(photos / "c.png", tmp_path / "val" / "z.png")
    path, val = write_json(content), write_json(other, "val.json")
    found = Checks(Source(path, photos, val, tmp_path / "val"))(read_coco_table(path))
    assert codes(found)["against_identical"] == [2]
    example = next(f.example for f in found if f.code == "against_categories")
    assert example == "'Hündin' is only here, 'dog' only there"


def test_imbalance_and_anchors(content: dict) -> None:
    box = {**content["annotations"][0], "segmentation": [], "area": 256}
    content["annotations"] += [
        {**box, "id": 100 + i, "bbox": [i % 40, i // 40, 16, 16]} for i in range(400)
    ]
    found = {f.code: f for f in fast_findings(content)}
    assert list(found["category_imbalance"].rows) == [1]
    # 64 x 48 becomes 1067 x 800; a box of 16 pixels becomes 267, which the anchor of 256 overlaps.
    assert 1 <= found["object_anchors"].count <= 3
    few = {f.code: f for f in fast_findings(content, Anchors(sizes=[32], short_side=48))}
    assert few["object_anchors"].count > 400 and few["object_anchors"].severity == "warning"


def test_crowds_are_counted(content: dict) -> None:
    (few,) = (f for f in fast_findings(content) if f.code == "object_crowd")
    assert (few.count, few.severity) == (1, "info") and "1 of 5 annotations" in few.example
    for a in content["annotations"]:
        a["iscrowd"] = 1
    (all_,) = (f for f in fast_findings(content) if f.code == "object_crowd")
    assert (all_.count, all_.severity) == (5, "warning")
    assert "CVAT" in all_.what and "iscrowd to 0" in all_.fix


def test_images_with_too_many_objects_are_found(content: dict) -> None:
    template = content["annotations"][0]
    content["annotations"] += [
        {**template, "id": 100 + i, "bbox": [i % 40, 5, 20, 16], "segmentation": []}
        for i in range(99)
    ]
    (found,) = (f for f in fast_findings(content) if f.code == "object_many")
    assert found.rows == [0] and "has 101, but the limit is 100" in found.example
    assert "test_topk_per_image" in found.fix and "--max-detections" in found.fix
    assert "object_many" not in codes(fast_findings(content, max_detections=101))


@pytest.mark.parametrize(
    ("mode", "suffix", "words"),
    [
        ("I;16", "png", "16 bits"),
        ("I;16", "tif", "16 bits"),
        ("F", "tif", "floating-point values"),
        ("I", "tif", "integers of more than 8 bits"),
    ],
)
def test_images_with_more_than_8_bits_are_reported_with_the_scaling(
    mode: str, suffix: str, words: str, content: dict, photos: Path, write_json: Callable
) -> None:
    Image.new(mode, (64, 48)).save(photos / f"deep.{suffix}")
    content["images"][0]["file_name"] = f"deep.{suffix}"
    path = write_json(content)
    for decode in (True, False):
        found = Checks(Source(path, photos, decode=decode))(read_coco_table(path))
        (deep,) = (f for f in found if f.code == "image_depth")
        assert (
            deep.rows == [0] and words in deep.example and "lowest value becomes 0" in deep.example
        )


def test_frames_and_transparency_are_reported(
    content: dict, photos: Path, write_json: Callable
) -> None:
    first, second = (Image.new("RGB", (64, 48), color) for color in ("red", "blue"))
    first.save(photos / "a.gif", save_all=True, append_images=[second])
    clear = Image.new("RGBA", (64, 48), (255, 0, 0, 99))
    clear.save(photos / "b.png")
    Image.new("RGBA", (40, 60), (255, 0, 0, 255)).save(photos / "c.png")  # fully opaque
    for row, name in enumerate(("a.gif", "b.png", "c.png")):
        content["images"][row]["file_name"] = name
    path = write_json(content)
    found = codes(Checks(Source(path, photos))(read_coco_table(path)))
    assert found == {"image_frames": [0], "image_transparent": [1]}


def test_images_over_the_pixel_limit_are_not_reported_as_unreadable(
    content: dict, photos: Path, write_json: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("D2EXT_MAX_IMAGE_PIXELS", "3000")
    path = write_json(content)
    found = Checks(Source(path, photos))(read_coco_table(path))
    assert codes(found) == {"image_refused": [0, 1]}  # 64 x 48; the third image has 40 x 60
    for words in ("3,072 pixels", "smaller files", "D2EXT_MAX_IMAGE_PIXELS=3072"):
        assert words in found[0].example
    monkeypatch.setenv("D2EXT_MAX_IMAGE_PIXELS", "3072")
    assert codes(Checks(Source(path, photos))(read_coco_table(path))) == {}


def test_every_kind_of_finding_is_tested() -> None:
    tried = {code for _, expected in DAMAGES for code in expected}
    tried |= {"image_missing", "image_unreadable", "image_size", "image_identical"}
    tried |= {"against_identical", "against_categories", "category_imbalance", "object_anchors"}
    tried |= {"object_crowd", "object_many", "image_refused", "image_depth", "image_frames"}
    tried |= {"image_transparent"}
    assert set(KINDS) - tried == {"image_none"}


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "7",
        '{"images": [], "annotations": []}',
        '{"images": {}, "annotations": [], "categories": []}',
        "[" * 200_000,
        '{"images": ' + "[" * 200_000,
        json.dumps({"via": {"filename": "a.jpg", "regions": {}}}),
    ],
)
def test_invalid_coco_file_is_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(UserError, match="x.json"):
        fast_findings(tmp_path / "x.json")


def test_no_images_is_a_warning(content: dict) -> None:
    content["images"].clear()
    content["annotations"].clear()
    found = {f.code: f.severity for f in fast_findings(content)}
    assert found == {"image_none": "warning", "category_unused": "warning"}
