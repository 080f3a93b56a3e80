"""Draw masks, boxes, lines and labels on the pixels of a picture."""

import math
from collections.abc import Sequence
from functools import cache, lru_cache

import cv2
import numpy as np
from matplotlib.font_manager import FontProperties, findfont, get_font
from PIL import Image, ImageDraw, ImageFont

Color = tuple[int, int, int]  # RGB, 0 to 255

_BITS = 4  # OpenCV takes coordinates in 1/16 of a pixel
_FAR = 2**20  # largest coordinate in pixels, which keeps them in 32 bits
_SMOOTH = 0.75  # pixels by which outlines may differ from the edges of pixels; removes their steps


def bounded(points: np.ndarray) -> np.ndarray:
    """Return coordinates in the range that can be drawn; NaN becomes its lower end."""
    return np.fmin(np.fmax(points, -_FAR), _FAR)


def line_width(picture: np.ndarray, share: int) -> int:
    """Return the width of lines as one of `share` parts of a picture's side, at least a pixel."""
    return math.ceil(_side(picture) / share)


def _side(picture: np.ndarray) -> float:
    """Return the side of a square with as many pixels as a picture."""
    return math.sqrt(picture.shape[0] * picture.shape[1])


def draw_mask(
    picture: np.ndarray, shapes: Sequence[Sequence[np.ndarray]], color: Color, alpha: float
) -> None:
    """Fill the union of shapes with a transparent color, and draw their outlines.

    Args:
        picture: Array (H, W, 3), uint8, changed in place.
        shapes: Outlines (N, 2) of each shape in pixels; one inside of another is a hole.
        color: Color of the shapes.
        alpha: Opacity of the interior; outlines are opaque.
    """
    outlines = [
        [_subpixels(cv2.approxPolyDP(o.astype(np.float32), _SMOOTH, closed=True)) for o in shape]
        for shape in shapes
    ]
    if not any(outlines):
        return
    line = line_width(picture, 1500)
    points = np.concatenate([outline[:, 0] for shape in outlines for outline in shape]) >> _BITS
    left, top = np.clip(points.min(0) - line, 0, picture.shape[1::-1])
    right, bottom = np.clip(points.max(0) + line + 2, 0, picture.shape[1::-1])
    part = picture[top:bottom, left:right]
    if not part.size:
        return
    moved = [[outline - (left << _BITS, top << _BITS) for outline in shape] for shape in outlines]
    filled = part.copy()
    for shape in moved:
        cv2.fillPoly(filled, shape, color, shift=_BITS)
    cv2.addWeighted(filled, alpha, part, 1 - alpha, 0, dst=part)
    for shape in moved:
        cv2.polylines(part, shape, True, color, line, cv2.LINE_AA, _BITS)


def draw_box(picture: np.ndarray, box: np.ndarray, color: Color) -> None:
    """Draw the sides of a box (x0, y0, x1, y1), which `bounded` returned."""
    line = line_width(picture, 400)
    first, last = np.floor(box[:2]) - line // 2, np.ceil(box[2:]) + line // 2
    places = np.clip([first, first + line, last - line, last], 0, picture.shape[1::-1])
    (x0, y0), (x1, y1), (x2, y2), (x3, y3) = places.astype(int).tolist()
    # Not cv2.rectangle, whose versions draw the same thickness in different widths.
    picture[y0:y1, x0:x3] = picture[y2:y3, x0:x3] = color
    picture[y0:y3, x0:x1] = picture[y0:y3, x2:x3] = color


def draw_line(picture: np.ndarray, start: np.ndarray, end: np.ndarray, color: Color) -> None:
    """Draw a line between two points (x, y)."""
    first, last = _subpixels(np.stack([start, end]))
    cv2.line(picture, first, last, color, line_width(picture, 250), cv2.LINE_AA, _BITS)


def draw_point(picture: np.ndarray, center: np.ndarray, color: Color) -> None:
    """Draw a disk around a point (x, y)."""
    radius = line_width(picture, 250) << _BITS
    cv2.circle(picture, _subpixels(center), radius, color, cv2.FILLED, cv2.LINE_AA, _BITS)


def _subpixels(points: np.ndarray) -> np.ndarray:
    """Return points as OpenCV takes them, where the center of the first pixel is (0, 0)."""
    return np.rint((bounded(points) - 0.5) * 2**_BITS).astype(np.int32)


class Labels:
    """Labels of a picture, each at the place where it covers the least of earlier ones."""

    def __init__(self, picture: np.ndarray):
        self._picture = picture
        self._size = max(_side(picture) / 65, 14)  # of the text, in pixels
        self._taken = np.zeros((0, 4))

    def at_box(self, text: str, box: np.ndarray, color: Color) -> None:
        """Write a label at a box (x0, y0, x1, y1) from `bounded`; low boxes have smaller text."""
        height = (box[3] - box[1]) / _side(self._picture)
        shape = _rendered(text, round(self._size * np.interp(height, (0.04, 0.1), (0.7, 1))))
        (h, w), (x0, y0, x1, y1) = shape.shape, box
        places = [(x, y) for x in (x0, x1 - w) for y in (y0 - h, y0, y1)]
        self._write(shape, [*places, (x1, y0), (x0 - w, y0)], color)

    def centered(self, text: str, center: tuple[float, float], color: Color) -> None:
        """Write a label around a point (x, y)."""
        shape = _rendered(text, round(self._size))
        h, w = shape.shape
        x, y = center[0] - w / 2, center[1] - h / 2
        self._write(shape, [(x, y), (x, y - h), (x, y + h)], color)

    def _write(self, shape: np.ndarray, places: list[tuple[float, float]], color: Color) -> None:
        """Write a text at one of the places (x, y), moved into the picture."""
        size = np.array(shape.shape[::-1])
        room = np.maximum(np.array(self._picture.shape[1::-1]) - size, 0)
        starts = np.clip(np.rint(places), 0, room).astype(int)
        common = np.minimum(starts[:, None] + size, self._taken[:, 2:]) - np.maximum(
            starts[:, None], self._taken[:, :2]
        )
        x, y = starts[common.clip(0).prod(axis=2).sum(axis=1).argmin()]
        self._taken = np.vstack([self._taken, (x, y, *(size + (x, y)))])
        part = self._picture[y : y + size[1], x : x + size[0]]
        part[:] = _shades(color)[shape[: part.shape[0], : part.shape[1]]]


def ink(color: Color) -> Color:
    """Return black or white, whichever is legible on a color."""
    return (0, 0, 0) if np.dot(color, (0.3, 0.59, 0.11)) > 140 else (255, 255, 255)


@lru_cache(maxsize=1024)
def _shades(color: Color) -> np.ndarray:
    """Return the 256 colors from the background of a label to its text."""
    return np.rint(np.linspace(color, ink(color), 256)).astype(np.uint8)


@lru_cache(maxsize=1024)
def _rendered(text: str, size: int) -> np.ndarray:
    """Return the coverage of pixels (H, W) by a text with margins, 0 to 255."""
    face, margin = font(size), max(2, size // 6)
    ascent, descent = face.getmetrics()
    width = math.ceil(face.getlength(text)) + 2 * margin
    image = Image.new("L", (width, ascent + descent))
    ImageDraw.Draw(image).text((margin, ascent), text, 255, face, anchor="ls")
    return np.asarray(image)


@cache
def font(size: int) -> ImageFont.FreeTypeFont:
    """Return the font for labels, of a size in pixels."""
    return ImageFont.truetype(_font_file(), size)


def font_has(text: str) -> bool:
    """Return whether the label font has all characters of a text.

    The default of matplotlib, DejaVu Sans, has no Chinese.
    """
    return set(text) <= _characters()


@cache
def _characters() -> frozenset[str]:
    return frozenset(map(chr, get_font(_font_file()).get_charmap()))


def _font_file() -> str:
    return findfont(FontProperties(family=["sans-serif"]))  # matplotlib caches it
