"""Draw the ground truth and the predictions of images side by side."""

import colorsys
import os
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import cv2
import numpy as np
from detectron2.structures import BoxMode
from PIL import Image, ImageDraw, ImageFont

from d2ext.data.formats.rle import run_lengths
from d2ext.data.loading.image_io import read_photo
from d2ext.data.segmentation import Segmentation, annotated_segmentation
from d2ext.errors import UserError
from d2ext.visualize.drawing import (
    Color,
    Labels,
    bounded,
    draw_box,
    draw_line,
    draw_mask,
    draw_point,
    font_has,
    line_width,
)

# Range in pixels of a picture's long side, so that big photos are drawn quickly, and labels on
# small images are readable.
_LONG_SIDE = (512, 1024)
_UNKNOWN = (640, 480)  # size of the gray picture for an image that cannot be read
_HEADER, _GAP = 36, 6
_LIKELY = 0.05  # score of a keypoint above which it is drawn, as in Detectron2
_FINE = 512  # pixels of the long side of a label map in which places for labels are searched


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
    corners = [
        BoxMode.convert(x["bbox"], x.get("bbox_mode", BoxMode.XYWH_ABS), BoxMode.XYXY_ABS)
        for x in instances
    ]
    boxes = bounded(corners * np.tile(scale, 2))
    if by_class:
        colors = [class_color(x["category_id"], metadata) for x in instances]
    else:
        colors = _colors([x["category_id"] for x in instances], metadata)
    shapes = _shapes(instances, scale)
    picture = np.array(photo)
    # Small objects are drawn last, so that large ones do not hide them.
    order = np.argsort(-np.prod(boxes[:, 2:] - boxes[:, :2], axis=1), kind="stable")
    for k in order:
        draw_box(picture, boxes[k], colors[k])
        draw_mask(picture, shapes[k], colors[k], 0.4)
    for x, color in zip(instances, colors, strict=True):
        if x.get("keypoints"):
            points = np.array(x["keypoints"]).reshape(-1, 3) * [*scale, 1]
            _draw_keypoints(picture, points, metadata, color)
    if labels:
        written = Labels(picture)
        for k in order:
            written.at_box(_label(instances[k], metadata), boxes[k], colors[k])
    return picture


def _draw_keypoints(picture: np.ndarray, points: np.ndarray, metadata: Any, color: Color) -> None:
    """Draw the keypoints (K, 3) of an object that are labeled or likely, and their connections."""
    names = getattr(metadata, "keypoint_names", None) or range(len(points))
    seen = {name: p[:2] for name, p in zip(names, points, strict=False) if p[2] > _LIKELY}
    for first, second, line_color in getattr(metadata, "keypoint_connection_rules", None) or ():
        if first in seen and second in seen:
            draw_line(picture, seen[first], seen[second], _rgb(line_color))
    for place in seen.values():
        draw_point(picture, place, color)


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
    shades = _colors([s.category for s in segmentation.segments], metadata)
    palette = np.zeros((len(shades) + 1, 3), np.uint8)
    names: dict[int, str] = {}
    for k, (segment, shade) in enumerate(zip(segmentation.segments, shades, strict=True), 1):
        if segment.is_thing:
            name, palette[k] = class_name(segment.category, metadata), shade
        else:
            name, palette[k] = _stuff(segment.category, metadata)
        # Detectron2's semantic labels of panoptic data have one class for all objects.
        if name == "things":
            labels[labels == k] = 0
        else:
            names[k] = name if font_has(name) else f"class {segment.category}"
    colors = palette[labels]
    mixed = cv2.addWeighted(photo, 0.5, colors, 0.5, 0)
    reach = 2 * line_width(photo, 1500) + 1
    steps = cv2.morphologyEx(labels, cv2.MORPH_GRADIENT, np.ones((reach, reach), np.uint8))
    cv2.copyTo(colors, (steps > 0).astype(np.uint8), mixed)
    picture = np.array(photo)
    cv2.copyTo(mixed, (labels > 0).astype(np.uint8), picture)
    written = Labels(picture)
    for k, name in names.items():
        for place in _centers(labels, k):
            written.centered(name, place, _rgb(palette[k]))
    return picture


def _centers(labels: np.ndarray, k: int) -> Iterator[tuple[int, int]]:
    """Yield x and y of the innermost pixel of a region's largest part, and of other large ones."""
    step = -(-max(labels.shape) // _FINE)
    region = np.pad(labels[::step, ::step] == k, 1).astype(np.uint8)
    _, parts, stats, _ = cv2.connectedComponentsWithStats(region)
    areas = stats[1:, cv2.CC_STAT_AREA]
    for part in np.flatnonzero(areas >= min(areas.max(initial=0), region.size / 10)) + 1:
        depth = cv2.distanceTransform((parts == part).astype(np.uint8), cv2.DIST_L2, 3)
        y, x = np.unravel_index(depth.argmax(), depth.shape)
        yield (x - 1) * step, (y - 1) * step


def _stuff(category: int, metadata: Any) -> tuple[str, Color]:
    """Return the name and the color of a class of regions."""
    names = getattr(metadata, "stuff_classes", None) or ()
    palette = getattr(metadata, "stuff_colors", None) or ()
    known = category < len(palette)
    return (
        names[category] if category < len(names) else f"class {category}",
        _rgb(palette[category]) if known else _hue(category),
    )


def _shapes(instances: Sequence[dict], scale: np.ndarray) -> list[list[list[np.ndarray]]]:
    """Return the shapes of each object's mask for `draw_mask`, in the size of the picture."""
    masks = [x.get("segmentation") for x in instances]
    rles = [mask for mask in masks if isinstance(mask, dict)]
    runs = iter(run_lengths([rle["counts"] for rle in rles]))
    shapes = []
    for mask in masks:
        if isinstance(mask, dict):
            parts = [_traced(next(runs), mask["size"][0])]
        else:
            polygons = [p for p in mask or () if len(p) >= 6]
            parts = [[np.asarray(p, dtype=float).reshape(-1, 2)] for p in polygons]
        shapes.append([[outline * scale for outline in part] for part in parts])
    return shapes


def _traced(runs: np.ndarray, height: int) -> list[np.ndarray]:
    """Return the outlines (N, 2) of a mask, in the columns that it covers only.

    Args:
        runs: Lengths of alternating runs of background and object, column by column.
        height: Height of the image.
    """
    runs = runs[: len(runs) // 2 * 2]  # up to the end of the object
    if not len(runs):
        return []
    first = runs[0] // height
    runs = np.append(runs, -runs.sum() % height)
    runs[0] -= first * height
    pixels = np.repeat((np.arange(len(runs)) % 2).astype(np.uint8), runs).reshape(-1, height)
    contours, _ = cv2.findContours(pixels, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    # The rows of `pixels` are columns of the image. Add halves for the centers of pixels.
    return [contour[:, 0, ::-1] + (first + 0.5, 0.5) for contour in contours]


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


def class_color(category: int, metadata: Any) -> Color:
    """Return the RGB color of a class (0 to 255), from the dataset or far from its neighbors'."""
    palette = getattr(metadata, "thing_colors", None) or ()
    if 0 <= category < len(palette):
        return _rgb(palette[category])
    return _hue(category)


def _hue(k: int) -> Color:
    """Return the k-th hue; steps of the golden ratio keep any number of hues distinct."""
    return _from_hls((k * 0.618034) % 1, 0.55, 0.9)


def _colors(categories: Sequence[int], metadata: Any) -> list[Color]:
    """Return a color for each object: shades of its class's color, or any hue with one class."""
    palette = getattr(metadata, "thing_colors", None) or ()
    colors = []
    for k, c in enumerate(categories):
        if len(palette) > 1 and c < len(palette):
            hue, light, saturation = colorsys.rgb_to_hls(*(v / 255 for v in palette[c]))
            light = min(max(light + (0, 0.15, -0.15)[k % 3], 0.2), 0.8)
            colors.append(_from_hls(hue, light, saturation))
        else:
            colors.append(_hue(k))
    return colors


def _from_hls(hue: float, light: float, saturation: float) -> Color:
    return _rgb(255 * v for v in colorsys.hls_to_rgb(hue, light, saturation))


def _rgb(values: Iterable[float]) -> Color:
    """Return a color as OpenCV takes it, which refuses integers of numpy."""
    red, green, blue = (round(float(v)) for v in values)
    return red, green, blue
