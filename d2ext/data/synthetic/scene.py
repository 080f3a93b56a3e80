"""Draws one picture with balloons and outlines what shows of them."""

import cv2
import numpy as np

from d2ext.data.synthetic.canvas import BACKGROUND, Canvas, ellipse, hsv, turn
from d2ext.data.synthetic.scenery import background, leaves, photograph

_MIN_VISIBLE = 0.15  # the share of a balloon that must show for it to be annotated


def draw_scene(
    rng: np.random.Generator, long_side: int
) -> tuple[np.ndarray, list[list[list[int]]]]:
    """Draws one picture.

    Args:
        rng: decides everything.
        long_side: about the longer side in pixels.

    Returns:
        pixels: (H, W, 3) uint8, BGR.
        outlines: of each balloon's largest visible piece, a list of [x, y] pixel indices. Balloons
            of which little shows have none.
    """
    long = round(long_side * rng.uniform(0.9, 1.1))
    short = round(long * rng.uniform(0.68, 0.8))
    height, width = (short, long) if rng.random() < 0.65 else (long, short)
    canvas = Canvas(background(rng, height, width))
    for _ in range(rng.integers(2, 7)):
        _distractor(rng, canvas)
    areas = []
    for label, (centre, radius, anchor) in enumerate(_place_balloons(rng, width, height)):
        areas.append(_balloon(rng, canvas, label, centre, radius, anchor))
        if rng.random() < 0.12:
            _distractor(rng, canvas)
    for _ in range(rng.choice(4, p=(0.35, 0.35, 0.2, 0.1))):
        _occluder(rng, canvas)
    return photograph(rng, canvas.pixels), _visible_outlines(canvas.owner, areas)


def _place_balloons(rng: np.random.Generator, width: int, height: int) -> list[tuple]:
    """Chooses (centre, radius, end of the string), back to front: a bunch, single ones or both."""
    side = max(width, height)
    scale = rng.choice((0.05, 0.08, 0.13, 0.19), p=(0.2, 0.35, 0.3, 0.15)) * side
    balloons = []
    if rng.random() < 0.55:
        middle = rng.uniform((0.25, 0.2), (0.75, 0.55)) * (width, height)
        hand = np.array(
            [middle[0] + rng.normal(0, 0.5) * scale, middle[1] + rng.uniform(4, 6) * scale]
        )
        for _ in range(rng.integers(3, 9)):
            centre = middle + rng.normal(0, 1.3, 2) * scale
            balloons.append((centre, scale * rng.uniform(0.75, 1.2), hand))
    for _ in range(rng.integers(0 if balloons else 1, 5)):
        centre = rng.uniform(-0.03, 1.03, 2) * (width, height)
        radius = scale * rng.uniform(0.5, 1.5)
        balloons.append((centre, radius, centre + np.array([rng.normal(0, 0.8), 5]) * radius))
    order = rng.permutation(len(balloons))
    return [balloons[i] for i in order]


def _balloon(
    rng: np.random.Generator,
    canvas: Canvas,
    label: int,
    centre: np.ndarray,
    radius: float,
    anchor: np.ndarray,
) -> float:
    """Paints string, knot and body; returns the area of the whole body in pixels."""
    colour = hsv(rng.random(), rng.uniform(0.55, 1), rng.uniform(0.6, 1))
    if rng.random() < 0.12:
        colour = np.full(3, rng.uniform(190, 245), np.float32)  # white ones, too
    # A balloon hangs on its string: its lower end points at the anchor, more or less.
    down = anchor - centre
    angle = np.clip(np.arctan2(-down[0], down[1]), -0.6, 0.6) + rng.normal(0, 0.12)
    long = radius * rng.uniform(1.0, 1.35)
    taper = rng.uniform(0.05, 0.4)

    t = np.linspace(0, 2 * np.pi, 64, endpoint=False)
    lower = np.maximum(-np.cos(t), 0)
    body = np.stack([np.sin(t) * (1 - taper * lower**2) * radius, -np.cos(t) * long], 1)
    body[:, 1] += lower**3 * taper * radius * 0.6
    outline = turn(body, angle) + centre
    tip = turn(np.array([[0, body[:, 1].max()]]), angle)[0] + centre
    axis = turn(np.array([[0.0, 1.0]]), angle)[0]

    if rng.random() < 0.8:
        s = np.linspace(0, 1, 24)[:, None]
        sag = np.array([rng.normal(0, 0.4) * radius, 0]) * np.sin(s * np.pi)
        canvas.line(tip + s * (anchor - tip) + sag, colour * 0.3 + 120, max(1.0, radius * 0.025))
    across = np.array([axis[1], -axis[0]]) * radius * 0.1
    foot = tip + axis * radius * 0.14
    canvas.fill(np.stack([tip - axis, foot + across, foot - across]), colour * 0.6)

    light = rng.uniform((-0.5, -0.65), (0.5, -0.3))
    gloss = rng.uniform(0.35, 1)
    dots = rng.random() < 0.15
    phase = rng.uniform(0, 2 * np.pi, 2)

    def shade(xs: np.ndarray, ys: np.ndarray) -> np.ndarray:
        dx, dy = xs - centre[0], ys - centre[1]
        u = (dx * np.cos(angle) + dy * np.sin(angle)) / radius
        v = (-dx * np.sin(angle) + dy * np.cos(angle)) / long
        rim = np.clip(1 - u * u - v * v, 0, 1)
        diffuse = 0.5 + 0.35 * np.sqrt(rim) - 0.22 * (u * light[0] * -2 + v * 0.8)
        spot = np.exp(-(((u - light[0]) / 0.16) ** 2) - ((v - light[1]) / 0.24) ** 2)
        base = np.broadcast_to(colour, (*u.shape, 3))
        if dots:
            pattern = np.sin(7 * u + phase[0]) * np.sin(7 * v + phase[1]) > 0.45
            base = np.where(pattern[..., None], np.float32(235), base)
        return np.clip(base * diffuse[..., None] * 1.15 + 255 * gloss * spot[..., None], 0, 255)

    canvas.fill(outline, shade, label, opacity=rng.choice((1.0, 0.9, 0.8), p=(0.6, 0.25, 0.15)))
    return cv2.contourArea(outline.astype(np.float32))


def _distractor(rng: np.random.Generator, canvas: Canvas) -> None:
    """Paints something that is no balloon: bunting, a disc, a ring, a striped ball or a box."""
    height, width = canvas.owner.shape
    centre = rng.uniform(0, 1, 2) * (width, height)
    size = max(width, height) * rng.uniform(0.02, 0.1)
    angle = rng.uniform(0, np.pi)
    colour = hsv(rng.random(), rng.uniform(0.1, 1), rng.uniform(0.25, 0.95))
    other = hsv(rng.random(), rng.uniform(0.1, 1), rng.uniform(0.25, 0.95))
    kind = rng.choice(("bunting", "disc", "ring", "ball", "box"))
    if kind == "bunting":
        sag, drop, step = rng.uniform(0.02, 0.1) * height, size * 0.7, size * 0.6
        xs = np.arange(-step, width + step, step)
        ys = centre[1] * 0.5 + sag * np.sin(np.pi * xs / width)
        canvas.line(np.stack([xs, ys], 1), np.full(3, 60.0), max(1.0, size * 0.04))
        for i in range(len(xs) - 1):
            a, b = (xs[i], ys[i]), (xs[i + 1], ys[i + 1])
            flag = np.array([a, b, ((a[0] + b[0]) / 2, (a[1] + b[1]) / 2 + drop)])
            canvas.fill(flag, colour if i % 2 else other)
    elif kind == "box":
        sides = size * rng.uniform(0.5, 1.8, 2)
        box = np.array([(-1, -1), (1, -1), (1, 1), (-1, 1)]) * sides
        canvas.fill(turn(box, angle * 0.15) + centre, colour)
        band = np.array([(-1, -0.2), (1, -0.2), (1, 0.2), (-1, 0.2)]) * sides
        canvas.fill(turn(band, angle * 0.15) + centre, other)
    else:
        disc = ellipse(centre, (size, size * rng.uniform(0.6, 1)), angle)
        wave = rng.uniform(6, 12) / size

        def stripes(xs: np.ndarray, ys: np.ndarray) -> np.ndarray:
            along = (xs - centre[0]) * np.cos(angle) + (ys - centre[1]) * np.sin(angle)
            return np.where(np.sin(along * wave)[..., None] > 0, colour, other)

        canvas.fill(disc, stripes if kind == "ball" else colour)
        if kind == "ring":
            hole = (disc - centre) * rng.uniform(0.5, 0.8) + centre
            canvas.fill(hole, other)


def _occluder(rng: np.random.Generator, canvas: Canvas) -> None:
    """Paints something in front of the balloons: a post, a wire or a branch with leaves."""
    height, width = canvas.owner.shape
    side = max(width, height)
    kind = rng.choice(("post", "wire", "branch"))
    start = np.array([rng.uniform(0, width), height + 5.0])
    end = np.array([start[0] + rng.normal(0, 0.1) * width, -5.0])
    if kind == "wire" or (kind == "branch" and rng.random() < 0.5):
        start = np.array([-5.0, rng.uniform(0, 1) * height])
        end = np.array([width + 5.0, start[1] + rng.normal(0, 0.25) * height])
    s = np.linspace(0, 1, 40)[:, None]
    path = start + s * (end - start)
    tone = hsv(rng.uniform(0.02, 0.15), rng.uniform(0, 0.5), rng.uniform(0.1, 0.6))
    if kind == "post":
        canvas.line(path, tone, side * rng.uniform(0.015, 0.05), BACKGROUND)
        canvas.line(path + np.array([side * 0.005, 0]), tone * 1.3, side * 0.006)
    elif kind == "wire":
        canvas.line(path + np.sin(s * np.pi) * (0, side * 0.05), tone * 0.6, side * 0.006)
    else:
        path = path[: rng.integers(15, 30)]  # a branch ends somewhere in the picture
        canvas.line(path, tone, side * 0.01)
        twigs = path[rng.integers(0, len(path), 30)]
        leaves(rng, canvas, twigs + rng.normal(0, side * 0.03, twigs.shape))


def _visible_outlines(owner: np.ndarray, areas: list[float]) -> list[list[list[int]]]:
    """The outlines, given the area of each whole balloon, also beyond the frame, in pixels."""
    outlines = []
    for label, area in enumerate(areas):
        mask = (owner == label).astype(np.uint8)
        contours, _ = cv2.findContours(mask, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
        largest = max(contours, key=cv2.contourArea, default=None)
        if largest is None or cv2.contourArea(largest) < max(_MIN_VISIBLE * area, 40):
            continue
        polygon = cv2.approxPolyDP(largest, 0.8, closed=True)[:, 0]
        if len(polygon) >= 3:
            outlines.append(polygon.tolist())
    return outlines
