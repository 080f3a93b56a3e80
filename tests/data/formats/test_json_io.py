"""Image names in annotation files stay in the image folder."""

import os

import pytest

from d2ext.data.formats.json_io import inside
from d2ext.errors import UserError


@pytest.mark.parametrize("name", ["a.jpg", "b/a.jpg", "b/../a.jpg", "..a.jpg", "ä ß/名.png"])
def test_names_in_the_folder(name):
    assert inside("/photos", name, "x") == os.path.normpath(f"/photos/{name}")


def test_absolute_names_in_the_folder():
    assert inside("/photos", "/photos/b/a.jpg", "x") == "/photos/b/a.jpg"
    assert inside("/", "/photos/a.jpg", "x") == "/photos/a.jpg"  # the root / allows any name
    assert inside("photos", os.path.abspath("photos/a.jpg"), "x") == "photos/a.jpg"


@pytest.mark.parametrize(
    "name",
    [
        "",
        ".",
        "..",
        "../a.jpg",
        "b/../../a.jpg",
        "/etc/passwd",
        "/photos/../a.jpg",
        "/photos2/a.jpg",
        "a\0.jpg",
        None,
        5,
        ["a"],
        "x" * 300,
        "\ud800",
    ],
)
def test_names_elsewhere_are_refused(name):
    with pytest.raises(UserError, match="x.json: images.0.: the image"):
        inside("/photos", name, "x.json: images[0]")
