"""Backgrounds, leaves, and the look of a photo."""

import cv2
import numpy as np

from d2ext.data.synthetic.canvas import Canvas, ellipse, hsv


def cloudy(rng: np.random.Generator, height: int, width: int, coarse: int = 3) -> np.ndarray:
    """Cloudy texture in [0, 1]: random grids of doubling resolution, (height, width) float32."""
    total = np.zeros((height, width), np.float32)
    cells, weight = coarse, 1.0
    while cells < max(height, width):
        grid = rng.random((cells, cells), dtype=np.float32)
        total += weight * cv2.resize(grid, (width, height), interpolation=cv2.INTER_CUBIC)
        cells, weight = cells * 2, weight * 0.6
    return (total - total.min()) / np.ptp(total)


def background(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """A scene without balloons: sky over trees, foliage, a brick wall or lights in the dark."""
    noise = cloudy(rng, height, width)[..., None]
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    kind = rng.choice(("sky", "foliage", "wall", "lights"), p=(0.35, 0.25, 0.25, 0.15))
    if kind == "foliage":
        canvas = Canvas(noise * hsv(rng.uniform(0.15, 0.35), 0.6, 0.7))
        leaves(rng, canvas, rng.random((500, 2)) * (width, height))
        return canvas.pixels
    if kind == "wall":
        hue, brick = rng.random(), max(width, height) * rng.uniform(0.02, 0.06)
        row = np.floor(y / brick)
        edge = np.minimum((x / brick / 2 + row % 2 / 2) % 1 * 2, y / brick % 1)
        tone = hsv(hue, rng.uniform(0.05, 0.6), rng.uniform(0.4, 0.9))
        wall = (
            tone * (0.6 + 0.5 * noise) * np.where(edge < 0.1, rng.uniform(0.6, 1.2), 1)[..., None]
        )
        floor = height * rng.uniform(0.7, 1.2)
        return np.where((y > floor)[..., None], wall[::-1] * 0.6, wall)
    if kind == "lights":
        canvas = Canvas(noise * hsv(rng.random(), 0.5, 0.35))
        for _ in range(rng.integers(15, 50)):
            size = max(width, height) * rng.uniform(0.008, 0.05)
            light = ellipse(rng.random(2) * (width, height), (size, size), 0)
            colour = hsv(rng.uniform(0, 0.2), rng.uniform(0.2, 0.9), 1)
            canvas.fill(light, colour, opacity=rng.uniform(0.15, 0.6))
        return cv2.GaussianBlur(canvas.pixels, (0, 0), max(width, height) / 300)
    blue = hsv(rng.uniform(0.52, 0.62), rng.uniform(0.2, 0.7), rng.uniform(0.6, 1))
    clouds = np.clip(noise * 2.4 - rng.uniform(0.6, 1.6), 0, 1)
    sky = blue + (240 - blue) * np.clip(clouds + y[..., None] / height * 0.4, 0, 1)
    trees = height * (rng.uniform(0.65, 1.05) + 0.2 * (cloudy(rng, 1, width, 6)[0] - 0.5))
    ground = noise * hsv(rng.uniform(0.1, 0.35), 0.5, 0.55)
    return np.where((y > trees)[..., None], ground, sky)


def leaves(rng: np.random.Generator, canvas: Canvas, places: np.ndarray) -> None:
    """Paints a leaf at each of `places` (N, 2)."""
    side = max(canvas.owner.shape)
    hue = rng.uniform(0.15, 0.38)
    for place in places:
        leaf = side * rng.uniform(0.01, 0.035)
        colour = hsv(hue + rng.normal(0, 0.03), rng.uniform(0.4, 0.9), rng.uniform(0.15, 0.75))
        canvas.fill(ellipse(place, (leaf, leaf * 0.4), rng.uniform(0, np.pi), 12), colour)


def photograph(rng: np.random.Generator, pixels: np.ndarray) -> np.ndarray:
    """Uneven light, a soft lens and a noisy sensor; returns uint8."""
    height, width = pixels.shape[:2]
    light = 0.75 + 0.4 * cloudy(rng, height, width, coarse=2)[..., None] ** 0.5
    soft = cv2.GaussianBlur(pixels * light, (0, 0), rng.uniform(0.4, 1.1))
    grain = rng.normal(0, rng.uniform(1, 6), pixels.shape)
    return np.clip(soft + grain, 0, 255).astype(np.uint8)
