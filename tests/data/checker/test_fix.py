"""`--fix`: no error is left, nothing that was right is lost, and the input stays as it was."""

import copy
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from d2ext.data.checker.checks import fast_findings
from d2ext.data.checker.columns import PARTS, read_columns, read_content
from d2ext.data.checker.finding import ERROR
from d2ext.data.checker.fix import REMEDIES, fix
from d2ext.data.checker.numbers import integer
from d2ext.data.checker.run import Source, findings_of, mend
from d2ext.data.formats.coco import read_coco
from d2ext.errors import UserError
from tests.data.checker.conftest import made
from tests.data.checker.test_findings import SPOILT

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


@st.composite
def mutations(draw: st.DrawFn) -> tuple[dict, set[int]]:
    """A spoilt file, and the ids of the annotations that are as they were, as are their images."""
    content = made()
    touched, images = set(), set()
    for _ in range(draw(st.integers(1, 4))):
        part = draw(st.sampled_from(PARTS))
        row = draw(st.integers(0, len(content[part]) - 1))
        entry = content[part][row]
        kind = draw(st.sampled_from(["value", "lose", "entry", "repeat", "copy"]))
        if kind in ("value", "lose", "entry"):
            if part == "annotations":
                touched.add(row)
            if part == "images":
                images.add(row)
        if kind == "entry":
            content[part][row] = draw(ODD)
        elif isinstance(entry, dict) and entry:
            key = draw(st.sampled_from(sorted(entry)))
            if kind == "value":
                entry[key] = draw(ODD)
            elif kind == "lose":
                del entry[key]
            elif kind == "repeat":
                content[part].append({**entry, key: draw(ODD)})
            else:
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
    return content, kept


def shape(content: dict, annotation: dict) -> Any:
    """What an annotation says, however things are numbered."""
    names = {i["id"]: i["file_name"] for i in content["images"]}
    return names[annotation["image_id"]], *(
        json.dumps(annotation.get(k)) for k in ("bbox", "area", "segmentation", "iscrowd")
    )


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(mutations())
def test_whatever_is_spoilt_is_mended_and_the_rest_is_left(spoilt: tuple[dict, set[int]]) -> None:
    content, kept = spoilt
    before = copy.deepcopy(content)
    fixed = fix(content, fast_findings)
    assert repr(content) == repr(before)
    assert not [f for f in fast_findings(fixed.content) if f.severity == ERROR]
    assert fixed.findings == fast_findings(fixed.content)
    there = [shape(fixed.content, a) for a in fixed.content["annotations"]]
    for a in made()["annotations"]:
        if a["id"] in kept:
            assert shape(made(), a) in there
    again = fix(fixed.content, fast_findings)
    assert not again.changes and again.content == fixed.content


@pytest.mark.parametrize("spoil", [spoil for spoil, _ in SPOILT])
def test_a_mended_file_is_read_and_says_what_was_done(
    spoil: Callable, content: dict, photos: Path, written: Callable, tmp_path: Path
) -> None:
    spoil(content)
    path, out = written(content), tmp_path / "out" / "fixed.json"
    before = path.read_bytes()
    source = Source(path, photos)
    check = findings_of(source)
    errors = [f for f in check(read_columns(path)) if f.severity == ERROR]
    fixed = mend(source, out, check)
    assert path.read_bytes() == before
    assert not [f for f in check(read_columns(out)) if f.severity == ERROR]
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
            mend(Source(path), out, findings_of(Source(path)))


def test_a_wrong_folder_does_not_empty_the_set(
    content: dict, written: Callable, tmp_path: Path
) -> None:
    (tmp_path / "elsewhere").mkdir()
    source = Source(written(content), tmp_path / "elsewhere")
    with pytest.raises(UserError, match="--images"):
        mend(source, tmp_path / "out.json", findings_of(source))
    assert not (tmp_path / "out.json").exists()


def test_every_error_has_a_remedy() -> None:
    from d2ext.data.checker.finding import KINDS

    errors = {code for code, (severity, _, _) in KINDS.items() if severity == ERROR}
    assert errors <= set(REMEDIES) <= set(KINDS)
    stays = {code for code, (_, _, what) in KINDS.items() if what.startswith("stays")}
    assert stays == set(KINDS) - set(REMEDIES)
