"""Contact sheets: pages, their sizes, and memory use."""

import weakref
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from d2ext.visualize.drawing import font_has
from d2ext.visualize.overlay import class_color
from d2ext.visualize.sheets import AnnotatedImage, make_figures, make_tile, write_html, write_jpegs

CLASSES = SimpleNamespace(thing_classes=["box", "气球"], thing_colors=[(0, 200, 0), (0, 0, 200)])


def view(size=(60, 40), category=0, title="photo.jpg"):
    """Return a gray photo with an object in its right half."""
    w, h = size
    box = {"bbox": [w / 2, 0, w, h], "bbox_mode": 0, "category_id": category}
    box["segmentation"] = [[w / 2, 0, w, 0, w, h, w / 2, h]]
    return AnnotatedImage(np.full((h, w, 3), 128, np.uint8), [box], title, "facts")


@pytest.mark.parametrize(
    ("views", "entries", "sizes"),
    [
        (1, 17, [(1840, 1504), (472, 388)]),
        (2, 8, [(1824, 1504)]),
        (2, 9, [(1824, 1504), (920, 388)]),
        (2, 0, []),
    ],
)
def test_pages(tmp_path, views, entries, sizes):
    tile = make_tile([view()] * views, CLASSES)
    files = write_jpegs(iter([tile] * entries), tmp_path)
    assert [f.name for f in files] == [f"page_{i + 1:03d}.jpg" for i in range(len(sizes))]
    for file, size in zip(files, sizes, strict=True):
        with Image.open(file) as page:
            assert page.size == size


@pytest.mark.parametrize("size", [(1, 1), (3, 2), (1, 900), (6000, 4000), (5000, 3)])
def test_images_of_any_size(size):
    tile = np.asarray(make_tile([view(size), view()], CLASSES)).astype(int)
    assert tile.shape == (356, 888, 3)
    assert [f["width"] <= 640 >= f["height"] for f in make_figures([view(size)], CLASSES)] == [True]
    green = (tile[..., 1] > tile[..., 0] + 30) & (tile[..., 1] > tile[..., 2] + 30)
    assert green[:, 448:].any() and green[:, 660:].sum() > 0.9 * green[:, 448:].sum()
    if min(size) * 4 > max(size):
        assert green[26:, :440].any() and green[26:, 220:440].sum() > 0.9 * green[:, :440].sum()


def test_only_one_page_is_in_memory_at_a_time(tmp_path):
    made, most = [], 0

    def make(kind):
        nonlocal most
        for _ in range(50):
            most = max(most, sum(ref() is not None for ref in made))
            item = kind()
            made.append(weakref.ref(item))
            yield item
            del item

    class Figures(list):
        """A list that supports weak references."""

    def tile():
        return Image.new("RGB", (888, 356))

    write_jpegs(make(tile), tmp_path)
    assert 4 <= most <= 8
    most = 0
    figures = make_figures([view()], CLASSES)
    closing = lambda: {"summary": "", "notes": []}  # noqa: E731
    write_html(make(lambda: Figures(figures)), tmp_path / "a.html", "name", {}, closing)
    assert most <= 3
    assert (tmp_path / "a.html").read_text().count("<img") == 50


@pytest.mark.filterwarnings("error:Glyph")
def test_class_names_missing_in_the_font_are_numbered():
    assert font_has("Ballon à air") and not font_has("气球") and not font_has("a\nb")
    with_name = make_tile([view((440, 330), category=1, title="气球.jpg")], CLASSES)
    with_number = SimpleNamespace(
        thing_classes=["box", "class 1"], thing_colors=CLASSES.thing_colors
    )
    numbered = make_tile([view((440, 330), category=1, title="??.jpg")], with_number)
    assert np.array_equal(with_name, numbered)
    assert make_figures([view(category=1)], CLASSES)[0]["labels"][0]["text"] == "气球"


def test_colors_of_classes():
    assert class_color(1, CLASSES) == (0, 0, 200)
    hues = [class_color(c, SimpleNamespace(thing_classes=[])) for c in range(12)]
    assert len(set(hues)) == 12 and all(0 <= v <= 255 for hue in hues for v in hue)


@settings(max_examples=25, deadline=None)
@given(name=st.text(), title=st.text(max_size=300))
def test_any_text(tmp_path_factory, name, title):
    file = tmp_path_factory.mktemp("page") / "index.html"
    metadata = SimpleNamespace(thing_classes=[name])
    make_tile([view(title=title)], metadata)
    figures = [make_figures([view(title=title)], metadata)]
    write_html(figures, file, name, {name: title}, lambda: {"summary": name, "notes": [title]})
    text = file.read_bytes().decode()
    assert text.count("<img") == 1 and "<script" not in text
