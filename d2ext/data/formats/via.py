"""Annotations of the VGG Image Annotator (https://www.robots.ox.ac.uk/~vgg/software/via/).

The supported files are the JSON and CSV exports of VIA 1 and 2 and the projects saved by VIA 2.
This module first parses the file, then finds the attribute that holds the class, then converts the
annotations.
"""

import csv
import logging
import os
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from d2ext.data.formats.annotation_kinds import is_object
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
from d2ext.data.formats.json_io import (
    by_name,
    csv_rows,
    inside,
    is_text,
    natural,
    nearest,
    parse_json,
    read_bytes,
    truncate_repr,
)
from d2ext.data.formats.other_formats import advice
from d2ext.data.formats.writing import have_scores, one_outline
from d2ext.errors import UserError
from d2ext.files import write_json

logger = logging.getLogger(__name__)

_SHAPES = ("polygon", "polyline", "rect", "circle", "ellipse")


class Region(NamedTuple):
    """A region as in the file.

    Attributes:
        image: Location of the image in the file, for messages.
        key: Key or index of the region in the image.
        shape: `shape_attributes`.
        attributes: `region_attributes`.
    """

    image: str
    key: object
    shape: dict[str, Any]
    attributes: dict[str, Any]

    @property
    def where(self) -> str:
        """Return the location in the file, for messages."""
        return f"{self.image}, region {self.key}"


@dataclass
class Entry:
    """An image as in the file; `where` is its location in the file, for messages."""

    file_name: object
    where: str
    regions: list[Region] = field(default_factory=list)


def read_entries(file: str | Path) -> list[Entry]:
    """Return the images of a VIA file in file order; an image may occur more than once.

    Raises:
        UserError: The file is missing or contains no VIA annotations.
    """
    content = read_bytes(file)
    text = content.lstrip(b"\xef\xbb\xbf \t\r\n")
    if text[:1] in b"{[" or Path(file).suffix.lower() == ".json":
        images = list(_images(parse_json(content, file), file))
        if content.count(b'"filename"') != len(images):
            # Merged files may repeat a key, of which a dict keeps only one.
            images = list(_images(parse_json(content, file, _every_image), file))
        return [_entry(value, file) for value in images]
    return _csv_entries(file)


def _images(content: object, file: str | Path) -> Iterable[dict]:
    if isinstance(content, dict):
        content = content.get("_via_img_metadata", content)
        if isinstance(content, dict) and all(map(_is_entry, content.values())):
            return content.values()
    raise _no_via(file)


def _every_image(pairs: list[tuple[str, object]]) -> dict:
    """Build a JSON object that keeps images with a repeated key under another key."""
    made: dict = {}
    for key, value in pairs:
        made[(key, len(made)) if key in made and _is_entry(value) else key] = value
    return made


def _no_via(file: str | Path) -> UserError:
    if known := advice(file, "via"):
        return UserError(f"{file} contains no VIA annotations: it is {known}")
    return UserError(
        f"{file} contains no VIA annotations (version 1 or 2: an object with 'filename' and"
        " 'regions' for each image, or the equivalent CSV); export them from VIA with 'Export"
        " Annotations (as json)'"
    )


def _is_entry(value: object) -> bool:
    """Return whether a value describes an image; without regions it needs another key of VIA."""
    if not isinstance(value, dict) or "filename" not in value:
        return False
    regions = value.get("regions")
    if regions is None:
        return "regions" in value or "file_attributes" in value or "size" in value
    return isinstance(regions, dict | list)


def _entry(value: dict, file: str | Path) -> Entry:
    name = value["filename"]
    entry = Entry(
        name,
        f"{file}: image"
        f" {name if isinstance(name, str) and len(name) < 300 else truncate_repr(name)}",
    )
    regions = value.get("regions") or ()
    # VIA 1 keeps regions in an object with the keys "0", "1", ..., VIA 2 in a list.
    for key, region in regions.items() if isinstance(regions, dict) else enumerate(regions):
        shape = region.get("shape_attributes") if isinstance(region, dict) else None
        attributes = (region.get("region_attributes") or {}) if shape else {}
        if not isinstance(shape, dict) or "name" not in shape or not isinstance(attributes, dict):
            raise UserError(
                f"{entry.where}, region {key} is malformed (a region has 'shape_attributes' with a"
                " 'name', and 'region_attributes'); correct it in VIA"
            )
        entry.regions.append(Region(entry.where, key, shape, attributes))
    return entry


_COLUMNS = ("filename", "region_count", "region_shape_attributes", "region_attributes")


def _csv_entries(file: str | Path) -> list[Entry]:
    """Read VIA's CSV: one row per region, and a row with count 0 for an image without regions."""
    try:
        rows = csv_rows(file)
        if not set(_COLUMNS) <= set(rows.fieldnames or ()):
            raise _no_via(file)
        entries: dict[tuple, Entry] = {}
        for row in rows:
            name, count, *cells = (row[column] for column in _COLUMNS)
            where = f"{file}: line {rows.line_num}"
            if None in cells:
                raise UserError(f"{where} has too few columns; export the annotations again")
            key = (name, row.get("file_size"))
            entry = entries.setdefault(key, Entry(name, where))
            shape, attributes = (parse_json((cell or "{}").encode(), where) for cell in cells)
            if not shape and count.strip() in ("0", ""):
                continue
            if not (isinstance(shape, dict) and "name" in shape and isinstance(attributes, dict)):
                raise UserError(
                    f"{where} is malformed (region_shape_attributes={truncate_repr(cells[0])},"
                    f" region_attributes={truncate_repr(cells[1])}); export the annotations again"
                )
            entry.regions.append(Region(where, row.get("region_id"), shape, attributes))
    except csv.Error as e:
        raise UserError(f"{file} is not a valid CSV ({e}); export the annotations again") from e
    return list(entries.values())


# Common names of the attribute that holds the class, most common first.
_USUAL = (
    "name label class class_name classname category category_name type object object_name species"
    " class_id classid label_id category_id"
).split()


def class_of(region: Region, attribute: str) -> str | None:
    """Return the class in an attribute of a region, or None if the attribute is empty.

    Surrounding blanks are stripped from text; numbers are kept as written. VIA stores checkboxes as
    an object, whose only true option is the class.

    Raises:
        UserError: Several options are true, or the value is a list or not valid text.
    """
    value = region.attributes.get(attribute)
    if isinstance(value, dict):
        value = [option for option, on in value.items() if on is True or on in ("true", 1)]
        value = value[0] if len(value) == 1 else value or None
    if isinstance(value, str) and is_text(value):
        return value.strip() or None
    if value is None:
        return None
    if isinstance(value, bool | int | float):
        return str(value)
    raise UserError(
        f"{region.where}: {attribute}={truncate_repr(value)} is not a single class; correct it in"
        " VIA, or give another attribute (--class-attribute)"
    )


def find_attribute(
    regions: Sequence[Region],
    classes: Sequence[str] | None,
    attribute: str | None,
    file: str | Path,
) -> str | None:
    """Return the attribute that holds the class of the regions.

    If `attribute` is given, it is used. Otherwise the candidates are all attributes with at most
    one value per region or, with `classes`, those of them that hold at least one of these names.
    Candidates that partition the regions identically count as one. Among several candidates, the
    only one with a common name, such as `name` or `class`, is chosen. If a region has several
    values of an attribute that has a more common name or is the only one, the error names it.

    Returns:
        Name of the attribute; None if there is none and `classes` has a single name, which then
        applies to all regions.

    Raises:
        UserError: The attribute or the class cannot be determined and has to be given.
    """
    columns, invalid = _columns(regions)
    if attribute is not None:
        if regions and all(r.attributes.get(attribute) in (None, "", {}) for r in regions):
            raise UserError(
                f"{file}: no region has the class attribute {attribute!r} (known:"
                f" {_listed([*columns, *invalid])}); set it in VIA, or give another"
                " (--class-attribute)"
            )
        return attribute
    usual_first = sorted((name for name in invalid if _usual([name]) or not columns), key=_rank)
    if not columns and usual_first:
        raise invalid[usual_first[0]]
    if not columns:
        if classes is not None and (len(classes) == 1 or not regions):
            return None
        raise UserError(
            f"{file}: no region has an attribute that could hold its class; give the single class"
            " of all regions (--classes NAME; data.classes=[NAME] in a custom/ recipe), or set an"
            " attribute in VIA"
        )
    groups = _groups(columns)
    if classes is not None:
        known = [g for g in groups if not {*columns[g[0]]}.isdisjoint(classes)]
        # Another attribute of a group may hold these names.
        known += [
            [a]
            for g in groups
            if g not in known
            for a in g[1:]
            if not {*columns[a]}.isdisjoint(classes)
        ]
        if not known:
            if usual_first:
                raise invalid[usual_first[0]]
            if len(classes) == 1 and not any(_usual(g) for g in groups):
                return None
            raise UserError(
                f"{file}: no region attribute holds any of the classes"
                f" {', '.join(map(truncate_repr, classes))} ({_examples(columns)});"
                f" {_hint(columns, classes)}"
            )
        groups = known
    if len(groups) > 1:
        groups = [g for g in groups if _usual(g)] or groups
    if classes is None and usual_first and _rank(usual_first[0]) < _rank(groups[0][0]):
        raise invalid[usual_first[0]]
    if len(groups) > 1:
        raise UserError(
            f"{file}: the class of a region could be in {_listed(g[0] for g in groups)}"
            f" ({_examples({g[0]: columns[g[0]] for g in groups})}); choose one with"
            " --class-attribute (in a config: attribute=..., in a custom/ recipe"
            " data.class_attribute)"
        )
    return groups[0][0]


def _columns(
    regions: Sequence[Region],
) -> tuple[dict[str, list[str | None]], dict[str, UserError]]:
    """Map each attribute that holds a class to its class in each region.

    Also map each attribute that holds several values at once, or a value that is not text, to the
    error for its first such region.
    """
    names = dict.fromkeys(name for region in regions for name in region.attributes)
    columns, invalid = {}, {}
    for name in names:
        try:
            column = [class_of(region, name) for region in regions]
        except UserError as e:
            invalid[name] = e
            continue
        if any(column):
            columns[name] = column
    return columns, invalid


def _groups(columns: dict[str, list[str | None]]) -> list[list[str]]:
    """Group attributes that partition the regions identically, common names first."""
    groups: dict[tuple, list[str]] = {}
    for name in sorted(columns, key=_rank):
        numbers: dict[str | None, int] = {}
        split = tuple(numbers.setdefault(value, len(numbers)) for value in columns[name])
        groups.setdefault(split, []).append(name)
    return list(groups.values())


def _rank(name: str) -> tuple:
    lower = name.strip().lower()
    return (_USUAL.index(lower) if lower in _USUAL else len(_USUAL), name)


def _usual(group: Sequence[str]) -> bool:
    return any(name.strip().lower() in _USUAL for name in group)


def _listed(names: Iterable[str]) -> str:
    return ", ".join(map(truncate_repr, names)) or "none"


def _examples(columns: dict[str, list[str | None]]) -> str:
    """Return each attribute with its most frequent values, for messages."""
    found = []
    for name, column in list(columns.items())[:5]:
        values = [truncate_repr(v) for v, _ in Counter(v for v in column if v).most_common(3)]
        found.append(f"{truncate_repr(name)}: {', '.join(values)}")
    return "; ".join(found)


def _hint(columns: dict[str, list[str | None]], classes: Sequence[str]) -> str:
    values = {v for column in columns.values() for v in column if v}
    for name in classes:
        if (hint := nearest(name, values)).startswith("did"):
            return hint
    return "correct the classes, or omit them"


def read_via(
    json_file: str | Path,
    image_root: str | Path,
    classes: Sequence[str] | None = None,
    attribute: str | None = None,
    info: dict | None = None,
) -> list[dict]:
    """Read VIA annotations into Detectron2's dataset dicts.

    Polygons, polylines (closed), rectangles, circles and ellipses are read. Points, shapes without
    area or outside of the image, and regions without a class or of a class that is not in `classes`
    are skipped and counted in a warning. In VIA an integer coordinate is the center of a pixel, in
    Detectron2 it is an edge, so 0.5 is added to all coordinates, of boxes and polygons alike.
    Shapes are clipped to the image.

    If an image occurs twice, as in merged files, its regions are merged and duplicates dropped.

    Args:
        json_file: VIA's export (JSON or CSV) or project.
        image_root: The folder that the file names are relative to; `ImageFolder.look_up` finds
            the images.
        classes: Class names; `category_id` is an index into them. None uses those of the file,
            sorted (`via_classes`).
        attribute: The region attribute that holds the class. None detects it; if there is none,
            all regions belong to the only class in `classes`.
        info: Receives `left_out`, the number of skipped regions by reason.

    Returns:
        One dict per image, in file order; `image_id` counts from 1. Width and height are those of
        the image as Detectron2 reads it, rotated according to its EXIF orientation.

    Raises:
        UserError: The file is missing or has no VIA annotations, an image is missing, damaged or
            outside of the folder, or the attribute that holds the class cannot be determined.
    """
    entries = read_entries(json_file)
    regions = _with_inside(entries)
    attribute = find_attribute(regions, classes, attribute, json_file)
    indices = None
    if attribute is not None:
        found = _names(regions, attribute)
        indices = by_name(found, found if classes is None else classes, json_file)

    images = ImageFolder(image_root)
    records: dict[str, dict] = {}
    absent, left_out, repeated = [], LeftOut(), []
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
            f"{json_file}: {len(absent)} of {len(entries)} listed images do not exist, the first is"
            f" {absent[0]}; add them, or check image_root"
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
            "%s: %d entries repeat an image; their regions are merged",
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
        attribute: Name of the attribute; None detects it.

    Returns:
        The names, sorted (numbers by value), and the attribute.

    Raises:
        UserError: As in `read_via`.
    """
    regions = _with_inside(read_entries(file))
    attribute = find_attribute(regions, None, attribute, file)
    assert attribute is not None  # it may be with classes only
    return _names(regions, attribute), attribute


def _with_inside(entries: Sequence[Entry]) -> list[Region]:
    return [r for entry in entries for r in entry.regions if r.shape["name"] in _SHAPES]


def _names(regions: Sequence[Region], attribute: str) -> tuple[str, ...]:
    names = {class_of(region, attribute) for region in regions}
    return tuple(sorted((name for name in names if name is not None), key=natural))


def _category(
    region: Region,
    attribute: str | None,
    indices: dict[str, int | None] | None,
    left_out: LeftOut,
) -> int | None:
    """Return the class index of a region, or count the region as skipped and return None."""
    name = region.shape["name"]
    if name not in _SHAPES:
        left_out[name if isinstance(name, str) else truncate_repr(name)] += 1
        return None
    if indices is None or attribute is None:
        return 0
    value = class_of(region, attribute)
    category = None if value is None else indices.get(value)
    if category is None:
        left_out[f"of the class {truncate_repr(value)}" if value else "without a class"] += 1
    return category


def _outline(region: Region) -> tuple[list[float], list[float]]:
    """Return the xs and ys of a region's corners in VIA's coordinates, unchecked for polygons.

    Raises:
        UserError: The shape lacks one of its values.
    """
    shape = region.shape
    try:
        match shape["name"]:
            case "polygon" | "polyline":
                xs, ys = shape["all_points_x"], shape["all_points_y"]
                if not isinstance(xs, list) or not isinstance(ys, list) or len(xs) != len(ys):
                    raise ValueError("all_points_x and all_points_y are not lists of equal length")
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


def write_via(
    records: Sequence[dict], classes: Sequence[str], made: Path, images: str | Path | None
) -> dict[str, int]:
    """Write a project of VIA 2, which opens the photos of `images` by itself.

    Objects without masks are rectangles. VIA has no groups, so zero-area lines join the parts and
    holes of a mask. The attribute `class` holds the class, `score` the score.

    Raises:
        UserError: An image is not in `images`.
    """
    counts = {"images": 0, "annotations": 0, "skipped_crowd": 0}
    entries = {}
    for record in records:
        name = record["file_name"]
        size = -1 if images is None else _bytes(os.path.join(images, name))
        regions = []
        for a in record["annotations"]:
            if not is_object(a):
                counts["skipped_crowd"] += 1
                continue
            attributes = {"class": classes[a["category_id"]]}
            if "score" in a:
                attributes["score"] = f"{a['score']:.4f}"
            regions.append({"shape_attributes": _region(a), "region_attributes": attributes})
        counts["images"] += 1
        counts["annotations"] += len(regions)
        entry = {"filename": name, "size": size, "regions": regions, "file_attributes": {}}
        entries[f"{name}{size}"] = entry  # VIA finds photos that the user adds by this key
    folder = "" if images is None else os.path.join(os.path.abspath(images), "")
    options = {"options": dict.fromkeys(classes, ""), "default_options": {}}
    region = {"class": {"type": "dropdown", "description": "", **options}}
    if have_scores(records):
        region["score"] = {"type": "text", "description": "", "default_value": ""}
    content = {
        "_via_settings": {"core": {"default_filepath": folder}, "project": {"name": "d2ext"}},
        "_via_img_metadata": entries,
        "_via_attributes": {"region": region, "file": {}},
        "_via_data_format_version": "2.0.10",
        "_via_image_id_list": list(entries),
    }
    write_json(made, content)
    return counts


def _bytes(path: str) -> int:
    try:
        return os.path.getsize(path)
    except FileNotFoundError as e:
        raise UserError(f"the image {path} does not exist; check --images") from e


def _region(annotation: dict) -> dict[str, Any]:
    """Return an annotation as VIA's `shape_attributes`, whose coordinates are indices of pixels."""
    if not (outline := one_outline(annotation)):
        x0, y0, x1, y1 = annotation["bbox"]
        return {"name": "rect", "x": x0 - 0.5, "y": y0 - 0.5, "width": x1 - x0, "height": y1 - y0}
    xs, ys = ([c - 0.5 for c in outline[axis::2]] for axis in (0, 1))
    return {"name": "polygon", "all_points_x": xs, "all_points_y": ys}


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
            "the region attribute that holds the class (default: detected)",
        )
    },
    in_training=True,
    dataset="d2ext.data.datasets.declare.via_dataset",
    write={"via": write_via},
)
