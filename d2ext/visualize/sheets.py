"""Write contact sheets of annotated images, as JPEG pages or one self-contained HTML page."""

import base64
import io
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from detectron2.structures import BoxMode
from PIL import Image, ImageDraw

from d2ext.html import page_template
from d2ext.visualize.drawing import font, font_has, ink
from d2ext.visualize.overlay import class_color, class_name, draw_instances, mark

# Sizes in pixels. A JPEG page has _ACROSS x _DOWN cells with a strip of text above a picture.
_CELL, _STRIP, _GAP, _MARGIN = (440, 330), 26, 8, 16
_ACROSS, _DOWN = 4, 4
_HTML_PICTURE, _THUMBNAIL = (640, 480), (280, 210)
_PAPER, _CARD, _VOID, _INK, _DIM = "#eceff3", "#181c26", "#0d1016", "#ffffff", "#aab4c5"


@dataclass(frozen=True)
class AnnotatedImage:
    """An image with its objects.

    Attributes:
        photo: Array (H, W, 3), uint8, RGB.
        instances: Detectron2 annotations in pixels of the photo.
        title: Title of the image, such as its file name.
        facts: Description of its size and content.
    """

    photo: np.ndarray
    instances: Sequence[dict[str, Any]]
    title: str
    facts: str


Entry = Sequence[AnnotatedImage]  # shown side by side; all entries have the same length


def write_jpegs(tiles: Iterable[Image.Image], folder: Path) -> list[Path]:
    """Write `page_001.jpg`, ... with one page in memory at a time.

    Args:
        tiles: Tiles from `make_tile`, all of the same size.
        folder: Existing output folder.

    Returns:
        The files.
    """
    files: list[Path] = []
    tiles = iter(tiles)
    while first := next(tiles, None):
        per_page = _DOWN * (_ACROSS * _CELL[0] // (first.width - _GAP))
        file = folder / f"page_{len(files) + 1:03d}.jpg"
        _page([first, *itertools.islice(tiles, per_page - 1)]).save(file, quality=88)
        files.append(file)
    return files


def _page(tiles: list[Image.Image]) -> Image.Image:
    w, h = tiles[0].size
    across = min(len(tiles), _ACROSS * _CELL[0] // (w - _GAP))
    down = -(-len(tiles) // across)
    size = [n * (side + _MARGIN) + _MARGIN for n, side in ((across, w), (down, h))]
    page = Image.new("RGB", size, _PAPER)
    for i, tile in enumerate(tiles):
        row, column = divmod(i, across)
        page.paste(tile, (_MARGIN + column * (w + _MARGIN), _MARGIN + row * (h + _MARGIN)))
    return page


def make_tile(entry: Entry, metadata: Any) -> Image.Image:
    """Draw the views of an entry side by side, each below its title.

    Classes whose names the font cannot show are labeled with their number.

    Args:
        entry: Up to four views.
        metadata: Metadata with `thing_classes` and, optionally, `thing_colors` (RGB, 0 to 255).
    """
    (w, h), count = _CELL, len(entry)
    tile = Image.new("RGB", (count * w + (count - 1) * _GAP, h + _STRIP), _CARD)
    draw = ImageDraw.Draw(tile)
    for i, view in enumerate(entry):
        left = i * (w + _GAP)
        picture = Image.fromarray(_drawn(view, metadata, _CELL, labels=True))
        draw.rectangle((left, _STRIP, left + w - 1, h + _STRIP), fill=_VOID)
        corner = left + (w - picture.width) // 2, _STRIP + (h - picture.height) // 2
        tile.paste(picture, corner)
        right = left + w - 8
        draw.text((right, _STRIP / 2), view.facts, _DIM, font(13), anchor="rm")
        room = w - 28 - draw.textlength(view.facts, font(13))
        title = _shortened(view.title, lambda t, room=room: draw.textlength(t, font(13)) <= room)
        draw.text((left + 8, _STRIP / 2), title, _INK, font(13), anchor="lm")
    return tile


def make_thumbnail(view: AnnotatedImage, metadata: Any) -> Image.Image:
    """Draw a view without text, for `make_sheet`; see `make_tile` for `metadata`."""
    tile = Image.new("RGB", _THUMBNAIL, _VOID)
    picture = Image.fromarray(_drawn(view, metadata, _THUMBNAIL, labels=False))
    tile.paste(picture, ((tile.width - picture.width) // 2, (tile.height - picture.height) // 2))
    return tile


def make_sheet(thumbnails: Sequence[Image.Image]) -> Image.Image:
    """Arrange one or more thumbnails on a page."""
    return _page(list(thumbnails))


def _shortened(text: str, fits: Any) -> str:
    """Shorten a text in its middle until it fits, with "?" for characters the font lacks."""
    text = "".join(c if font_has(c) else "?" for c in text)
    whole, keep = text, len(text)
    while not fits(text) and keep > 2:
        keep -= 1
        text = f"{whole[: keep // 3]}…{whole[-(keep - keep // 3) :]}"
    return text


def _drawn(view: AnnotatedImage, metadata: Any, room: tuple[int, int], labels: bool) -> np.ndarray:
    """Draw a photo with its objects, as large as fits into `room` (width, height)."""
    h, w = view.photo.shape[:2]
    factor = min(room[0] / w, room[1] / h)
    size = max(1, round(w * factor)), max(1, round(h * factor))
    # Show the individual pixels of tiny images.
    resample = Image.Resampling.NEAREST if factor > 4 else Image.Resampling.LANCZOS
    photo = Image.fromarray(view.photo).resize(size, resample, reducing_gap=2)
    return draw_instances(np.asarray(photo), view.instances, metadata, (w, h), True, labels)


def write_html(
    figures: Iterable[Sequence[dict[str, Any]]],
    file: Path,
    name: str,
    facts: dict[str, Any],
    closing: Callable[[], dict[str, Any]],
) -> None:
    """Write one page with all pictures embedded, with one entry in memory at a time.

    Labels are text, so that any class name can be shown, and can be turned off.

    Args:
        figures: Results of `make_figures`.
        file: Path of the page.
        name: Title of the page.
        facts: Names and values to show at the top.
        closing: Function that is called after the last entry and returns `summary` (a sentence)
            and `notes` (a list).
    """
    template = page_template(Path(__file__).with_name("sheets.html"))
    with open(file, "wb") as f:
        for part in template.generate(name=name, facts=facts, entries=figures, closing=closing):
            f.write(part.encode("utf-8", errors="replace"))


def make_figures(entry: Entry, metadata: Any) -> list[dict[str, Any]]:
    """Return the data of an entry for `sheets.html`; see `make_tile` for `metadata`."""
    return [_figure(view, metadata) for view in entry]


def _figure(view: AnnotatedImage, metadata: Any) -> dict[str, Any]:
    buffer = io.BytesIO()
    picture = Image.fromarray(_drawn(view, metadata, _HTML_PICTURE, labels=False))
    picture.save(buffer, "JPEG", quality=85)
    return {
        "title": view.title,
        "facts": view.facts,
        "width": picture.width,
        "height": picture.height,
        "picture": "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode(),
        "labels": list(_labels(view, metadata)),
    }


def _labels(view: AnnotatedImage, metadata: Any) -> Iterator[dict[str, Any]]:
    """Yield the texts of labels, and their positions in percent of the picture."""
    h, w = view.photo.shape[:2]
    for x in view.instances:
        x0, y0, x1, _ = BoxMode.convert(x["bbox"], x["bbox_mode"], BoxMode.XYXY_ABS)
        # Near the right edge, align the label with the box's right corner instead.
        side, at = ("left", x0) if x0 < 0.75 * w else ("right", w - x1)
        color = class_color(x["category_id"], metadata)
        yield {
            "text": class_name(x["category_id"], metadata) + mark(x),
            "side": side,
            "at": round(100 * min(max(at / w, 0), 1), 2),
            "top": round(100 * min(max(y0 / h, 0), 0.96), 2),
            "color": "rgb({}, {}, {})".format(*color),
            "ink": "rgb({}, {}, {})".format(*ink(color)),
        }
