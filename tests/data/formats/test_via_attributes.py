"""Find the attribute of VIA's regions that holds the class."""

import json
from pathlib import Path

import pytest
from PIL import Image

from d2ext.data.formats.via import read_via, via_classes
from d2ext.errors import UserError

BOX = {"name": "rect", "x": 1, "y": 2, "width": 6, "height": 4}


@pytest.fixture
def via(tmp_path: Path):
    """Return a function that writes an export of one image with a region per attribute dict."""
    Image.new("RGB", (40, 30)).save(tmp_path / "a.jpg")

    def write(*attributes: dict, shape: dict = BOX) -> Path:
        regions = [{"shape_attributes": shape, "region_attributes": a} for a in attributes]
        content = {"a": {"filename": "a.jpg", "size": 1, "regions": regions}}
        (tmp_path / "via.json").write_text(json.dumps(content))
        return tmp_path / "via.json"

    return write


def ids(file: Path, *args: object, **kwargs: object) -> list[int]:
    """Return the category ids of the objects."""
    (record,) = read_via(file, file.parent, *args, **kwargs)
    return [a["category_id"] for a in record["annotations"]]


@pytest.mark.parametrize(
    ("attributes", "expected"),
    [
        ([{"label": "dog"}, {"label": " cat "}], (("cat", "dog"), "label")),
        ([{"class_id": 10}, {"class_id": 9}], (("9", "10"), "class_id")),
        ([{"class_id": "10"}, {"class_id": "9"}], (("9", "10"), "class_id")),
        ([{"type": {"balloon": True}}], (("balloon",), "type")),
        ([{"type": {"balloon": True, "cat": False}}, {"type": {}}], (("balloon",), "type")),
        # A common name among others.
        ([{"occluded": "y", "name": "a"}, {"occluded": "n", "name": "a"}], (("a",), "name")),
        # Two attributes with the same partition.
        ([{"class_id": 1, "class": "b"}, {"class_id": 0, "class": "a"}], (("a", "b"), "class")),
        ([{"color": "red", "fruit": "apple"}], (("red",), "color")),
        # An attribute that is empty everywhere does not count.
        ([{"name": "", "kind": "x"}, {"name": "", "kind": "y"}], (("x", "y"), "kind")),
    ],
)
def test_the_attribute_is_detected(via, attributes: list, expected: tuple) -> None:
    assert via_classes(via(*attributes)) == expected


def test_an_ambiguous_attribute_is_refused(via) -> None:
    file = via({"color": "red", "fruit": "apple"}, {"color": "red", "fruit": "pear"})
    with pytest.raises(UserError) as e:
        via_classes(file)
    message = str(e.value)
    assert "'color', 'fruit'" in message and "--class-attribute" in message
    assert "'apple'" in message and "\n" not in message
    assert via_classes(file, "fruit") == (("apple", "pear"), "fruit")
    # The requested classes resolve it, too.
    assert ids(file, ["pear", "apple"]) == [1, 0]


def test_train_and_val_may_use_different_attributes(via) -> None:
    classes, _ = via_classes(via({"name": "dog"}, {"name": "cat"}))
    assert ids(via({"label": "dog", "who": "me"}, {"label": "cat", "who": "me"}), classes) == [1, 0]


def test_without_an_attribute_the_class_must_be_given(via) -> None:
    file = via({}, {})
    with pytest.raises(UserError, match="--classes"):
        via_classes(file)
    with pytest.raises(UserError, match="--classes"):
        read_via(file, file.parent, ["a", "b"])
    assert ids(file, ["balloon"]) == [0, 0]


def test_a_single_class_is_not_assigned_to_regions_of_another(via) -> None:
    file = via({"name": "dog"})
    with pytest.raises(UserError, match="did you mean 'dog'"):
        read_via(file, file.parent, ["dgo"])
    # An attribute that does not hold the class is irrelevant.
    assert ids(via({"quality": "good"}), ["cell"]) == [0]


def test_empty_labels_and_other_classes_are_counted(via, caplog) -> None:
    file = via({"name": "dog"}, {"name": ""}, {}, {"name": "cat"}, {"name": None})
    assert ids(file, ["dog"]) == [0]
    assert "4 objects skipped: 3 without a class, 1 of the class 'cat'" in caplog.text
    assert ids(file) == [1, 0]


def test_several_classes_at_once_are_refused(via) -> None:
    file = via({"type": {"dog": True, "cat": True}})
    with pytest.raises(UserError, match="region 0: type=.*is not a single class"):
        via_classes(file, "type")


def test_points_are_ignored_in_detection(via) -> None:
    file = via({"name": "eye"}, shape={"name": "point", "cx": 1, "cy": 1})
    with pytest.raises(UserError, match="--classes"):
        via_classes(file)


def test_a_region_with_two_classes_is_reported(via) -> None:
    both = {"type": {"cat": True, "dog": True}}
    file = via({"type": {"cat": True}, "quality": "good"}, {**both, "quality": "bad"})
    with pytest.raises(UserError, match="region 1: type=.* is not a single class"):
        via_classes(file)  # does not fall back to `quality`
    with pytest.raises(UserError, match="region 1: type="):
        read_via(file, file.parent, ["cat", "dog"])
    assert via_classes(file, "quality") == (("bad", "good"), "quality")
    with pytest.raises(UserError, match="region 0: type="):
        via_classes(via(both))
    # An attribute with a more common name holds the class; this one may have several values.
    assert via_classes(via({"name": "a", **both})) == (("a",), "name")
    assert via_classes(via({"name": "a", "flags": both["type"]})) == (("a",), "name")
