"""Image names in annotation files stay in the image folder."""

import pytest

from d2ext.data.formats.common import inside
from d2ext.errors import UserError


@pytest.mark.parametrize("name", ["a.jpg", "b/a.jpg", "b/../a.jpg", "..a.jpg", "ä ß/名.png"])
def test_names_in_the_folder(name):
    assert inside("/photos", name, "x") == f"/photos/{name}"


@pytest.mark.parametrize(
    "name",
    [
        "",
        ".",
        "..",
        "../a.jpg",
        "b/../../a.jpg",
        "/etc/passwd",
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
