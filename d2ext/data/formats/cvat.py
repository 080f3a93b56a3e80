"""CVAT's XML, "CVAT for images 1.1" (https://docs.cvat.ai/docs/other/xml_format).

d2ext has its own reader because hotcoco 1.3, the only library with one, reads nothing but boxes
and polygons, and ignores groups and the rotation of boxes.
"""

import logging
import math
from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path
from xml.etree import ElementTree

import numpy as np

from d2ext.data.formats.annotation_kinds import is_object
from d2ext.data.formats.file_head import FileHead
from d2ext.data.formats.format import Format, convert_advice
from d2ext.data.formats.geometry import (
    LeftOut,
    add_box,
    add_mask,
    add_polygons,
    arc,
    parsed,
    rectangle,
)
from d2ext.data.formats.image_folder import ImageFolder, sized_record
from d2ext.data.formats.json_io import (
    annotation_files,
    by_name,
    is_text,
    natural,
    polygon_area,
    read_xml,
    truncate_repr,
)
from d2ext.data.formats.other_formats import advice
from d2ext.data.formats.writing import have_scores, mask_pixels, masks_of
from d2ext.errors import UserError

logger = logging.getLogger(__name__)

_SHAPES = ("box", "polygon", "ellipse", "mask")
# The attribute of a label that holds the scores of predictions.
_SCORE = {"name": "score", "mutable": "False", "input_type": "text", "default_value": ""}
_OTHERS = ("polyline", "points", "cuboid", "skeleton", "tag")


def read_cvat(
    source: str | Path, image_root: str | Path, classes: Sequence[str] | None = None
) -> tuple[list[dict], tuple[str, ...]]:
    """Read a CVAT export for images into Detectron2's dataset dicts.

    Boxes, polygons, ellipses and masks are read; rotated boxes become polygons. Polylines, points,
    cuboids, skeletons and tags are skipped and counted in a warning. Polygons, ellipses, masks and
    rotated boxes with the same label and `group_id` form one object. Coordinates start at the
    image's corner, as in Detectron2.

    Args:
        source: The XML file, or a folder of several, such as those of a task's jobs. If an image
            occurs more than once, its objects are merged and duplicates dropped.
        image_root: The folder of the images. `ImageFolder.find` finds each image by `name`,
            first in the folder named like its `subset`.
        classes: Class names; `category_id` is an index into them. None uses the labels of the
            task or project, in its order.

    Returns:
        One dict per image, in file order, and the class names.

    Raises:
        UserError: A file is missing, malformed or a video export, or an image is missing or
            differs in size from its entry.
    """
    source = Path(source)
    images: list[tuple[str, str, ElementTree.Element]] = []
    labels: dict[str, None] = {}
    for file, folder in annotation_files(source, ".xml"):
        root = _root(file)
        labels |= dict.fromkeys(_labels(root))
        for i, element in enumerate(root.findall("image")):
            where = f"{file}: image {truncate_repr(element.get('name') or i)}"
            images.append((where, element.get("subset") or folder, element))
    found = {_label(s, where) for where, _, element in images for s in _shapes(element)}
    names = (*labels, *sorted(found - labels.keys(), key=natural))
    wanted = tuple(classes or names)
    index = by_name(names, wanted, source)
    photos, left_out, repeated = ImageFolder(image_root), LeftOut(), 0
    records: dict[str, dict] = {}
    for where, subset, element in images:
        path = photos.find(element.get("name"), where, subset)
        known = path in records
        if not known:
            records[path] = sized_record(path, len(records) + 1, _size(element, where), where)
        _add_objects(records[path], element, index, left_out, where)
        if known:
            repeated += 1
            records[path]["annotations"] = _distinct(records[path]["annotations"])
    if repeated:
        logger.warning("%s: %d entries repeat an image; their objects are merged", source, repeated)
    left_out.warn(logger, source)
    return list(records.values()), wanted


def _root(file: Path) -> ElementTree.Element:
    root = read_xml(file)
    if root.tag != "annotations" or root.find("track") is not None:
        known = advice(file, "cvat")
        reason = f"it is {known}" if known else f"its root is <{root.tag[:100]}>"
        raise UserError(f"{file} is not a CVAT export for images: {reason}")
    return root


def _labels(root: ElementTree.Element) -> Iterator[str]:
    """Yield the labels of the task or project, except the parts of skeletons."""
    for label in root.iterfind("meta//labels/label"):
        name = (label.findtext("name") or "").strip()
        if name and not label.findtext("parent"):
            yield name


def _shapes(image: ElementTree.Element) -> Iterator[ElementTree.Element]:
    return (element for element in image if element.tag in _SHAPES)


def _label(shape: ElementTree.Element, where: str) -> str:
    label = (shape.get("label") or "").strip()
    if not label or not is_text(label):
        raise UserError(f"{where}: a {shape.tag} has no label; set it in CVAT")
    return label


def _size(image: ElementTree.Element, where: str) -> tuple[float, float] | None:
    sides = [side for name in ("width", "height") if (side := image.get(name)) is not None]
    if len(sides) < 2:
        return None
    try:
        width, height = parsed(sides)
    except ValueError as e:
        raise UserError(f"{where}: width or height: {e}; export the annotations again") from e
    return (width, height)


def _distinct(annotations: list[dict]) -> list[dict]:
    keys = ("category_id", "bbox", "segmentation")
    return list({str([a.get(key) for key in keys]): a for a in annotations}.values())


def _add_objects(
    record: dict,
    image: ElementTree.Element,
    index: dict[str, int | None],
    left_out: LeftOut,
    where: str,
) -> None:
    """Add the objects of an image, ordered by the first shape of each."""
    outlined: dict[object, tuple[int, list[ElementTree.Element]]] = {}
    left_out.update(element.tag for element in image if element.tag in _OTHERS)
    for number, shape in enumerate(_shapes(image)):
        label = _label(shape, where)
        if (category := index[label]) is None:
            left_out[f"of the class {truncate_repr(label)}"] += 1
            continue
        group = shape.get("group_id", "0")
        key = number if group == "0" else (label, group)
        outlined.setdefault(key, (category, []))[1].append(shape)
    for category, shapes in outlined.values():
        try:
            boxes = [s for s in shapes if s.tag == "box" and not _angle(s)]
            for box in boxes:
                add_box(record, category, _values(box, *_CORNERS), left_out)
            polygons = [_polygon(s) for s in shapes if s.tag != "mask" and s not in boxes]
            masks = [_mask(s, record) for s in shapes if s.tag == "mask"]
            if masks:
                masks += [_drawn(p, record) for p in polygons if polygon_area(p)]
                add_mask(record, category, np.any(masks, axis=0), (0, 0), left_out)
            elif polygons:
                add_polygons(record, category, polygons, left_out)
        except ValueError as e:
            raise UserError(f"{where}: a {shapes[0].tag} is malformed ({e}); correct it") from e


_CORNERS = ("xtl", "ytl", "xbr", "ybr")


def _values(shape: ElementTree.Element, *names: str) -> list[float]:
    if missing := [name for name in names if shape.get(name) is None]:
        raise ValueError(f"it lacks {missing[0]}")
    return parsed([shape.get(name, "") for name in names])


def _angle(shape: ElementTree.Element) -> float:
    """Return the clockwise rotation of a box or ellipse in radians."""
    return math.radians(parsed([shape.get("rotation", "0")])[0])


def _polygon(shape: ElementTree.Element) -> list[float]:
    """Return a shape's outline [x0, y0, x1, y1, ...] in pixels."""
    if shape.tag == "box":
        x0, y0, x1, y1 = _values(shape, *_CORNERS)
        return rectangle(x0, y0, x1, y1, _angle(shape))
    if shape.tag == "ellipse":
        cx, cy, rx, ry = _values(shape, "cx", "cy", "rx", "ry")
        return arc(cx, cy, rx, ry, _angle(shape))
    points = [point.split(",") for point in (shape.get("points") or "").split(";")]
    if any(len(point) != 2 for point in points):
        raise ValueError("`points` are not of the form x,y;x,y")
    return parsed([c for point in points for c in point])


def _mask(shape: ElementTree.Element, record: dict) -> np.ndarray:
    """Decode a mask, whose runs of background and object go row by row, to a bool array (H, W)."""
    left, top, width, height = map(int, _values(shape, "left", "top", "width", "height"))
    fits = 0 <= left < left + width <= record["width"]
    if not fits or not 0 <= top < top + height <= record["height"]:
        raise ValueError("the mask extends beyond the image")
    runs = [int(run) for run in (shape.get("rle") or "").split(",")]
    if min(runs) < 0 or sum(runs) > width * height:
        raise ValueError(f"its rle does not fit {width} x {height} pixels")
    pixels = np.repeat(np.arange(len(runs)) % 2 == 1, runs)
    full = np.zeros((record["height"], record["width"]), bool)
    rest = width * height - len(pixels)
    full[top : top + height, left : left + width] = np.pad(pixels, (0, rest)).reshape(height, width)
    return full


def _drawn(polygon: list[float], record: dict) -> np.ndarray:
    """Rasterize a polygon to a bool array (H, W)."""
    from pycocotools import mask

    rles = mask.frPyObjects([polygon], record["height"], record["width"])
    return mask.decode(rles[0]).astype(bool)


def write_cvat(
    records: Sequence[dict], classes: Sequence[str], made: Path, images: str | Path | None
) -> dict[str, int]:
    """Write CVAT for images 1.1; the parts of an object form a group.

    Scores become the attribute `score`, which CVAT imports if the label of the task has it.
    """
    counts = {"images": 0, "annotations": 0, "skipped_crowd": 0}
    root = ElementTree.Element("annotations")
    ElementTree.SubElement(root, "version").text = "1.1"
    labels = ElementTree.SubElement(
        ElementTree.SubElement(ElementTree.SubElement(root, "meta"), "task"), "labels"
    )
    scored = have_scores(records)
    for name in classes:
        label = ElementTree.SubElement(labels, "label")
        ElementTree.SubElement(label, "name").text = name
        if scored:
            attribute = ElementTree.SubElement(
                ElementTree.SubElement(label, "attributes"), "attribute"
            )
            for key, value in _SCORE.items():
                ElementTree.SubElement(attribute, key).text = value
    for record in records:
        size = {"width": str(record["width"]), "height": str(record["height"])}
        attributes = {"id": str(counts["images"]), "name": record["file_name"], **size}
        image = ElementTree.SubElement(root, "image", attributes)
        counts["images"] += 1
        for number, a in enumerate(record["annotations"], start=1):
            if not is_object(a):
                counts["skipped_crowd"] += 1
                continue
            counts["annotations"] += 1
            shapes = _elements(a)
            group = {"group_id": str(number)} if len(shapes) > 1 else {}
            for tag, values in shapes:
                common = {"label": classes[a["category_id"]], "occluded": "0", **group}
                shape = ElementTree.SubElement(image, tag, common | values)
                if "score" in a:
                    score = ElementTree.SubElement(shape, "attribute", {"name": _SCORE["name"]})
                    score.text = f"{a['score']:.4f}"
    ElementTree.indent(root)
    ElementTree.ElementTree(root).write(made, "utf-8", xml_declaration=True)
    return counts


def _elements(annotation: dict) -> list[tuple[str, dict[str, str]]]:
    """Return an annotation as CVAT elements: the tag of each and its shape attributes."""
    masks = masks_of(annotation)
    if not masks:
        corners = map("{:.3f}".format, annotation["bbox"])
        return [("box", dict(zip(("xtl", "ytl", "xbr", "ybr"), corners, strict=True)))]
    if isinstance(masks, list):
        corners = (map("{:.3f},{:.3f}".format, p[::2], p[1::2]) for p in masks)
        return [("polygon", {"points": ";".join(points)}) for points in corners]
    (left, top, width, height), pixels = mask_pixels(masks)
    # Lengths of alternating runs of background and object, row by row.
    runs = [len(list(run)) for _, run in groupby(pixels.ravel().tolist())]
    if pixels[0, 0]:
        runs.insert(0, 0)
    box = {"left": left, "top": top, "width": width, "height": height}
    values = {"rle": ", ".join(map(str, runs))} | {name: str(side) for name, side in box.items()}
    return [("mask", values)]


def _detect(head: FileHead) -> bool:
    return head.root == "annotations" and not head.is_video


FORMAT = Format(
    name="cvat",
    title="CVAT",
    advice=convert_advice("a CVAT export (XML)", "cvat"),
    detect=_detect,
    read=read_cvat,
    source="CVAT for images 1.1: annotations.xml, or a folder of several",
    write={"cvat": write_cvat},
)
