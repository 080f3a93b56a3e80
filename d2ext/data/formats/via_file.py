"""Files of the VGG Image Annotator (https://www.robots.ox.ac.uk/~vgg/software/via/).

JSON and CSV exports of VIA 1 and 2, and the projects that VIA 2 saves, become one list of images.
"""

import csv
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from d2ext.data.formats.json_io import csv_rows, parse_json, read_bytes, truncate_repr
from d2ext.data.formats.other_formats import advice
from d2ext.errors import UserError


class Region(NamedTuple):
    """A region as the file has it.

    Attributes:
        image: the place of the image in the file, for messages.
        key: the region's in the image.
        shape: `shape_attributes`.
        attributes: `region_attributes`.
    """

    image: str
    key: object
    shape: dict[str, Any]
    attributes: dict[str, Any]

    @property
    def where(self) -> str:
        """The place in the file, for messages."""
        return f"{self.image}, region {self.key}"


@dataclass
class Entry:
    """An image as the file has it; `where` is its place in the file, for messages."""

    file_name: object
    where: str
    regions: list[Region] = field(default_factory=list)


def read_entries(file: str | Path) -> list[Entry]:
    """Return the images of a VIA file in its order; an image may come up more than once.

    Raises:
        UserError: the file is absent or holds no VIA annotations.
    """
    content = read_bytes(file)
    text = content.lstrip(b"\xef\xbb\xbf \t\r\n")
    if text[:1] in b"{[" or Path(file).suffix.lower() == ".json":
        images = list(_images(parse_json(content, file), file))
        if content.count(b'"filename"') != len(images):
            # A file put together of two may have a key twice, and a dict keeps one of them.
            images = list(_images(parse_json(content, file, _every_image), file))
        return [_entry(value, file) for value in images]
    return _csv_entries(file)


def _images(content: object, file: str | Path) -> Iterable[object]:
    if isinstance(content, dict):
        content = content.get("_via_img_metadata", content)
        if isinstance(content, dict) and all(map(_is_entry, content.values())):
            return content.values()
    raise _no_via(file)


def _every_image(pairs: list[tuple[str, object]]) -> dict:
    """Return a JSON object, where an image whose key there is already gets another one."""
    made: dict = {}
    for key, value in pairs:
        made[(key, len(made)) if key in made and _is_entry(value) else key] = value
    return made


def _no_via(file: str | Path) -> UserError:
    if known := advice(file, "via"):
        return UserError(f"{file} holds no VIA annotations: it is {known}")
    return UserError(
        f"{file} holds no VIA annotations (version 1 or 2: an object with 'filename' and"
        " 'regions' for each image, or the CSV of these); export them from VIA with 'Export"
        " Annotations (as json)'"
    )


def _is_entry(value: object) -> bool:
    """Return whether it describes an image; without regions it needs another of VIA's keys."""
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
    """VIA's CSV: a row a region, and a row with the count 0 for an image without any."""
    try:
        rows = csv_rows(file)
        if not set(_COLUMNS) <= set(rows.fieldnames):
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
