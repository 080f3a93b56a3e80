"""`--fix`: no error is left, nothing that was right is lost, and the input stays as it was."""

import copy
import json
import math
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from PIL import Image
from pycocotools import mask

from d2ext.data.formats.coco import read_coco
from d2ext.data.formats.coco_file import PARTS, read_content
from d2ext.data.formats.rle import compressed
from d2ext.data.validation.coco.check_file import check_coco_file, findings_of, mend
from d2ext.data.validation.coco.checks.all_checks import fast_findings
from d2ext.data.validation.coco.finding import ERROR
from d2ext.data.validation.coco.fixes.fix import REMEDIES, fix
from d2ext.data.validation.coco.fixes.images_and_categories import Files
from d2ext.data.validation.coco.json_numbers import integer, numbers
from d2ext.data.validation.coco.source import Source
from d2ext.data.validation.coco.table import coco_table, read_coco_table
from d2ext.errors import UserError
from tests.data.validation.coco.conftest import draw_photos, made
from tests.data.validation.coco.test_findings import SPOILT

ODD = st.one_of(
    st.none(),
    st.booleans(),
    st.sampled_from(
        [0, -1, 3, 7, 2, 18, 2**53 + 1, 10**40, 1e308, -1e308, math.nan, math.inf, -math.inf]
    ),
    st.integers(),
    st.floats(),
    st.sampled_from(["", "7", "a.jpg", "../../etc/passwd", "/etc/passwd", ".", "x\0", "\ud800"]),
    st.text(max_size=5),
    st.lists(st.floats() | st.integers(), max_size=9),
    st.lists(st.lists(st.floats(-99, 99), max_size=9), max_size=3),
    st.dictionaries(st.sampled_from(["size", "counts", "x"]), st.text() | st.lists(st.integers())),
    st.fixed_dictionaries(
        {"size": st.just([48, 64]), "counts": st.text("0123456789QTPO\\`abcn", max_size=30)}
    ),
)


# How a point of an image of 60 x 40 pixels that its EXIF data turn got where it is shown, undone.
UNTURNED: dict[int, Callable[[float, float], list[float]]] = {
    1: lambda x, y: [x, y],
    5: lambda x, y: [y, x],
    6: lambda x, y: [y, 40 - x],
    7: lambda x, y: [60 - y, 40 - x],
    8: lambda x, y: [60 - y, x],
}


SIDES = ("width", "height")


def unturned(orientation: int) -> dict:
    """The faultless file, but c.png annotated as its pixels are stored: an error from 5 on."""
    content = made()
    image, shape = content["images"][2], content["annotations"][4]
    points = shape["segmentation"][0]
    pairs = zip(points[::2], points[1::2], strict=True)
    corners = [UNTURNED[orientation](x, y) for x, y in pairs]
    (x0, y0), (x1, y1) = ([f(c) for c in zip(*corners, strict=True)] for f in (min, max))
    shape |= {"segmentation": [sum(corners, [])], "bbox": [x0, y0, x1 - x0, y1 - y0]}
    if orientation > 4:
        image |= {"width": 60, "height": 40}
    return content


@pytest.fixture(scope="module")
def album(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Callable]:
    """The images of `unturned`, by orientation, with what checks them."""
    checks = {}
    for orientation in UNTURNED:
        root = tmp_path_factory.mktemp(f"photos{orientation}")
        draw_photos(root)
        exif = Image.Exif()
        exif[0x0112] = orientation
        size = (40, 60) if orientation < 5 else (60, 40)
        Image.new("RGB", size).save(root / "c.png", exif=exif)
        checks[orientation] = findings_of(Source(root / "x.json", root))
        checks[orientation].root = root
    return checks


@st.composite
def mutations(draw: st.DrawFn) -> tuple[dict, set[int], int]:
    """A spoilt file, the ids of the annotations that are still valid, and c.png's orientation.

    An annotation is valid while it is as it was and its image can be known: that is, has its id
    and its name. That the image has a wrong size, say, costs it nothing.
    """
    orientation = draw(st.sampled_from(sorted(UNTURNED)))
    content = unturned(orientation)
    touched, images = set(), set()
    for _ in range(draw(st.integers(1, 4))):
        part = draw(st.sampled_from(PARTS))
        row = draw(st.integers(0, len(content[part]) - 1))
        entry = content[part][row]
        kind = draw(st.sampled_from(["value", "lose", "entry", "repeat", "copy"]))
        key = draw(st.sampled_from(sorted(entry))) if isinstance(entry, dict) and entry else None
        spoils = kind == "entry" or (kind in ("value", "lose") and key)
        if spoils and part == "annotations":
            touched.add(row)
        if spoils and part == "images" and (kind == "entry" or key in ("id", "file_name")):
            images.add(row)
        if kind == "entry":
            content[part][row] = draw(ODD)
        elif key and kind == "value":
            entry[key] = draw(ODD)
        elif key and kind == "lose":
            del entry[key]
        elif key and kind == "repeat":
            content[part].append({**entry, key: draw(ODD)})
        elif key:
            content[part].append(copy.deepcopy(entry))
    lost = {i["id"] for n, i in enumerate(made()["images"]) if n in images}
    # Whose objects are they, where another image took the id?
    entries = [content["images"][row] for row in images]
    lost |= {integer(entry.get("id")) for entry in entries if isinstance(entry, dict)}
    kept = {
        a["id"]
        for n, a in enumerate(made()["annotations"])
        if n not in touched and a["image_id"] not in lost
    }
    return content, kept, orientation


def place(content: dict, annotation: dict) -> tuple:
    """Where an annotation is, however things are numbered: image, corners of its box, shape."""
    names = {i["id"]: i["file_name"] for i in content["images"]}
    x, y, w, h = annotation["bbox"]
    shape = annotation["segmentation"]
    if isinstance(shape, dict):
        pixels = mask.decode(compressed(shape))
        outline = np.argwhere(pixels)[[0, -1]].ravel().tolist()
    else:
        outline = sorted(zip(shape[0][::2], shape[0][1::2], strict=False))
    numbers = np.array([x, y, x + w, y + h, *np.ravel(outline)])
    return names[annotation["image_id"]], annotation.get("iscrowd", 0), numbers


def is_there(expected: tuple, content: dict) -> bool:
    """Whether an annotation is in that place, but for the pixel that a size may be off."""
    for a in content["annotations"]:
        if a.get("segmentation") and a.get("bbox"):
            name, crowd, numbers = place(content, a)
            if (name, crowd, len(numbers)) == (*expected[:2], len(expected[2])):
                if (abs(numbers - expected[2]) <= 1.01).all():
                    return True
    return False


def short() -> tuple[dict, set[int], int]:
    """A turned photo with a height that tells nothing: its box fits the photo turned or not."""
    content = unturned(5)
    content["images"][2]["height"] = 3
    return content, {a["id"] for a in made()["annotations"]}, 5


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(spoilt=mutations())
@example(spoilt=short())
def test_whatever_is_spoilt_is_mended_and_the_rest_is_where_it_was(
    spoilt: tuple[dict, set[int], int], album: dict[int, Callable]
) -> None:
    content, kept, orientation = spoilt
    check = album[orientation]
    files = Files(check.root, check.photos)
    before = copy.deepcopy(content)
    try:
        fixed = fix(content, check, files, drop=True)
    except UserError as e:
        # It is refused only where an image has a size that says nothing, or an id is of two.
        images = [i for i in content["images"] if isinstance(i, dict)]
        ids = [integer(i.get("id")) for i in images]
        telling = all(integer(i.get(k)) in (40, 48, 60, 64) for i in images for k in SIDES)
        why = "used twice" if telling else "used twice|whose width or|listed twice|wrong values"
        assert re.search(why, str(e)) or len(set(ids)) < len(ids)
        return
    finally:
        assert repr(content) == repr(before)
    assert not [f for f in check(coco_table(fixed.content)) if f.severity == ERROR]
    assert fixed.findings == check(coco_table(fixed.content))
    for a in made()["annotations"]:
        if a["id"] in kept:
            assert is_there(place(made(), a), fixed.content), a
    again = fix(fixed.content, check, files)
    assert not again.changes and again.content == fixed.content


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(spoilt=mutations())
def test_nothing_that_is_valid_is_removed_unasked(
    spoilt: tuple[dict, set[int], int], album: dict[int, Callable]
) -> None:
    """Either nothing is written, or each image and each annotation with a box is still there."""
    content, kept, orientation = spoilt
    check = album[orientation]
    try:
        fixed = fix(content, check, Files(check.root, check.photos)).content
    except UserError:
        return
    named = (i.get("file_name") for i in content["images"] if isinstance(i, dict))
    assert len(fixed["images"]) >= len({name for name in named if name})
    ids = [a["id"] for a in fixed["annotations"]]
    annotations = [a for a in content["annotations"] if isinstance(a, dict)]
    for a in annotations:
        if integer(a.get("id")) and _is_usable(a) and integer(a["id"]) not in ids:
            shape = a.get("segmentation")  # that of a copy
            assert any(b is not a and b.get("segmentation") == shape for b in annotations)


def _is_usable(a: dict) -> bool:
    box = numbers(a.get("bbox")) or []
    refers = isinstance(a.get("image_id"), int | str) and isinstance(
        a.get("category_id"), int | str
    )
    return refers and len(box) == 4 and min(box[2:]) > 0


@pytest.mark.parametrize(("spoil", "expected"), SPOILT)
def test_a_mended_file_is_read_and_says_what_was_done(
    spoil: Callable, expected: dict, content: dict, photos: Path, written: Callable, tmp_path: Path
) -> None:
    spoil(content)
    path, out = written(content), tmp_path / "out" / "fixed.json"
    before = path.read_bytes()
    source = Source(path, photos)
    check = findings_of(source)
    errors = [f for f in check(read_coco_table(path)) if f.severity == ERROR]
    if expected.keys() & {"image_duplicate_id", "category_duplicate_id"}:
        with pytest.raises(UserError, match=r"nothing was written.*used twice.*different ids"):
            mend(source, out, check, drop=True)
        assert not out.exists()
        return
    fixed = mend(source, out, check, drop=True)
    assert path.read_bytes() == before
    assert not [f for f in check(read_coco_table(out)) if f.severity == ERROR]
    assert fixed.changes or not errors
    records, _ = read_coco(out, photos)
    assert all(Path(r["file_name"]).is_file() for r in records)
    assert json.loads(out.read_bytes())["info"] == content["info"]


def test_values_are_saved_where_they_can_be(content: dict, photos: Path, written: Callable) -> None:
    """Names of other spelling, sizes, numbers as text, a box from its mask: nothing is removed."""
    images, annotations = content["images"], content["annotations"]
    images[0]["file_name"] = f"../{photos.name}/a.jpg"
    images[1] |= {"file_name": "SUB\\B.jpg", "width": 99}
    del images[2]["height"]
    annotations[0] |= {"bbox": None, "area": None, "id": "1"}
    annotations[1]["segmentation"] = annotations[1]["segmentation"][0]
    annotations[2] |= {"category_id": "2", "bbox": [500, 5, 24, 10]}
    annotations[3] |= {"iscrowd": True, "id": 0}
    expected = made()
    expected["annotations"][3]["id"] = 3  # the smallest one that is free
    path = written(content)
    source = Source(path, photos)
    out = path.with_name("out.json")
    fixed = mend(source, out, findings_of(source))
    assert read_content(out) == expected
    assert "annotations[3]: id 0 -> 3" in fixed.changes


def test_entries_of_one_file_become_one(content: dict) -> None:
    second = {**content["annotations"][0], "id": 40, "image_id": 70, "bbox": [11, 10, 19, 16]}
    content["images"].append({**content["images"][0], "id": 70})
    content["annotations"].append(second)
    content["annotations"].append({**content["annotations"][0], "id": 41, "image_id": 70})
    fixed = fix(content, fast_findings).content
    assert len(fixed["images"]) == 3
    assert [a["id"] for a in fixed["annotations"] if a["image_id"] == 3] == [1, 2, 40]


def test_an_unknown_category_keeps_its_objects(content: dict) -> None:
    content["annotations"][0]["category_id"] = 9
    fixed = fix(content, fast_findings).content
    assert fixed["categories"][-1] == {"id": 9, "name": "category_9"}
    assert fixed["annotations"] == content["annotations"]


def test_the_input_is_never_the_output(content: dict, photos: Path, written: Callable) -> None:
    path = written(content)
    link = path.with_name("link.json")
    link.symlink_to(path)
    for out in (path, link):
        with pytest.raises(UserError, match="another name"):
            check_coco_file(Source(path), out)
    assert json.loads(path.read_bytes()) == content


def test_a_wrong_folder_does_not_empty_the_set(
    content: dict, written: Callable, tmp_path: Path
) -> None:
    (tmp_path / "elsewhere").mkdir()
    source = Source(written(content), tmp_path / "elsewhere")
    with pytest.raises(UserError, match="--images"):
        mend(source, tmp_path / "out.json", findings_of(source))
    assert not (tmp_path / "out.json").exists()


def test_every_error_has_a_remedy() -> None:
    from d2ext.data.validation.coco.finding import KINDS

    errors = {code for code, (severity, _, _) in KINDS.items() if severity == ERROR}
    assert errors - {"image_refused"} <= set(REMEDIES) <= set(KINDS)
    stays = {code for code, (_, _, what) in KINDS.items() if what.startswith("stays")}
    assert stays == set(KINDS) - set(REMEDIES)
