"""Annotations of the VGG Image Annotator (https://www.robots.ox.ac.uk/~vgg/software/via/).

Read are the JSON and CSV exports of VIA 1 and 2, and the projects that VIA 2 saves.
"""

import logging
from collections.abc import Sequence
from pathlib import Path

from d2ext.data.formats.file_head import FileHead
from d2ext.data.formats.format import Format, ReadOption, convert_advice
from d2ext.data.formats.geometry import (
    LeftOut,
    add_polygon,
    arc,
    numbers,
    rectangle,
    shifted,
)
from d2ext.data.formats.image_folder import ImageFolder, sized_record
from d2ext.data.formats.json_io import by_name, inside, natural, truncate_repr
from d2ext.data.formats.via_classes import class_of, find_attribute
from d2ext.data.formats.via_file import Entry, Region, read_entries
from d2ext.errors import UserError

logger = logging.getLogger(__name__)

_SHAPES = ("polygon", "polyline", "rect", "circle", "ellipse")


def read_via(
    json_file: str | Path,
    image_root: str | Path,
    classes: Sequence[str] | None = None,
    attribute: str | None = None,
    info: dict | None = None,
) -> list[dict]:
    """Read VIA annotations into Detectron2's dataset dicts.

    Polygons, polylines (closed), rectangles, circles and ellipses are read. Left out, and counted
    in a warning, are points, shapes without area, those outside of the image, regions without a
    class, and those of a class that is not in `classes`. VIA's coordinates number pixels, so that
    an integer is a pixel's centre; Detectron2's count from the image's corner: 0.5 is added to
    all, and box and polygon agree. What lies outside of the image is cut off.

    An image that comes up twice in the file, as in a file put together of two, has the regions of
    both, equal ones once.

    Args:
        json_file: VIA's export (JSON or CSV) or project.
        image_root: the folder that the file names are relative to; `ImageFolder.look_up` finds
            the images.
        classes: class names; `category_id` is an index into them. None takes those of the file,
            sorted (`via_classes`).
        attribute: the region attribute that holds the class; None finds it, and where there is
            none, all regions are of the one class of `classes`.
        info: receives `left_out`, the number of regions that are not in the records by reason.

    Returns:
        One dict an image, in the order of the file; `image_id` counts from 1. Width and height
        are those of the image as Detectron2 reads it: turned as its EXIF orientation says.

    Raises:
        UserError: the file is absent or no VIA annotation, an image is absent, broken or outside
            of the folder, or it cannot be told which attribute holds the class.
    """
    entries = read_entries(json_file)
    regions = _with_inside(entries)
    attribute = find_attribute(regions, classes, attribute, json_file)
    found = None if attribute is None else _names(regions, attribute)
    if classes is None:
        classes = found
    indices = None if found is None else by_name(found, classes, json_file)

    images = ImageFolder(image_root)
    records, absent, left_out, repeated = {}, [], LeftOut(), []
    objects: list[tuple[dict, int, Region]] = []
    for entry in entries:
        path = images.look_up(entry.file_name, entry.where)
        if path is None:
            absent.append(inside(image_root, entry.file_name, entry.where))
            continue
        if path not in records:
            records[path] = sized_record(path, len(records) + 1, None, entry.where)
        else:
            repeated.append(records[path])
        for region in entry.regions:
            category = _category(region, attribute, indices, left_out)
            if category is not None:
                objects.append((records[path], category, region))
    if absent:
        raise UserError(
            f"{json_file}: {len(absent)} of {len(entries)} listed images are absent, the first is"
            f" {absent[0]}; put them there, or check image_root"
        )
    outlines = [_outline(region) for _, _, region in objects]
    moved = shifted(outlines, 0.5, lambda i: objects[i][2].where)
    for (record, category, _), (polygon, box, area) in zip(objects, moved, strict=True):
        add_polygon(record, category, polygon, box, area, left_out)
    for record in repeated:
        distinct = {(a["category_id"], *a["segmentation"][0]): a for a in record["annotations"]}
        record["annotations"] = list(distinct.values())
    if repeated:
        logger.warning(
            "%s: %d entries repeat an image; their regions are put together",
            json_file,
            len(repeated),
        )
    left_out.warn(logger, json_file)
    if info is not None:
        info["left_out"] = dict(left_out)
    return list(records.values())


def via_classes(
    file: str | Path, attribute: str | None = None
) -> tuple[tuple[str, ...], str | None]:
    """Return the classes of a VIA file, and the region attribute that holds them.

    Args:
        file: VIA's export or project.
        attribute: the attribute; None finds it.

    Returns:
        The names, sorted (numbers by their value), and the attribute.

    Raises:
        UserError: as `read_via` does.
    """
    regions = _with_inside(read_entries(file))
    attribute = find_attribute(regions, None, attribute, file)
    return _names(regions, attribute), attribute


def _with_inside(entries: Sequence[Entry]) -> list[Region]:
    return [r for entry in entries for r in entry.regions if r.shape["name"] in _SHAPES]


def _names(regions: Sequence[Region], attribute: str) -> tuple[str, ...]:
    names = {class_of(region, attribute) for region in regions} - {None}
    return tuple(sorted(names, key=natural))


def _category(
    region: Region,
    attribute: str | None,
    indices: dict[str, int | None] | None,
    left_out: LeftOut,
) -> int | None:
    """Return the class of a region; None, and counted, for one to leave out."""
    name = region.shape["name"]
    if name not in _SHAPES:
        left_out[name if isinstance(name, str) else truncate_repr(name)] += 1
        return None
    if indices is None:
        return 0
    value = class_of(region, attribute)
    category = indices.get(value)
    if category is None:
        left_out[f"of the class {truncate_repr(value)}" if value else "without a class"] += 1
    return category


def _outline(region: Region) -> tuple[list[float], list[float]]:
    """Return the xs and ys of its corners, in VIA's coordinates; those of polygons are not checked.

    Raises:
        UserError: the shape lacks what belongs to it.
    """
    shape = region.shape
    try:
        match shape["name"]:
            case "polygon" | "polyline":
                xs, ys = shape["all_points_x"], shape["all_points_y"]
                if not isinstance(xs, list) or not isinstance(ys, list) or len(xs) != len(ys):
                    raise ValueError("all_points_x and all_points_y are no lists of one length")
                if len(xs) > 1 and xs[0] == xs[-1] and ys[0] == ys[-1]:
                    return xs[:-1], ys[:-1]  # VIA 1 repeats the first corner
                return xs, ys
            case "rect":
                x, y, width, height = numbers([shape[k] for k in ("x", "y", "width", "height")])
                points = rectangle(x, y, x + width, y + height)
            case "circle":
                cx, cy, r = numbers([shape[k] for k in ("cx", "cy", "r")])
                points = arc(cx, cy, r, r)
            case _:
                cx, cy, rx, ry = numbers([shape[k] for k in ("cx", "cy", "rx", "ry")])
                (angle,) = numbers([shape.get("theta", 0)])  # radians; VIA 1 has none
                points = arc(cx, cy, rx, ry, angle)
        return points[::2], points[1::2]
    except (KeyError, TypeError, ValueError, RecursionError) as e:
        raise UserError(f"{region.where} is malformed ({e!r}); correct it in VIA") from e


def _read(
    source: str | Path,
    image_root: str | Path,
    classes: Sequence[str] | None = None,
    attribute: str | None = None,
) -> tuple[list[dict], tuple[str, ...]]:
    if classes is None:
        classes, attribute = via_classes(source, attribute)
    return read_via(source, image_root, classes, attribute), tuple(classes)


def _detect(head: FileHead) -> bool:
    if not isinstance(head.value, dict):
        return "region_shape_attributes" in head.columns
    if "_via_img_metadata" in head.value:
        return True
    entries = head.value.values()
    return bool(entries) and all(
        isinstance(entry, dict) and {"filename", "regions"} <= entry.keys() for entry in entries
    )


FORMAT = Format(
    name="via",
    title="VIA 1 or 2 (JSON, project or CSV)",
    advice=convert_advice("a VIA annotation file", "via"),
    detect=_detect,
    read=_read,
    source="VGG Image Annotator 1 and 2: JSON, CSV or project",
    options={
        "attribute": ReadOption(
            "--class-attribute",
            "the region attribute that holds the class (default: found in the input)",
        )
    },
    in_training=True,
    dataset="d2ext.data.datasets.declare.via_dataset",
)
