"""Draw the ground truth and the predictions of images side by side."""

import colorsys
import os
from collections import defaultdict
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import cv2
import matplotlib
import numpy as np
import pycocotools.mask as mask_util
from detectron2.structures import BoxMode
from detectron2.utils.visualizer import Visualizer
from matplotlib.font_manager import FontProperties, findfont, get_font
from PIL import Image, ImageDraw, ImageFont

from d2ext.data.formats.rle import compressed
from d2ext.data.loading.image_io import read_photo
from d2ext.data.segmentation import Segmentation, annotated_segmentation
from d2ext.data.tiles.runs import decoded
from d2ext.errors import UserError

# Range in pixels of a picture's long side, so that big photos are drawn quickly, and labels on
# small images are readable.
_LONG_SIDE = (512, 1024)
_UNKNOWN = (640, 480)  # size of the gray picture for an image that cannot be read
_HEADER, _GAP = 36, 6
_LIKELY = 0.05  # score of a keypoint above which it is drawn, as in Detectron2

Color = tuple[float, float, float]


def write_overlays(
    records: Sequence[dict[str, Any]],
    predictions: Sequence[dict[str, Any]] | None,
    metadata: Any,
    out_dir: str | os.PathLike[str],
    score_threshold: float = 0.5,
    limit: int = 32,
    segmentations: Mapping[Any, Segmentation] = MappingProxyType({}),
) -> list[Path]:
    """Write one JPEG per image, with ground truth on the left and predictions on the right.

    Args:
        records: Detectron2 dataset dicts (boxes in any mode; polygons, RLE or no masks), optionally
            with keypoints and files of semantic or panoptic segmentation.
        predictions: COCO results of the same images; `category_id` counts from 0, `bbox` is XYWH
            in pixels, `segmentation` (RLE) and `keypoints` are optional. None if the model returns
            no instances.
        metadata: Metadata with `thing_classes` and, optionally, `thing_colors` (RGB, 0 to 255),
            `keypoint_names` and `keypoint_connection_rules`, `stuff_classes` and `stuff_colors`.
        out_dir: Output folder; pictures of earlier evaluations in it are removed.
        score_threshold: Predictions with a lower score are not drawn.
        limit: Maximum number of pictures; if there are more records, evenly spaced ones are drawn.
        segmentations: Predicted segmentation by image id. A panoptic one is drawn instead of the
            predictions, whose objects it contains.

    Returns:
        The files in the order of the records, named after the images. Images that cannot be read
        are drawn in gray.
    """
    out_dir = Path(out_dir)
    out_dir.mkdir(parents=True, exist_ok=True)
    for stale in out_dir.glob("*.jpg"):
        stale.unlink()

    by_image = defaultdict(list)
    for p in predictions or ():
        if p["score"] >= score_threshold:
            by_image[p["image_id"]].append(p)

    count = min(limit, len(records))
    files: list[Path] = []
    for i in np.linspace(0, len(records) - 1, count).astype(int):
        record = records[i]
        image_id = record.get("image_id", record["file_name"])
        predicted = by_image[image_id]
        title = f"predictions, score >= {score_threshold:.2f} ({len(predicted)})"
        panels = [
            _ground_truth_panel(record, metadata),
            _panel(
                "predictions" if predictions is None else title,
                predicted,
                segmentations.get(image_id),
            ),
        ]
        file = _free_name(out_dir, Path(record["file_name"]).stem)
        _draw(record, panels, metadata).save(file, quality=85)
        files.append(file)
    return files


class _Panel(NamedTuple):
    """Title of a panel, and what to draw on the photo."""

    title: str
    instances: Sequence[dict]
    segmentation: Segmentation | None


def _ground_truth_panel(record: dict, metadata: Any) -> _Panel:
    objects = record.get("annotations")
    try:
        segmentation = annotated_segmentation(record, metadata)
    except OSError:
        segmentation = None
    title = "ground truth" if objects is None else f"ground truth ({len(objects)})"
    return _panel(title, objects or [], segmentation)


def _panel(title: str, instances: Sequence[dict], segmentation: Segmentation | None) -> _Panel:
    """Return a panel without the instances that a panoptic segmentation contains."""
    if segmentation and segmentation.is_panoptic:
        title = f"{title.partition(',')[0].partition(' (')[0]} ({len(segmentation.segments)})"
        instances = []
    return _Panel(title, instances, segmentation)


def _free_name(folder: Path, stem: str) -> Path:
    file, n = folder / f"{stem}.jpg", 2
    while file.exists():
        file, n = folder / f"{stem}_{n}.jpg", n + 1
    return file


def _draw(record: dict, panels: list[_Panel], metadata: Any) -> Image.Image:
    try:
        photo = Image.fromarray(read_photo(record["file_name"], "RGB"))
    except (OSError, SyntaxError, UserError):
        photo = Image.new("RGB", _size(record) or _UNKNOWN, "gray")
    size = _size(record) or photo.size
    long = max(photo.size)
    factor = min(max(long, _LONG_SIDE[0]), _LONG_SIDE[1]) / long
    w, h = (max(1, round(side * factor)) for side in photo.size)
    photo = photo.resize((w, h), Image.Resampling.LANCZOS, reducing_gap=2)

    page = Image.new("RGB", (2 * w + _GAP, h + _HEADER), "white")
    draw = ImageDraw.Draw(page)
    draw.rectangle((0, 0, page.width, _HEADER - 1), fill=(24, 28, 38))
    font = ImageFont.load_default(size=min(20, w / 15))  # /15: the longest header fits a panel
    for left, panel in zip((0, w + _GAP), panels, strict=True):
        drawn = np.asarray(photo)
        if panel.segmentation:
            drawn = draw_segmentation(drawn, panel.segmentation, metadata)
        drawn = draw_instances(drawn, panel.instances, metadata, size)
        page.paste(Image.fromarray(drawn), (left, _HEADER))
        draw.text((left + 10, _HEADER / 2), panel.title, "white", font, anchor="lm")
    return page


def _size(record: dict) -> tuple[int, int] | None:
    """Return width and height; None for a record of a dataset with only label maps."""
    return (record["width"], record["height"]) if "width" in record else None


def draw_instances(
    photo: np.ndarray,
    instances: Sequence[dict[str, Any]],
    metadata: Any,
    size: tuple[int, int],
    by_class: bool = False,
    labels: bool = True,
) -> np.ndarray:
    """Draw boxes, masks, keypoints and labels.

    Args:
        photo: Array (H, W, 3), uint8, RGB.
        instances: Detectron2 annotations (boxes in any mode; polygons, RLE or no masks),
            optionally with `keypoints` and a `score`.
        metadata: Metadata with `thing_classes` and, optionally, `thing_colors` (RGB, 0 to 255),
            `keypoint_names` and `keypoint_connection_rules`.
        size: Width and height of the image that coordinates refer to; the photo may be resized.
        by_class: Whether to draw all objects of a class in one color (`class_color`) instead of
            different shades or hues.
        labels: Whether to write class names at the boxes.

    Returns:
        Array (H, W, 3), uint8, RGB.
    """
    if not instances:
        return photo
    scale = np.array([photo.shape[1] / size[0], photo.shape[0] / size[1]])
    boxes = [
        BoxMode.convert(x["bbox"], x.get("bbox_mode", BoxMode.XYWH_ABS), BoxMode.XYXY_ABS)
        for x in instances
    ]
    if by_class:
        colors = [
            tuple(v / 255 for v in class_color(x["category_id"], metadata)) for x in instances
        ]
    else:
        colors = _colors(instances, metadata)
    # A "$" in a class name does not start a formula.
    with matplotlib.rc_context({"text.parse_math": False}):
        visualizer = Visualizer(photo)
        visualizer.overlay_instances(
            boxes=np.asarray(boxes) * np.tile(scale, 2),
            masks=[_outlines(x.get("segmentation"), scale) for x in instances],
            labels=[_label(x, metadata) for x in instances] if labels else None,
            assigned_colors=colors,
            alpha=0.4,
        )
        for x, color in zip(instances, colors, strict=True):
            if x.get("keypoints"):
                points = np.array(x["keypoints"]).reshape(-1, 3) * [*scale, 1]
                _draw_keypoints(visualizer, points, metadata, color)
        return visualizer.get_output().get_image()


def _draw_keypoints(visualizer: Visualizer, points: np.ndarray, metadata: Any, color: Any) -> None:
    """Draw the keypoints (K, 3) of an object that are labeled or likely, and their connections."""
    names = getattr(metadata, "keypoint_names", None) or range(len(points))
    seen = {name: p[:2] for name, p in zip(names, points, strict=False) if p[2] > _LIKELY}
    for first, second, line_color in getattr(metadata, "keypoint_connection_rules", None) or ():
        if first in seen and second in seen:
            xs, ys = zip(seen[first], seen[second], strict=True)
            visualizer.draw_line(xs, ys, tuple(v / 255 for v in line_color))
    for place in seen.values():
        visualizer.draw_circle(place, color)


def draw_segmentation(photo: np.ndarray, segmentation: Segmentation, metadata: Any) -> np.ndarray:
    """Draw the regions of a semantic or panoptic segmentation, with their class names.

    Args:
        photo: Array (H, W, 3), uint8, RGB.
        segmentation: Segmentation of the image; the photo may be resized.
        metadata: Metadata with `stuff_classes` and `thing_classes` and, optionally, their colors
            (RGB, 0 to 255).

    Returns:
        Array (H, W, 3), uint8, RGB.
    """
    labels = cv2.resize(segmentation.labels, photo.shape[1::-1], interpolation=cv2.INTER_NEAREST)
    shades = _colors([{"category_id": s.category} for s in segmentation.segments], metadata)
    visualizer = Visualizer(photo)
    with matplotlib.rc_context({"text.parse_math": False}):
        for k, (segment, shade) in enumerate(zip(segmentation.segments, shades, strict=True), 1):
            if segment.is_thing:
                name, color = class_name(segment.category, metadata), shade
            else:
                name, color = _stuff(segment.category, metadata)
            # Detectron2's semantic labels of panoptic data have one class for all objects.
            if name != "things":
                name = name if font_has(name) else f"class {segment.category}"
                visualizer.draw_binary_mask(labels == k, color, text=name)
    return visualizer.get_output().get_image()


def _stuff(category: int, metadata: Any) -> tuple[str, Color]:
    """Return the name and the color of a class of regions."""
    names = getattr(metadata, "stuff_classes", None) or ()
    palette = getattr(metadata, "stuff_colors", None) or ()
    known = category < len(palette)
    return (
        names[category] if category < len(names) else f"class {category}",
        tuple(v / 255 for v in palette[category]) if known else _hue(category),
    )


def _outlines(segmentation: Any, scale: np.ndarray) -> list[np.ndarray]:
    """Return the polygons that Visualizer draws for polygons or RLE, in the photo's size.

    Visualizer would trace the same outlines in bitmaps of the size of the photo, all at once.
    """
    if isinstance(segmentation, dict):
        polygons = _traced(segmentation)
    else:
        polygons = [np.asarray(p, dtype=float) for p in segmentation or ()]
    return [(p.reshape(-1, 2) * scale).reshape(-1) for p in polygons if p.size >= 6]


def _traced(rle: dict[str, Any]) -> list[np.ndarray]:
    """Return the outlines of a mask, in the pixels of its box only."""
    (runs,) = decoded([compressed(rle)])
    x0, y0, x1, y1 = runs.box
    if x0 == x1:
        return []
    bitmap = mask_util.decode(runs.moved(-x0, -y0).encoded(y1 - y0, x1 - x0))
    # The arguments of Visualizer; its coordinates are the centers of pixels.
    contours, _ = cv2.findContours(
        np.ascontiguousarray(bitmap), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE
    )
    return [contour.reshape(-1, 2) + (x0 + 0.5, y0 + 0.5) for contour in contours]


def _label(instance: dict, metadata: Any) -> str:
    label = class_name(instance["category_id"], metadata)
    if not font_has(label):
        label = f"class {instance['category_id']}"
    if "score" in instance:
        label += f" {instance['score']:.2f}"
    return label + mark(instance)


def mark(annotation: dict) -> str:
    """Return the label suffix of an annotation that evaluation ignores; empty for others."""
    for flag, word in (("difficult", "difficult"), ("is_group_of", "group"), ("iscrowd", "crowd")):
        if annotation.get(flag):
            return f" ({word})"
    return ""


def class_name(category: int, metadata: Any) -> str:
    """Return the name of a class; `class 7` for a category without a name."""
    names = metadata.thing_classes
    return names[category] if 0 <= category < len(names) else f"class {category}"


def class_color(category: int, metadata: Any) -> tuple[int, int, int]:
    """Return the RGB color of a class (0 to 255), from the dataset or far from its neighbors'."""
    palette = getattr(metadata, "thing_colors", None) or ()
    if 0 <= category < len(palette):
        return tuple(palette[category])
    return tuple(round(255 * v) for v in _hue(category))


@cache
def label_font() -> str:
    """Return the path of the font for labels."""
    return findfont(FontProperties(family=["sans-serif"]))


@cache
def _glyphs() -> frozenset[str]:
    return frozenset(map(chr, get_font(label_font()).get_charmap()))


def font_has(text: str) -> bool:
    """Return whether the label font has all characters of a text; DejaVu Sans has no Chinese."""
    return set(text) <= _glyphs()


def _hue(k: int) -> Color:
    """Return the k-th hue; steps of the golden ratio keep any number of hues distinct."""
    return colorsys.hls_to_rgb((k * 0.618034) % 1, 0.55, 0.9)


def _colors(instances: list[dict], metadata: Any) -> list[Color]:
    """Return a color for each instance: shades of its class's color, or any hue with one class."""
    palette = getattr(metadata, "thing_colors", None) or ()
    colors = []
    for k, instance in enumerate(instances):
        c = instance["category_id"]
        if len(palette) > 1 and c < len(palette):
            hue, light, saturation = colorsys.rgb_to_hls(*(v / 255 for v in palette[c]))
            light = min(max(light + (0, 0.15, -0.15)[k % 3], 0.2), 0.8)
            colors.append(colorsys.hls_to_rgb(hue, light, saturation))
        else:
            colors.append(_hue(k))
    return colors
