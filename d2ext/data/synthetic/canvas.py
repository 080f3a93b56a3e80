"""The painter's tools: a canvas, colours and shapes.

Colours are BGR from 0 to 255, coordinates (x, y) in pixels, an integer being a pixel's centre.
"""

from collections.abc import Callable

import cv2
import numpy as np

BACKGROUND = -1

Colour = np.ndarray | Callable[[np.ndarray, np.ndarray], np.ndarray]


class Canvas:
    """A picture (float BGR, 0 to 255) and, for each pixel, the number of the balloon it shows."""

    def __init__(self, pixels: np.ndarray):
        self.pixels = pixels.astype(np.float32)
        self.owner = np.full(pixels.shape[:2], BACKGROUND, np.int16)

    def fill(
        self,
        outline: np.ndarray,
        colour: Colour,
        label: int | None = BACKGROUND,
        opacity: float = 1.0,
    ) -> None:
        """Paints the polygon `outline` (N, 2).

        Args:
            outline: its corners.
            colour: BGR, or a function of the pixels' x and y that returns BGR.
            label: the balloon that the pixels show from now on; None leaves that as it was.
            opacity: in [0, 1].
        """
        height, width = self.owner.shape
        x0, y0 = np.maximum(np.floor(outline.min(0)).astype(int) - 1, 0)
        x1, y1 = np.minimum(np.ceil(outline.max(0)).astype(int) + 2, (width, height))
        if x0 >= x1 or y0 >= y1:
            return
        cover = np.zeros((y1 - y0, x1 - x0), np.uint8)
        points = np.round((outline - (x0, y0)) * 16).astype(np.int32)
        cv2.fillPoly(cover, [points], 255, cv2.LINE_AA, shift=4)
        if callable(colour):
            ys, xs = np.mgrid[y0:y1, x0:x1].astype(np.float32)
            colour = colour(xs, ys)
        window = self.pixels[y0:y1, x0:x1]
        window += (cover[..., None] * np.float32(opacity / 255)) * (colour - window)
        if label is not None:
            self.owner[y0:y1, x0:x1][cover > 127] = label

    def line(
        self, points: np.ndarray, colour: np.ndarray, width: float, label: int | None = None
    ) -> None:
        """Paints a stroke along `points` (N, 2); a thin one hides nothing (`label` None)."""
        normal = np.gradient(points, axis=0)[:, ::-1] * (1, -1)
        normal /= np.linalg.norm(normal, axis=1, keepdims=True) + 1e-6
        outline = np.concatenate([points + normal * width / 2, (points - normal * width / 2)[::-1]])
        self.fill(outline, colour, label)


def hsv(hue: float, saturation: float, value: float) -> np.ndarray:
    """A BGR colour; hue in [0, 1)."""
    pixel = np.array([[[hue * 360, saturation, value]]], np.float32)
    return cv2.cvtColor(pixel, cv2.COLOR_HSV2BGR)[0, 0] * 255


def ellipse(centre: np.ndarray, axes: tuple, angle: float, points: int = 40) -> np.ndarray:
    """The outline (points, 2) of an ellipse; the angle in radians."""
    t = np.linspace(0, 2 * np.pi, points, endpoint=False)
    return turn(np.stack([axes[0] * np.cos(t), axes[1] * np.sin(t)], 1), angle) + centre


def turn(points: np.ndarray, angle: float) -> np.ndarray:
    """Turns points (N, 2) about the origin by an angle in radians."""
    cos, sin = np.cos(angle), np.sin(angle)
    return points @ np.array([[cos, sin], [-sin, cos]])
