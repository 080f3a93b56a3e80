"""Contact sheets: many images with their objects, as JPEG pages or one self-contained HTML page."""

import base64
import io
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from detectron2.structures import BoxMode
from PIL import Image, ImageDraw, ImageFont

from d2ext.html import page_template
from d2ext.visualize.overlay import (
    class_color,
    class_name,
    draw_instances,
    font_has,
    label_font,
    mark,
)

# Pixels. A JPEG page is _ACROSS x _DOWN cells, each a strip of text and a picture that fits below.
_CELL, _STRIP, _GAP, _MARGIN = (440, 330), 26, 8, 16
_ACROSS, _DOWN = 4, 4
_HTML_PICTURE, _THUMBNAIL = (640, 480), (280, 210)
_PAPER, _CARD, _VOID, _INK, _DIM = "#eceff3", "#181c26", "#0d1016", "#ffffff", "#aab4c5"


@dataclass(frozen=True)
class AnnotatedImage:
    """An image with its objects.

    Attributes:
        photo: uint8 (H, W, 3), RGB.
        instances: Detectron2 annotations in pixels of the photo.
        title: what it is, such as a file name.
        facts: its size and what it holds.
    """

    photo: np.ndarray
    instances: Sequence[dict[str, Any]]
    title: str
    facts: str


Entry = Sequence[AnnotatedImage]  # shown side by side; as many in every entry


def write_jpegs(tiles: Iterable[Image.Image], folder: Path) -> list[Path]:
    """Write `page_001.jpg`, ...; hold one page at a time.

    Args:
        tiles: of `make_tile`, all of one size.
        folder: where the pages go; it exists.

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
    """Return the views of an entry side by side, each below its title.

    A class whose name the font cannot show is labelled by its number.

    Args:
        entry: at most four views.
        metadata: has `thing_classes` and perhaps `thing_colors` (RGB, 0 to 255).
    """
    (w, h), count = _CELL, len(entry)
    tile = Image.new("RGB", (count * w + (count - 1) * _GAP, h + _STRIP), _CARD)
    draw = ImageDraw.Draw(tile)
    font = ImageFont.truetype(label_font(), 13)
    for i, view in enumerate(entry):
        left = i * (w + _GAP)
        picture = Image.fromarray(_drawn(view, metadata, _CELL, labels=True))
        draw.rectangle((left, _STRIP, left + w - 1, h + _STRIP), fill=_VOID)
        corner = left + (w - picture.width) // 2, _STRIP + (h - picture.height) // 2
        tile.paste(picture, corner)
        right = left + w - 8
        draw.text((right, _STRIP / 2), view.facts, _DIM, font, anchor="rm")
        room = w - 28 - draw.textlength(view.facts, font)
        title = _shortened(view.title, lambda t, room=room: draw.textlength(t, font) <= room)
        draw.text((left + 8, _STRIP / 2), title, _INK, font, anchor="lm")
    return tile


def make_thumbnail(view: AnnotatedImage, metadata: Any) -> Image.Image:
    """Return a view without words, for `make_sheet`; `metadata` as for `make_tile`."""
    tile = Image.new("RGB", _THUMBNAIL, _VOID)
    picture = Image.fromarray(_drawn(view, metadata, _THUMBNAIL, labels=False))
    tile.paste(picture, ((tile.width - picture.width) // 2, (tile.height - picture.height) // 2))
    return tile


def make_sheet(thumbnails: Sequence[Image.Image]) -> Image.Image:
    """One page of the thumbnails, of which there is one at least."""
    return _page(list(thumbnails))


def _shortened(text: str, fits: Any) -> str:
    """Return a text, shortened in its middle if too long, with "?" for what the font lacks."""
    text = "".join(c if font_has(c) else "?" for c in text)
    whole, keep = text, len(text)
    while not fits(text) and keep > 2:
        keep -= 1
        text = f"{whole[: keep // 3]}…{whole[-(keep - keep // 3) :]}"
    return text


def _drawn(view: AnnotatedImage, metadata: Any, room: tuple[int, int], labels: bool) -> np.ndarray:
    """Return the photo as large as it fits into `room` (width, height), with its objects."""
    h, w = view.photo.shape[:2]
    factor = min(room[0] / w, room[1] / h)
    size = max(1, round(w * factor)), max(1, round(h * factor))
    # The pixels of a tiny image are shown as they are.
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
    """Write one page with every picture in it; hold one entry at a time.

    Labels are text, so that any class name shows, and can be switched off.

    Args:
        figures: of `make_figures`.
        file: the page.
        name: its title.
        facts: name to value, at the top.
        closing: called behind the last entry, for `summary` (a sentence) and `notes` (a list).
    """
    template = page_template(Path(__file__).with_name("sheets.html"))
    with open(file, "wb") as f:
        for part in template.generate(name=name, facts=facts, entries=figures, closing=closing):
            f.write(part.encode("utf-8", errors="replace"))


def make_figures(entry: Entry, metadata: Any) -> list[dict[str, Any]]:
    """Return what `sheets.html` shows of an entry; `metadata` as for `make_tile`."""
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
    """Where labels stand, in percent of the picture, and what they say."""
    h, w = view.photo.shape[:2]
    for x in view.instances:
        x0, y0, x1, _ = BoxMode.convert(x["bbox"], x["bbox_mode"], BoxMode.XYXY_ABS)
        # Near the right edge, there is room to the left of the box's other corner.
        side, at = ("left", x0) if x0 < 0.75 * w else ("right", w - x1)
        color = class_color(x["category_id"], metadata)
        yield {
            "text": class_name(x["category_id"], metadata) + mark(x),
            "side": side,
            "at": round(100 * min(max(at / w, 0), 1), 2),
            "top": round(100 * min(max(y0 / h, 0), 0.96), 2),
            "color": "rgb({}, {}, {})".format(*color),
            "ink": "#000" if np.dot(color, (0.3, 0.59, 0.11)) > 140 else "#fff",
        }
