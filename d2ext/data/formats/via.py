"""Annotations of the VGG Image Annotator (https://www.robots.ox.ac.uk/~vgg/software/via/).

Read are the JSON exports of VIA 1 and 2 and the projects that VIA 2 saves.
"""

import logging
import math
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from PIL import Image

from d2ext.data.formats.common import nearest, polygon_area, read_json
from d2ext.errors import UserError

logger = logging.getLogger(__name__)

_ARC_POINTS = 64  # a polygon of 64 corners holds 99.8 % of its circle
_EXIF_ORIENTATION = 0x0112


def read_via(
    json_file: str | Path,
    image_root: str | Path,
    classes: Sequence[str],
    attribute: str | None = None,
) -> list[dict]:
    """Reads VIA annotations into Detectron2's dataset dicts.

    Polygons, rectangles, circles and ellipses are read; other shapes and those without area are
    left out, and a warning counts them. VIA's coordinates number pixels, so that an integer is a
    pixel's centre; Detectron2's count from the image's corner: 0.5 is added to polygons and boxes.

    Args:
        json_file: VIA's export or project.
        image_root: the folder that the file names are relative to.
        classes: class names; `category_id` is an index into them.
        attribute: the region attribute that holds the class name. With one class it may be None:
            then every region is of that class.

    Returns:
        One dict an image, in the order of the file; `image_id` counts from 1. Width and height
        are those of the image as Detectron2 reads it: turned as its EXIF orientation says.

    Raises:
        UserError: the file is absent or no VIA annotation, an image is absent or broken, or a
            region's class is unknown.
    """
    records, absent, left_out = [], [], Counter()
    entries = _entries(read_json(json_file), json_file)
    for image_id, entry in enumerate(entries, start=1):
        path = os.path.join(image_root, entry["filename"])
        try:
            width, height = _image_size(path)
        except FileNotFoundError:
            absent.append(path)
            continue
        annotations = []
        for key, region in _regions(entry):
            where = f"{json_file}: image {entry['filename']}, region {key}"
            try:
                polygon = _polygon(region["shape_attributes"])
                if polygon is None:
                    left_out[region["shape_attributes"]["name"]] += 1
                    continue
                category = _category(region, classes, attribute, where)
            except (KeyError, TypeError, ValueError) as e:
                raise UserError(f"{where} is malformed ({e!r}); correct it in VIA") from e
            area = polygon_area(polygon)
            if not (area > 0 and math.isfinite(area)):
                left_out["without area"] += 1
                continue
            xs, ys = polygon[::2], polygon[1::2]
            annotations.append(
                {
                    "bbox": [min(xs), min(ys), max(xs), max(ys)],
                    "bbox_mode": 0,  # BoxMode.XYXY_ABS, which would need torch
                    "category_id": category,
                    "segmentation": [polygon],
                    "iscrowd": 0,
                }
            )
        records.append(
            {
                "file_name": path,
                "image_id": image_id,
                "height": height,
                "width": width,
                "annotations": annotations,
            }
        )
    if absent:
        raise UserError(
            f"{json_file}: {len(absent)} of {len(entries)} listed images are absent, the first is"
            f" {absent[0]}; put them there, or check image_root"
        )
    if left_out:
        counts = ", ".join(f"{n} {shape}" for shape, n in left_out.items())
        logger.warning("%s: %d regions left out: %s", json_file, left_out.total(), counts)
    return records


def _entries(content: object, json_file: str | Path) -> list[dict]:
    if isinstance(content, dict):
        content = content.get("_via_img_metadata", content)
    if isinstance(content, dict) and all(map(_is_entry, content.values())):
        return list(content.values())
    raise UserError(
        f"{json_file} holds no VIA annotations (version 1 or 2: an object with 'filename' and"
        " 'regions' for each image); export them from VIA with 'Export Annotations (as json)'"
    )


def _is_entry(value: object) -> bool:
    return (
        isinstance(value, dict)
        and isinstance(value.get("filename"), str)
        and isinstance(value.get("regions"), dict | list)
    )


def _regions(entry: dict) -> Iterator[tuple[object, dict]]:
    """VIA 1 keeps regions in an object with the keys "0", "1", ..., VIA 2 in a list."""
    regions = entry["regions"]
    return iter(regions.items() if isinstance(regions, dict) else enumerate(regions))


def _image_size(path: str) -> tuple[int, int]:
    """Width and height as Detectron2's `read_image` has them, from the header alone.

    Raises:
        FileNotFoundError: there is no such file.
        UserError: it cannot be read as an image.
    """
    try:
        with Image.open(path) as image:
            width, height = image.size
            try:
                # The base class's: PNG's own decodes the whole image in search of late EXIF data.
                turned = Image.Image.getexif(image).get(_EXIF_ORIENTATION) in (5, 6, 7, 8)
            except Exception:  # Detectron2, too, takes unreadable EXIF data for none
                turned = False
    except FileNotFoundError:
        raise
    except (OSError, Image.DecompressionBombError) as e:
        raise UserError(
            f"the image {path} cannot be read ({e}); replace it, or remove it from the annotations"
        ) from e
    return (height, width) if turned else (width, height)


def _polygon(shape: dict) -> list[float] | None:
    """[x0, y0, x1, y1, ...] in Detectron2's coordinates; None for a shape without an inside."""
    match shape["name"]:
        case "polygon":
            points = list(zip(shape["all_points_x"], shape["all_points_y"], strict=True))
            if len(points) > 1 and points[0] == points[-1]:
                points.pop()  # VIA 1 repeats the first corner
        case "rect":
            x0, y0 = shape["x"], shape["y"]
            x1, y1 = x0 + shape["width"], y0 + shape["height"]
            points = [(x0, y0), (x1, y0), (x1, y1), (x0, y1)]
        case "circle":
            points = _arc(shape["cx"], shape["cy"], shape["r"], shape["r"], 0)
        case "ellipse":
            angle = shape.get("theta", 0)  # radians; VIA 1 has none
            points = _arc(shape["cx"], shape["cy"], shape["rx"], shape["ry"], angle)
        case _:
            return None
    return [float(c) + 0.5 for point in points for c in point]


def _arc(cx: float, cy: float, rx: float, ry: float, angle: float) -> list[tuple[float, float]]:
    cos, sin = math.cos(angle), math.sin(angle)
    points = []
    for i in range(_ARC_POINTS):
        t = 2 * math.pi * i / _ARC_POINTS
        u, v = rx * math.cos(t), ry * math.sin(t)
        points.append((cx + u * cos - v * sin, cy + u * sin + v * cos))
    return points


def _category(region: dict, classes: Sequence[str], attribute: str | None, where: str) -> int:
    attributes = region.get("region_attributes") or {}
    if attribute is None:
        if len(classes) == 1:
            return 0
        raise UserError(
            f"{where}: with {len(classes)} classes `attribute` must name the region attribute that"
            f" holds the class (this region has: {', '.join(attributes) or 'none'})"
        )
    if attribute not in attributes:
        raise UserError(f"{where} lacks the attribute {attribute!r} that holds the class; set it")
    value = attributes[attribute]
    if value not in classes:
        raise UserError(
            f"{where}: {attribute}={value!r} is no known class; {nearest(value, classes)}"
        )
    return list(classes).index(value)
