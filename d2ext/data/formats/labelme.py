"""LabelMe's JSON, one file per image (https://github.com/wkentaro/labelme).

d2ext has its own reader because supervision 0.31, the only library with one, converts every polygon
to a mask and traces its outline, which moves it by up to a pixel and adds corners; it also drops
subfolders, circles and masks. hotcoco does not read the format.
"""

import base64
import binascii
import io
import json
import logging
import os
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from d2ext.data.formats import coco
from d2ext.data.formats.annotation_kinds import is_object
from d2ext.data.formats.file_head import FileHead
from d2ext.data.formats.format import Format, convert_advice
from d2ext.data.formats.geometry import LeftOut, add_mask, add_polygons, arc, numbers, rectangle
from d2ext.data.formats.image_folder import ImageFolder, sized_record
from d2ext.data.formats.json_io import (
    annotation_files,
    by_name,
    is_text,
    natural,
    read_json,
    truncate_repr,
)
from d2ext.data.formats.other_formats import advice
from d2ext.data.formats.writing import label_files, mask_pixels, masks_of
from d2ext.errors import UserError
from d2ext.files import write_json

logger = logging.getLogger(__name__)

_SHAPES = ("polygon", "rectangle", "circle", "mask")


def read_labelme(
    source: str | Path, image_root: str | Path, classes: Sequence[str] | None = None
) -> tuple[list[dict], tuple[str, ...]]:
    """Read LabelMe's annotations into Detectron2's dataset dicts.

    Polygons, rectangles, circles and masks are read; points and lines are skipped and counted in a
    warning. Coordinates are used as they are, since LabelMe's start at the image's corner. Shapes
    with the same label and `group_id` form one object.

    Args:
        source: The folder of the JSON files, or a single file.
        image_root: The folder of the images. `ImageFolder.find_all` finds each image by
            `imagePath`, relative to the JSON's subfolder, or else by the name of the JSON.
        classes: Class names; `category_id` is an index into them. None uses the labels, sorted.

    Returns:
        One dict per image, ordered by the names of the JSON files, and the class names.

    Raises:
        UserError: A file is missing or malformed, or an image is missing or differs in size from
            its JSON.
    """
    source = Path(source)
    read, found = [], set()
    for file, folder in annotation_files(source, ".json"):
        if (content := _load(file)) is None:
            continue
        found |= {s["label"].strip() for s in content["shapes"] if _shape_type(s) in _SHAPES}
        read.append((file, folder, content))
    names = tuple(sorted(found, key=natural))
    wanted = tuple(classes or names)
    index = by_name(names, wanted, source)
    records: list[dict] = []
    left_out = LeftOut()
    paths = ImageFolder(image_root).find_all([(c["imagePath"], f, folder) for f, folder, c in read])
    for path, (file, _, content) in zip(paths, read, strict=True):
        record = sized_record(path, len(records) + 1, _size(content, file), file)
        _add_objects(record, content["shapes"], index, left_out, file)
        records.append(record)
    left_out.warn(logger, source)
    return records, wanted


def _load(file: Path) -> dict | None:
    """Return the content of a file; None for COCO, which may be a conversion of the others."""
    content = read_json(file)
    if coco.FORMAT.detect(FileHead(value=content)):
        return None
    if (
        not isinstance(content, dict)
        or not isinstance(content.get("shapes"), list)
        or not isinstance(content.get("imagePath"), str)
    ):
        known = advice(file, "labelme")
        reason = f"it is {known}" if known else "it lacks 'shapes' or 'imagePath'"
        raise UserError(f"{file} is not a LabelMe annotation: {reason}")
    for i, shape in enumerate(content["shapes"]):
        label = shape.get("label") if isinstance(shape, dict) else None
        if not isinstance(label, str) or not label.strip() or not is_text(label):
            raise UserError(f"{file}: shapes[{i}] has no label; set it in LabelMe")
    return content


def _shape_type(shape: dict) -> object:
    return shape.get("shape_type") or "polygon"  # early versions do not write the type of polygons


def _size(content: dict, file: Path) -> tuple[float, float] | None:
    size = (content.get("imageWidth"), content.get("imageHeight"))
    if None in size:
        return None
    try:
        width, height = numbers(size)
    except (TypeError, ValueError) as e:
        raise UserError(f"{file}: imageWidth or imageHeight: {e}; correct it") from e
    return (width, height)


def _add_objects(
    record: dict,
    shapes: Sequence[dict],
    index: dict[str, int | None],
    left_out: LeftOut,
    file: Path,
) -> None:
    """Add the objects of an image, ordered by the first shape of each."""
    objects: dict[object, tuple[int, list[list[float]]]] = {}
    for i, shape in enumerate(shapes):
        kind, label = _shape_type(shape), shape["label"].strip()
        if kind not in _SHAPES:
            left_out[kind if isinstance(kind, str) else truncate_repr(kind)] += 1
            continue
        if (category := index[label]) is None:
            left_out[f"of the class {truncate_repr(label)}"] += 1
            continue
        group = shape.get("group_id")
        try:
            if kind == "mask":
                _add_mask(record, category, shape, left_out)
                continue
            polygon = _polygon(kind, shape["points"])
            key = i if group is None else (label, int(group))
        except (KeyError, TypeError, ValueError, OverflowError, OSError) as e:
            raise UserError(f"{file}: shapes[{i}] is malformed ({e}); correct it") from e
        objects.setdefault(key, (category, []))[1].append(polygon)
    for category, polygons in objects.values():
        add_polygons(record, category, polygons, left_out)


def _polygon(kind: object, points: list) -> list[float]:
    """Return a shape's outline [x0, y0, x1, y1, ...] in pixels."""
    if not isinstance(points, list):
        raise TypeError("`points` is not a list")
    points = [numbers(point) for point in points]
    if any(len(point) != 2 for point in points):
        raise ValueError("a point does not have two coordinates")
    if kind == "polygon":
        if not points:
            raise ValueError("it has no points")
        return [c for point in points for c in point]
    if len(points) < 2:
        raise ValueError(f"a {kind} needs two points")
    (x0, y0), (x1, y1) = points[0], points[1]
    if kind == "rectangle":  # two opposite corners or all four
        xs, ys = [p[0] for p in points], [p[1] for p in points]
        return rectangle(min(xs), min(ys), max(xs), max(ys))
    radius = ((x1 - x0) ** 2 + (y1 - y0) ** 2) ** 0.5  # a circle: its center and a point on it
    return arc(x0, y0, radius, radius)


def _add_mask(record: dict, category: int, shape: dict, left_out: LeftOut) -> None:
    """Add a LabelMe mask: a PNG that fills the box from the first to the last point's pixel."""
    import numpy as np

    (x0, y0), (x1, y1) = (map(round, numbers(point)) for point in shape["points"])
    try:
        png = io.BytesIO(base64.b64decode(shape["mask"], validate=True))
    except binascii.Error as e:
        raise ValueError(f"`mask` is not valid base64: {e}") from e
    with Image.open(png) as image:
        if image.size != (x1 - x0 + 1, y1 - y0 + 1):
            raise ValueError(
                f"`mask` has {image.size} pixels, but its box has {(x1 - x0 + 1, y1 - y0 + 1)}"
            )
        part = np.asarray(image.convert("1"))
    add_mask(record, category, part, (x0, y0), left_out)


def write_labelme(
    records: Sequence[dict], classes: Sequence[str], made: Path, images: str | Path | None
) -> dict[str, int]:
    """Write one JSON per image in folders like the images'; objects without masks are rectangles.

    Without `images`, each file names its image as if it were in the same folder. Scores become
    descriptions.
    """
    counts = {"images": 0, "annotations": 0, "skipped_crowd": 0}
    # Afterwards, `made` is moved out of its temporary folder. Relative paths start at the real
    # folder, because ".." does not lead back through a symbolic link.
    moved = made.parent.resolve().parent / made.name
    root = None if images is None else os.path.realpath(images)
    for record, file in label_files(records, made, ".json"):
        shapes = []
        for number, a in enumerate(record["annotations"]):
            if not is_object(a):
                counts["skipped_crowd"] += 1
                continue
            counts["annotations"] += 1
            for shape in _shapes_of(a, number):
                if "score" in a:  # as LabelMe's own detection writes it
                    shape["description"] = json.dumps({"score": a["score"]})
                shapes.append({"label": classes[a["category_id"]], **shape, "flags": {}})
        counts["images"] += 1
        name = record["file_name"]
        folder = moved / file.parent.relative_to(made)
        content = {
            "version": "5.5.0",
            "flags": {},
            "shapes": shapes,
            "imagePath": os.path.basename(name)
            if root is None
            else os.path.relpath(os.path.join(root, name), folder),
            "imageData": None,
            "imageHeight": record["height"],
            "imageWidth": record["width"],
        }
        write_json(file, content)
    return counts


def _shapes_of(annotation: dict, number: int) -> list[dict]:
    """Return an annotation as LabelMe shapes without labels."""
    masks = masks_of(annotation)
    if isinstance(masks, dict):
        return [_mask_shape(masks)]
    if not masks:
        x0, y0, x1, y1 = map(float, annotation["bbox"])
        return [{"points": [[x0, y0], [x1, y1]], "group_id": None, "shape_type": "rectangle"}]
    group = number if len(masks) > 1 else None
    return [
        {
            "points": [[x, y] for x, y in zip(p[::2], p[1::2], strict=True)],
            "group_id": group,
            "shape_type": "polygon",
        }
        for p in masks
    ]


def _mask_shape(rle: dict) -> dict:
    """Return a LabelMe mask: a PNG that fills the box from the first to the last point's pixel."""
    (x, y, width, height), part = mask_pixels(rle)
    png = io.BytesIO()
    Image.fromarray(part * 255).convert("1").save(png, "PNG")
    return {
        "points": [[float(x), float(y)], [float(x + width - 1), float(y + height - 1)]],
        "group_id": None,
        "shape_type": "mask",
        "mask": base64.b64encode(png.getvalue()).decode("ascii"),
    }


def _detect(head: FileHead) -> bool:
    return isinstance(head.value, dict) and {"shapes", "imagePath"} <= head.value.keys()


FORMAT = Format(
    name="labelme",
    title="LabelMe",
    advice=convert_advice("a LabelMe annotation", "labelme", "{folder}"),
    detect=_detect,
    read=read_labelme,
    source="LabelMe: the folder of the JSON files",
    write={"labelme": write_labelme},
)
