"""`--fix`: ids that are text, names of several files, images nobody looked at, masks and edges."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from d2ext.data.checker.checks import fast_findings
from d2ext.data.checker.fix import fix
from d2ext.data.checker.run import Source, findings_of, mend
from d2ext.errors import UserError
from tests.data.checker.conftest import annotation, made


def mended(content: dict, written: Callable, photos: Path | None) -> tuple[dict, list[str]]:
    """The mended content, and the changes."""
    path = written(content)
    source = Source(path, photos)
    fixed = mend(source, path.with_name("out.json"), findings_of(source))
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
    images: list, categories: list, content: dict, written: Callable, photos: Path
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
    fixed, _ = mended(content, written, photos)
    assert len(fixed["annotations"]) == 5
    for a, b in zip(fixed["annotations"], made()["annotations"], strict=True):
        for part, key, name in (
            ("images", "image_id", "file_name"),
            ("categories", "category_id", "name"),
        ):
            mine, right = (
                next(e[name] for e in c[part] if e["id"] == x[key])
                for c, x in ((fixed, a), (made(), b))
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


def test_annotations_do_not_all_go(content: dict, written: Callable) -> None:
    for a in content["annotations"]:
        a["image_id"] = 99
    with pytest.raises(UserError, match="annotations would be left"):
        mended(content, written, None)
    assert not written(content).with_name("out.json").exists()


@pytest.mark.parametrize(
    "values", [{"width": None}, {"file_name": "../x/a.jpg"}, {"file_name": "/a.jpg"}]
)
def test_images_do_not_go_unseen(values: dict, content: dict, written: Callable) -> None:
    content["images"][0] |= values
    with pytest.raises(UserError, match=r"^images\[0\]: .*give --images"):
        mended(content, written, None)


def test_a_number_may_be_a_name(content: dict, written: Callable, photos: Path) -> None:
    (photos / "a.jpg").rename(photos / "5")
    content["images"][0]["file_name"] = 5
    fixed, _ = mended(content, written, photos)
    content["images"][0]["file_name"] = "5"
    assert fixed == content


@pytest.mark.parametrize(
    ("files", "names", "meant"),
    [
        (["a.jpg"], ["../one/a.jpg"], ["a.jpg"]),
        (["sub/a.jpg"], ["/home/me/a.jpg"], ["sub/a.jpg"]),
        (["a.jpg"], ["../one/a.jpg", "../two/a.jpg"], None),
        (["a.jpg", "sub/a.jpg"], ["../one/a.jpg"], None),
        (["a.jpg"], ["../one/a.jpg", "a.jpg"], None),
        (["IMG.jpg"], ["Img.jpg"], ["IMG.jpg"]),
        (["IMG.jpg", "img.jpg"], ["Img.jpg"], None),
        (["img.jpg"], ["Img.jpg", "img.jpg"], None),
        (["img.jpg"], ["Img.jpg", "IMG.jpg"], None),
    ],
)
def test_objects_of_two_photos_never_join(
    files: list, names: list, meant: list | None, written: Callable, tmp_path: Path
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
        with pytest.raises(UserError, match=r"nothing is written.*images\[0\].*correct file_name"):
            mended(content, written, root)
    else:
        fixed, _ = mended(content, written, root)
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
def test_points_in_any_lists_are_a_mask(shape: list, content: dict) -> None:
    content["annotations"][0]["segmentation"] = shape
    assert fix(content, fast_findings).content == made()


def test_an_rle_of_floats_is_a_mask(content: dict) -> None:
    plain = content["annotations"][3]["segmentation"]
    spoilt = {"size": [48.0, "64"], "counts": list(map(float, plain["counts"]))}
    content["annotations"][3]["segmentation"] = spoilt
    assert fix(content, fast_findings).content == made()


def test_masks_are_cut_with_their_boxes(content: dict) -> None:
    first, second, *_ = content["annotations"]
    first |= {"bbox": [54, 38, 30, 30], "area": 450, "segmentation": [[54, 38, 84, 38, 54, 68]]}
    second |= {"bbox": None, "area": 800, "segmentation": [[-20, 0, 20, 0, 20, 20, -20, 20]]}
    fixed = fix(content, fast_findings)
    assert [f.code for f in fixed.findings if f.code != "object_anchors"] == []
    first, second, *_ = fixed.content["annotations"]
    assert (first["bbox"], first["area"]) == ([54, 38, 10, 10], 100)
    assert (second["bbox"], second["area"]) == ([0, 0, 20, 20], 400)
    assert len(fixed.changes) == 2
