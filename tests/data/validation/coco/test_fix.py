"""`--fix` leaves no errors, loses no valid data, and does not change its input."""

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
from d2ext.data.validation.coco.check_file import Checks, check_coco_file, write_fixed
from d2ext.data.validation.coco.checks.all_checks import fast_findings
from d2ext.data.validation.coco.finding import ERROR
from d2ext.data.validation.coco.fixes.fix import REMEDIES, fix
from d2ext.data.validation.coco.fixes.images_and_categories import Files
from d2ext.data.validation.coco.json_numbers import integer, numbers
from d2ext.data.validation.coco.source import Source
from d2ext.data.validation.coco.table import coco_table, read_coco_table
from d2ext.errors import UserError
from tests.data.validation.coco.conftest import draw_photos, valid_content
from tests.data.validation.coco.test_findings import DAMAGES

ANY_VALUE = st.one_of(
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


# Map a point of the image as shown back to the stored 60 x 40 pixels, by EXIF orientation.
TO_STORED: dict[int, Callable[[float, float], list[float]]] = {
    1: lambda x, y: [x, y],
    5: lambda x, y: [y, x],
    6: lambda x, y: [y, 40 - x],
    7: lambda x, y: [60 - y, 40 - x],
    8: lambda x, y: [60 - y, x],
}


SIDES = ("width", "height")


def annotated_as_stored(orientation: int) -> dict:
    """Return the valid file with c.png annotated as stored, an error for orientations 5 to 8."""
    content = valid_content()
    image, shape = content["images"][2], content["annotations"][4]
    points = shape["segmentation"][0]
    pairs = zip(points[::2], points[1::2], strict=True)
    corners = [TO_STORED[orientation](x, y) for x, y in pairs]
    (x0, y0), (x1, y1) = ([f(c) for c in zip(*corners, strict=True)] for f in (min, max))
    shape |= {"segmentation": [sum(corners, [])], "bbox": [x0, y0, x1 - x0, y1 - y0]}
    if orientation > 4:
        image |= {"width": 60, "height": 40}
    return content


@pytest.fixture(scope="module")
def album(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Callable]:
    """Return the checks of the images of `annotated_as_stored`, by orientation."""
    checks = {}
    for orientation in TO_STORED:
        root = tmp_path_factory.mktemp(f"photos{orientation}")
        draw_photos(root)
        exif = Image.Exif()
        exif[0x0112] = orientation
        size = (40, 60) if orientation < 5 else (60, 40)
        Image.new("RGB", size).save(root / "c.png", exif=exif)
        checks[orientation] = Checks(Source(root / "x.json", root))
        checks[orientation].root = root
    return checks


@st.composite
def mutations(draw: st.DrawFn) -> tuple[dict, set[int], int]:
    """Draw a damaged file, the ids of annotations that are still valid, and c.png's orientation.

    An annotation is valid if it is unchanged and its image still has its id and name. Other damage
    to the image, such as a wrong size, does not matter.
    """
    orientation = draw(st.sampled_from(sorted(TO_STORED)))
    content = annotated_as_stored(orientation)
    touched, images = set(), set()
    for _ in range(draw(st.integers(1, 4))):
        part = draw(st.sampled_from(PARTS))
        row = draw(st.integers(0, len(content[part]) - 1))
        entry = content[part][row]
        kind = draw(st.sampled_from(["value", "lose", "entry", "repeat", "copy"]))
        key = draw(st.sampled_from(sorted(entry))) if isinstance(entry, dict) and entry else None
        is_damage = kind == "entry" or (kind in ("value", "lose") and key)
        if is_damage and part == "annotations":
            touched.add(row)
        if is_damage and part == "images" and (kind == "entry" or key in ("id", "file_name")):
            images.add(row)
        if kind == "entry":
            content[part][row] = draw(ANY_VALUE)
        elif key and kind == "value":
            entry[key] = draw(ANY_VALUE)
        elif key and kind == "lose":
            del entry[key]
        elif key and kind == "repeat":
            content[part].append({**entry, key: draw(ANY_VALUE)})
        elif key:
            content[part].append(copy.deepcopy(entry))
    lost = {i["id"] for n, i in enumerate(valid_content()["images"]) if n in images}
    # If another image took the id, the owner of the objects is ambiguous.
    entries = [content["images"][row] for row in images]
    lost |= {integer(entry.get("id")) for entry in entries if isinstance(entry, dict)}
    kept = {
        a["id"]
        for n, a in enumerate(valid_content()["annotations"])
        if n not in touched and a["image_id"] not in lost
    }
    return content, kept, orientation


def place(content: dict, annotation: dict) -> tuple:
    """Return an annotation's place regardless of ids: image name, crowd flag, box and shape."""
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
    """Return whether an annotation is in that place, up to the pixel that sizes may be off."""
    for a in content["annotations"]:
        if a.get("segmentation") and a.get("bbox"):
            name, crowd, numbers = place(content, a)
            if (name, crowd, len(numbers)) == (*expected[:2], len(expected[2])):
                if (abs(numbers - expected[2]) <= 1.01).all():
                    return True
    return False


def with_useless_height() -> tuple[dict, set[int], int]:
    """Return a rotated photo with a useless height; its box fits with and without rotation."""
    content = annotated_as_stored(5)
    content["images"][2]["height"] = 3
    return content, {a["id"] for a in valid_content()["annotations"]}, 5


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(damaged=mutations())
@example(damaged=with_useless_height())
def test_damage_is_fixed_and_valid_annotations_keep_their_place(
    damaged: tuple[dict, set[int], int], album: dict[int, Callable]
) -> None:
    content, kept, orientation = damaged
    check = album[orientation]
    files = Files(check.root, check.photos)
    before = copy.deepcopy(content)
    try:
        fixed = fix(content, check, files, drop=True)
    except UserError as e:
        # `fix` may refuse only if an image has a useless size, or two entries have the same id.
        images = [i for i in content["images"] if isinstance(i, dict)]
        ids = [integer(i.get("id")) for i in images]
        plausible = all(integer(i.get(k)) in (40, 48, 60, 64) for i in images for k in SIDES)
        why = "used twice" if plausible else "used twice|whose width or|listed twice|wrong values"
        assert re.search(why, str(e)) or len(set(ids)) < len(ids)
        return
    finally:
        assert repr(content) == repr(before)
    assert not [f for f in check(coco_table(fixed.content)) if f.severity == ERROR]
    assert fixed.findings == check(coco_table(fixed.content))
    for a in valid_content()["annotations"]:
        if a["id"] in kept:
            assert is_there(place(valid_content(), a), fixed.content), a
    again = fix(fixed.content, check, files)
    assert not again.changes and again.content == fixed.content


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(damaged=mutations())
def test_nothing_usable_is_removed_without_drop(
    damaged: tuple[dict, set[int], int], album: dict[int, Callable]
) -> None:
    """Either nothing is written, or all images and all annotations with a box are kept."""
    content, kept, orientation = damaged
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
            shape = a.get("segmentation")  # only copies may be removed
            assert any(b is not a and b.get("segmentation") == shape for b in annotations)


def _is_usable(a: dict) -> bool:
    box = numbers(a.get("bbox")) or []
    refers = isinstance(a.get("image_id"), int | str) and isinstance(
        a.get("category_id"), int | str
    )
    return refers and len(box) == 4 and min(box[2:]) > 0


@pytest.mark.parametrize(("damage", "expected"), DAMAGES)
def test_fixed_file_is_valid_and_changes_are_logged(
    damage: Callable,
    expected: dict,
    content: dict,
    photos: Path,
    write_json: Callable,
    tmp_path: Path,
) -> None:
    damage(content)
    path, out = write_json(content), tmp_path / "out" / "fixed.json"
    before = path.read_bytes()
    source = Source(path, photos)
    check = Checks(source)
    errors = [f for f in check(read_coco_table(path)) if f.severity == ERROR]
    if expected.keys() & {"image_duplicate_id", "category_duplicate_id"}:
        with pytest.raises(UserError, match=r"nothing was written.*used twice.*different ids"):
            write_fixed(source, out, check, drop=True)
        assert not out.exists()
        return
    fixed = write_fixed(source, out, check, drop=True)
    assert path.read_bytes() == before
    assert not [f for f in check(read_coco_table(out)) if f.severity == ERROR]
    assert fixed.changes or not errors
    records, _ = read_coco(out, photos)
    assert all(Path(r["file_name"]).is_file() for r in records)
    assert json.loads(out.read_bytes())["info"] == content["info"]


def test_values_are_repaired_if_possible(content: dict, photos: Path, write_json: Callable) -> None:
    """Names, sizes, numbers as text and a missing box are fixed, and nothing is removed."""
    images, annotations = content["images"], content["annotations"]
    images[0]["file_name"] = f"../{photos.name}/a.jpg"
    images[1] |= {"file_name": "SUB\\B.jpg", "width": 99}
    del images[2]["height"]
    annotations[0] |= {"bbox": None, "area": None, "id": "1"}
    annotations[1]["segmentation"] = annotations[1]["segmentation"][0]
    annotations[2] |= {"category_id": "2", "bbox": [500, 5, 24, 10]}
    annotations[3] |= {"iscrowd": True, "id": 0}
    expected = valid_content()
    expected["annotations"][3]["id"] = 3  # the smallest free id
    path = write_json(content)
    source = Source(path, photos)
    out = path.with_name("out.json")
    fixed = write_fixed(source, out, Checks(source))
    assert read_content(out) == expected
    assert "annotations[3]: id 0 -> 3" in fixed.changes


def test_entries_of_one_file_are_merged(content: dict) -> None:
    second = {**content["annotations"][0], "id": 40, "image_id": 70, "bbox": [11, 10, 19, 16]}
    content["images"].append({**content["images"][0], "id": 70})
    content["annotations"].append(second)
    content["annotations"].append({**content["annotations"][0], "id": 41, "image_id": 70})
    fixed = fix(content, fast_findings).content
    assert len(fixed["images"]) == 3
    assert [a["id"] for a in fixed["annotations"] if a["image_id"] == 3] == [1, 2, 40]


def test_objects_of_an_unknown_category_are_kept(content: dict) -> None:
    content["annotations"][0]["category_id"] = 9
    fixed = fix(content, fast_findings).content
    assert fixed["categories"][-1] == {"id": 9, "name": "category_9"}
    assert fixed["annotations"] == content["annotations"]


def test_output_must_not_be_the_input(content: dict, photos: Path, write_json: Callable) -> None:
    path = write_json(content)
    link = path.with_name("link.json")
    link.symlink_to(path)
    for out in (path, link):
        with pytest.raises(UserError, match="another name"):
            check_coco_file(Source(path), out)
    assert json.loads(path.read_bytes()) == content


def test_wrong_image_folder_does_not_empty_the_file(
    content: dict, write_json: Callable, tmp_path: Path
) -> None:
    (tmp_path / "elsewhere").mkdir()
    source = Source(write_json(content), tmp_path / "elsewhere")
    with pytest.raises(UserError, match="--images"):
        write_fixed(source, tmp_path / "out.json", Checks(source))
    assert not (tmp_path / "out.json").exists()


def test_every_error_has_a_remedy() -> None:
    from d2ext.data.validation.coco.finding import KINDS

    errors = {code for code, (severity, _, _) in KINDS.items() if severity == ERROR}
    assert errors - {"image_refused"} <= set(REMEDIES) <= set(KINDS)
    stays = {code for code, (_, _, what) in KINDS.items() if what.startswith("stays")}
    assert stays == set(KINDS) - set(REMEDIES)
