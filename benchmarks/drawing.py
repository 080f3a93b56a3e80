"""Draw photo-like scenes with exact masks, for small_sets.py.

A scene is a piece of a real photo onto which shapes are painted: textured with pieces of other
photos, shaded, shadowed and overlapping. Where an object's color comes from the background around
it, only texture, shading and outline show it.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import matplotlib
import numpy as np
import shapely
from matplotlib.font_manager import FontProperties
from matplotlib.textpath import TextPath

Rng = np.random.Generator
# Closed outlines of a shape in units of half its size, float (N, 2); their union is filled.
Loops = list[np.ndarray]
FINE = 4  # samples per pixel and axis where outlines are filled and traced


@dataclass
class Painted:
    """A shape that has been painted.

    Attributes:
        label: Index of its class; None for a distractor.
        box: Left, top, right and bottom of `alpha` in the canvas, in pixels.
        alpha: Visible share of each pixel, float32 (bottom - top, right - left).
        whole: Sum of `alpha` before other shapes covered the object.
    """

    label: int | None
    box: tuple[int, int, int, int]
    alpha: np.ndarray
    whole: float


@dataclass
class Scene:
    """A photo in the making.

    Attributes:
        canvas: BGR image, float32 (height, width, 3), 0 to 255.
        photos: BGR photos that textures are cut from.
        light: Unit vector to the light in the image plane.
        painted: The shapes, in the order in which they were painted.
    """

    canvas: np.ndarray
    photos: Sequence[np.ndarray]
    light: np.ndarray
    painted: list[Painted] = field(default_factory=list)


def start_scene(rng: Rng, photos: Sequence[np.ndarray], width: int, height: int) -> Scene:
    """Return a scene on a random piece of a photo, with a random light.

    Args:
        rng: Source of all choices.
        photos: BGR photos, uint8 (H, W, 3).
        width: Width of the scene in pixels.
        height: Height of the scene in pixels.
    """
    canvas = _piece(rng, photos, width, height, rng.uniform(0.35, 0.9))
    canvas = cv2.GaussianBlur(canvas, (0, 0), rng.uniform(0.3, 1.5))
    angle = rng.uniform(0, 2 * np.pi)
    return Scene(canvas, photos, np.array([np.cos(angle), np.sin(angle)]))


def _piece(
    rng: Rng, photos: Sequence[np.ndarray], width: int, height: int, share: float
) -> np.ndarray:
    """Return a random piece of a photo, resized; it covers at most `share` of the photo's sides."""
    photo = photos[rng.integers(len(photos))]
    zoom = max(width / photo.shape[1], height / photo.shape[0]) / share
    w, h = (max(8, int(side / zoom)) for side in (width, height))
    x, y = (
        int(rng.integers(full - part + 1))
        for full, part in zip(photo.shape[1::-1], (w, h), strict=True)
    )
    piece = photo[y : y + h, x : x + w]
    if rng.random() < 0.5:
        piece = piece[:, ::-1]
    return cv2.resize(piece, (width, height), interpolation=cv2.INTER_CUBIC).astype(np.float32)


def place(
    rng: Rng,
    scene: Scene,
    loops: Loops,
    size: float,
    label: int | None,
    *,
    camouflage: float = 0.5,
    squeeze: float = 0.75,
    turn: float = np.pi,
    photo: np.ndarray | None = None,
    covered: float = 0.5,
) -> bool:
    """Paint a shape at a random position that covers no other one too much.

    Args:
        rng: Source of all choices.
        scene: The scene, changed in place.
        loops: Outlines of the shape.
        size: Its size in pixels, as the outlines' units are half of it.
        label: Index of its class; None for a distractor.
        camouflage: Probability that the color comes from the background around the shape.
        squeeze: Least factor by which a view from the side narrows the shape.
        turn: Largest rotation in radians, to either side.
        photo: BGR pixels of the square around the shape (units -1 to 1), instead of a texture.
        covered: Largest share of an object that shapes above it may hide.

    Returns:
        True if a position was found in 20 tries.
    """
    turned = rng.uniform(-turn, turn)
    matrix = np.array([[np.cos(turned), -np.sin(turned)], [np.sin(turned), np.cos(turned)]])
    matrix = matrix @ np.diag([rng.uniform(squeeze, 1), 1]) * size / 2
    outlines = [loop @ matrix.T for loop in loops]
    low = np.min([o.min(0) for o in outlines], axis=0)
    high = np.max([o.max(0) for o in outlines], axis=0)
    height, width = scene.canvas.shape[:2]
    extent = high - low
    for _ in range(20):
        # A fifth of the shape may lie outside of the image.
        offset = rng.uniform(-0.2 * extent, np.array([width, height]) - 0.8 * extent) - low
        left, top = np.maximum(np.floor(low + offset).astype(int) - 1, 0)
        right, bottom = np.minimum(np.ceil(high + offset).astype(int) + 1, (width, height))
        if right - left < 4 or bottom - top < 4:
            continue
        box = int(left), int(top), int(right), int(bottom)
        alpha = _filled([o + offset - (left, top) for o in outlines], right - left, bottom - top)
        if alpha.sum() > 8 and not _covers(scene, box, alpha, covered):
            if photo is not None:
                texture = _warped(photo, matrix, offset - (left, top), alpha.shape)
            else:
                texture = _textured(rng, scene, box, camouflage)
            _paint(rng, scene, box, alpha, texture, size, label)
            return True
    return False


def _filled(outlines: Loops, width: int, height: int) -> np.ndarray:
    """Return the share of each pixel that the union of the outlines covers, float32 (H, W)."""
    fine = np.zeros((height * FINE, width * FINE), np.uint8)
    for outline in outlines:
        cv2.fillPoly(fine, [np.round(outline * FINE - 0.5).astype(np.int32)], 255)
    return cv2.resize(fine, (width, height), interpolation=cv2.INTER_AREA).astype(np.float32) / 255


def _overlap(
    a: tuple[int, int, int, int], b: tuple[int, int, int, int]
) -> tuple[tuple[slice, slice], tuple[slice, slice]] | None:
    """Return the common part of two boxes as an index into each of them; None if there is none."""
    left, top = max(a[0], b[0]), max(a[1], b[1])
    right, bottom = min(a[2], b[2]), min(a[3], b[3])
    if right <= left or bottom <= top:
        return None
    first, second = (
        (slice(top - box[1], bottom - box[1]), slice(left - box[0], right - box[0]))
        for box in (a, b)
    )
    return first, second


def _covers(
    scene: Scene, box: tuple[int, int, int, int], alpha: np.ndarray, covered: float
) -> bool:
    """Return whether a new shape would hide too much of an object."""
    for other in scene.painted:
        common = _overlap(other.box, box)
        if common is not None and other.label is not None:
            hidden = float((other.alpha[common[0]] * alpha[common[1]]).sum())
            if other.alpha.sum() - hidden < (1 - covered) * other.whole:
                return True
    return False


def _textured(
    rng: Rng, scene: Scene, box: tuple[int, int, int, int], camouflage: float
) -> np.ndarray:
    """Return a mix of a color and the detail of a photo, float32 (bottom - top, ...)."""
    left, top, right, bottom = box
    if rng.random() < camouflage:
        color = scene.canvas[top:bottom, left:right].mean((0, 1))
        # Darker on a bright background, because a camera shows nothing above white.
        color = color * (rng.uniform(0.5, 0.8) if color.mean() > 100 else rng.uniform(1.3, 1.8))
    else:
        hsv = np.array([[[rng.integers(180), rng.integers(20, 200), rng.integers(50, 240)]]])
        color = cv2.cvtColor(hsv.astype(np.uint8), cv2.COLOR_HSV2BGR)[0, 0].astype(np.float32)
    detail = _piece(rng, scene.photos, right - left, bottom - top, rng.uniform(0.1, 0.6))
    return color + rng.uniform(0.2, 0.7) * (detail - detail.mean((0, 1)))


def _warped(
    photo: np.ndarray, matrix: np.ndarray, offset: np.ndarray, shape: tuple[int, ...]
) -> np.ndarray:
    """Return the pixels of a square photo that are seen at each pixel of the shape's box."""
    side = photo.shape[0] / 2
    forward = np.hstack([matrix / side, (offset - matrix @ [1, 1])[:, None]])
    size = shape[1], shape[0]
    return cv2.warpAffine(photo, forward, size, borderMode=cv2.BORDER_REFLECT).astype(np.float32)


def _paint(
    rng: Rng,
    scene: Scene,
    box: tuple[int, int, int, int],
    alpha: np.ndarray,
    texture: np.ndarray,
    size: float,
    label: int | None,
) -> None:
    left, top, right, bottom = box
    round_off = max(0.6, size * rng.uniform(0.02, 0.12))
    gradient = np.gradient(cv2.GaussianBlur(alpha, (0, 0), round_off))
    slope = gradient[1] * scene.light[0] + gradient[0] * scene.light[1]
    shaded = texture * (1 - rng.uniform(0.3, 1.2) * round_off * slope)[..., None]
    _cast_shadow(rng, scene, box, alpha, size)
    inside = scene.canvas[top:bottom, left:right]
    inside += alpha[..., None] * (shaded - inside)
    for other in scene.painted:
        common = _overlap(other.box, box)
        if common is not None:
            other.alpha[common[0]] *= 1 - alpha[common[1]]
    scene.painted.append(Painted(label, box, alpha.copy(), float(alpha.sum())))


def _cast_shadow(
    rng: Rng, scene: Scene, box: tuple[int, int, int, int], alpha: np.ndarray, size: float
) -> None:
    """Darken the canvas on the side of the shape that is away from the light."""
    softness, distance = max(0.8, size * 0.06), size * rng.uniform(0.02, 0.08)
    margin = int(3 * softness + distance) + 1
    height, width = scene.canvas.shape[:2]
    left, top = max(0, box[0] - margin), max(0, box[1] - margin)
    right, bottom = min(width, box[2] + margin), min(height, box[3] + margin)
    around = box[1] - top, bottom - box[3], box[0] - left, right - box[2]
    shadow = cv2.copyMakeBorder(alpha, *around, cv2.BORDER_CONSTANT, value=0)
    move = np.hstack([np.eye(2), -distance * scene.light[:, None]])
    shadow = cv2.warpAffine(shadow, move, shadow.shape[::-1])
    shadow = rng.uniform(0, 0.6) * cv2.GaussianBlur(shadow, (0, 0), softness)
    scene.canvas[top:bottom, left:right] *= 1 - shadow[..., None]


def finish(rng: Rng, scene: Scene) -> np.ndarray:
    """Return the scene as a camera sees it: uneven light, blur and noise; uint8 (H, W, 3)."""
    height, width = scene.canvas.shape[:2]
    ramp = np.linspace(-1, 1, width)[None] * scene.light[0]
    ramp = ramp + np.linspace(-1, 1, height)[:, None] * scene.light[1]
    image = scene.canvas * (rng.uniform(0.6, 1.05) * (1 + rng.uniform(0, 0.35) * ramp))[..., None]
    image = cv2.GaussianBlur(image, (0, 0), rng.uniform(0.3, 1.0))
    image = image + rng.normal(0, rng.uniform(1, 6), image.shape)
    return np.clip(image, 0, 255).astype(np.uint8)


def annotations(scene: Scene) -> list[dict]:
    """Return the objects as in dataset dicts, with polygons around what is visible of each."""
    shapes = [shape for shape in scene.painted if shape.label is not None]
    found = [mask_object(shape.alpha, shape.label, shape.box[:2]) for shape in shapes]
    return [annotation for annotation in found if annotation is not None]


def mask_object(alpha: np.ndarray, label: int, corner: tuple[int, int] = (0, 0)) -> dict | None:
    """Return an object as in dataset dicts, with polygons accurate to a quarter of a pixel.

    Args:
        alpha: Visible share of each pixel, float32 (H, W).
        label: Index of the class.
        corner: Pixel (x, y) of the image at which the mask begins.

    Returns:
        The annotation; None if fewer than 8 pixels are visible.
    """
    if alpha.sum() < 8:
        return None
    padded = np.pad(alpha, 1)
    fine = cv2.resize(padded, None, fx=FINE, fy=FINE, interpolation=cv2.INTER_LINEAR)
    traced, _ = cv2.findContours(
        (fine >= 0.5).astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE
    )
    traced = [cv2.approxPolyDP(c, 1, True)[:, 0] for c in traced if cv2.contourArea(c) > 32]
    origin = np.array(corner) - 1
    # Padding lets outlines reach the border of the image, from outside.
    polygons = [np.maximum((c + 0.5) / FINE + origin, 0) for c in traced if len(c) >= 3]
    if not polygons:
        return None
    low = np.min([p.min(0) for p in polygons], axis=0)
    high = np.max([p.max(0) for p in polygons], axis=0)
    return {
        "category_id": label,
        "bbox": [float(value) for value in (*low, *(high - low))],
        "bbox_mode": 1,  # XYWH_ABS
        "segmentation": [p.round(2).ravel().tolist() for p in polygons],
        "iscrowd": 0,
    }


def polar(radius: Callable[[np.ndarray], np.ndarray], points: int = 90) -> Loops:
    """Return the outline of the radius as a function of the angle, scaled to a size of 2."""
    angles = np.linspace(0, 2 * np.pi, points, endpoint=False)
    outline = np.stack([np.cos(angles), np.sin(angles)], 1) * radius(angles)[:, None]
    return normalized([outline])


def normalized(loops: Loops) -> Loops:
    """Center the outlines, and scale them to a largest extent of 2."""
    points = np.concatenate(loops)
    low, high = points.min(0), points.max(0)
    return [(loop - (low + high) / 2) * 2 / (high - low).max() for loop in loops]


def blob(rng: Rng, roughness: float = 0.25) -> Loops:
    """Return a smooth random outline, such as that of a pebble."""
    waves = [(k, rng.normal(0, roughness / k), rng.uniform(0, 2 * np.pi)) for k in (1, 2, 3, 4, 5)]
    return polar(lambda t: np.maximum(0.3, 1 + sum(a * np.cos(k * t + p) for k, a, p in waves)))


def corners(rng: Rng, number: int, dent: float = 1) -> Loops:
    """Return a polygon with jittered corners; with a `dent` below 1, a star."""
    count = number * 2 if dent < 1 else number
    angles = np.linspace(0, 2 * np.pi, count, endpoint=False)
    radii = np.where(np.arange(count) % 2 == 0, 1, dent) * rng.uniform(0.92, 1.08, count)
    return normalized([np.stack([np.cos(angles), np.sin(angles)], 1) * radii[:, None]])


def seed(rng: Rng) -> Loops:
    """Return a drop with one pointed end."""
    thickness, point = rng.uniform(0.4, 0.6), rng.uniform(0.6, 1.2)
    t = np.linspace(0, 2 * np.pi, 60, endpoint=False)
    return normalized([np.stack([np.cos(t), thickness * np.sin(t) * np.sin(t / 2) ** point], 1)])


def leaf(rng: Rng) -> Loops:
    """Return a pointed leaf with a stalk and a toothed edge."""
    width, teeth, depth = rng.uniform(0.25, 0.5), rng.integers(5, 12), rng.uniform(0, 0.12)
    t = np.linspace(0, 1, 60)
    belly = width * np.sin(np.pi * t ** rng.uniform(0.7, 1.1)) * (1 + depth * (t * teeth % 1))
    bend = rng.uniform(-0.25, 0.25) * (2 * t - 1) ** 2
    right = np.stack([2 * t - 1, bend + belly], 1)
    left = np.stack([2 * t - 1, bend - belly], 1)
    stalk = shapely.LineString([(-1.3, bend[0]), (-0.95, bend[0])]).buffer(0.035)
    return normalized([np.concatenate([right, left[::-1]]), np.array(stalk.exterior.coords)])


def strip(rng: Rng, thickness: float, bend: float) -> Loops:
    """Return a long thin shape with round ends.

    Args:
        rng: Source of all choices.
        thickness: Its thickness, relative to its length.
        bend: How much its direction changes along its length, in radians.
    """
    steps = cv2.GaussianBlur(rng.normal(0, 1, (40, 1)), (0, 0), 5)[:, 0]
    heading = np.cumsum(bend * steps / np.abs(np.cumsum(steps)).max())
    path = np.cumsum(np.stack([np.cos(heading), np.sin(heading)], 1), axis=0) / 40
    around = shapely.LineString(path).buffer(thickness / 2)
    return normalized([np.array(around.exterior.coords)])


def glyph(character: str) -> Loops:
    """Return the outline of a character of matplotlib's own font, without its holes."""
    font = FontProperties(fname=Path(matplotlib.get_data_path(), "fonts/ttf/DejaVuSans.ttf"))
    path = TextPath((0, 0), character, size=100, prop=font)
    return normalized([loop * (1, -1) for loop in path.to_polygons(closed_only=True)])
