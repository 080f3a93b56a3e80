"""What `--fix` does with images and categories."""

import os
import unicodedata
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from d2ext.data.checker import numbers
from d2ext.data.checker.entries import demojibake
from d2ext.data.checker.files import Photo
from d2ext.data.checker.finding import Finding
from d2ext.data.checker.mending import Mending, as_json
from d2ext.data.formats.objects import FAR


@dataclass(frozen=True)
class Files:
    """The image folder.

    Attributes:
        root: the folder.
        look: what its files are, by name; names outside of it are left out.
    """

    root: Path
    look: Callable[[list[str]], Mapping[str, Photo]]

    def photo(self, name: Any) -> Photo | None:
        """The readable image of that name, else None."""
        found = self.look([name]).get(name) if isinstance(name, str) and name else None
        return found if found and found.size else None

    @cached_property
    def by_loose_name(self) -> dict[str, str]:
        """The names of all files in the folder, by how they look when one is not particular."""
        names = {}
        for folder, _, files in os.walk(self.root):
            for file in sorted(files):
                name = os.path.relpath(os.path.join(folder, file), self.root)
                names.setdefault(_loose(name), name)
        return names

    def like(self, name: str) -> str | None:
        """A file whose name differs in case, accents' form, encoding or slashes only."""
        for variant in (name, demojibake(name)):
            if variant and (found := self.by_loose_name.get(_loose(variant))):
                return found
        return None


def _loose(name: str) -> str:
    return os.path.normpath(unicodedata.normalize("NFC", name).replace("\\", "/")).casefold()


def _image_malformed(m: Mending, f: Finding) -> None:
    for row in f.rows:
        entry = m.get("images", row)
        if not isinstance(entry, dict):
            m.remove("images", row, "it is no object")
            continue
        name = entry.get("file_name")
        if not isinstance(name, str) or not name or not _is_unicode(name):
            m.remove("images", row, f"file_name {as_json(name)} is no name")
            continue
        values = {"id": numbers.integer(entry.get("id"))}
        if values["id"] is None:
            values["id"] = m.fresh_id("images")
        for side in ("width", "height"):
            value = numbers.integer(entry.get(side))
            values[side] = value if value and 0 < value < FAR else None
        if None in values.values():
            photo = m.files.photo(name) if m.files else None
            if not photo:
                m.remove("images", row, "it has no size, and there is no image to read it from")
                continue
            values["width"], values["height"] = photo.size
        _say(m, "images", row, entry, values)


def _image_path(m: Mending, f: Finding) -> None:
    for row in f.rows:
        if not (entry := m.get("images", row)):
            continue
        name, better = entry["file_name"], None
        if m.files:
            root = os.path.abspath(m.files.root)
            relative = os.path.relpath(os.path.normpath(os.path.join(root, name)), root)
            base = os.path.basename(name.replace("\\", "/"))
            better = next((n for n in (relative, base) if m.files.photo(n)), None)
        if better:
            m.set("images", row, f"file_name {name!r} -> {better!r}", file_name=better)
        else:
            m.remove("images", row, f"{name!r} is not in the image folder")


def _image_duplicate_id(m: Mending, f: Finding) -> None:
    for row in f.rows:
        if entry := m.get("images", row):
            new = m.fresh_id("images")
            m.set("images", row, f"id {entry['id']} -> {new}; it was taken", id=new)


def _image_duplicate_entry(m: Mending, f: Finding) -> None:
    c, first, new_id = m.columns, {}, {}
    for row in range(len(c.image_name)):
        if c.good["images"][row]:
            first.setdefault(c.image_name[row], row)
    for row in f.rows:
        entry, kept = m.get("images", row), m.get("images", first[c.image_name[row]])
        if entry and kept:
            # An id that was taken, too, has been changed by now, and has no annotations.
            if entry["id"] == c.image_id[row] and entry["id"] != kept["id"]:
                new_id[entry["id"]] = kept["id"]
            m.remove("images", row, f"its objects are those of the image {kept['id']} now")
    rows = [i for i, image in enumerate(c.image.tolist()) if image in new_id]
    for row in rows:
        entry = m.get("annotations", row)
        if entry and c.good["annotations"][row]:
            new = new_id[entry["image_id"]]
            m.set("annotations", row, f"image_id {entry['image_id']} -> {new}", image_id=new)


def _image_missing(m: Mending, f: Finding) -> None:
    for row in f.rows:
        if not (entry := m.get("images", row)):
            continue
        name = entry["file_name"]
        if better := m.files.like(name):
            m.set("images", row, f"file_name {name!r} -> {better!r}", file_name=better)
        else:
            m.remove("images", row, f"there is no file {name!r}")


def _image_unreadable(m: Mending, f: Finding) -> None:
    for row in f.rows:
        if entry := m.get("images", row):
            m.remove("images", row, f"{entry['file_name']!r} cannot be read")


def _image_size(m: Mending, f: Finding) -> None:
    for row in f.rows:
        entry = m.get("images", row)
        if entry and (photo := m.files.photo(entry["file_name"])):
            width, height = photo.size
            what = f"{entry['width']} x {entry['height']} -> {width} x {height}"
            m.set("images", row, what, width=width, height=height)


def _category_malformed(m: Mending, f: Finding) -> None:
    for row in f.rows:
        entry = m.get("categories", row)
        number = numbers.integer(entry.get("id")) if isinstance(entry, dict) else None
        if number is None:
            m.remove("categories", row, "it has no id")
            continue
        name = entry.get("name")
        if isinstance(name, int | float) and not isinstance(name, bool):
            name = str(name)
        name = name if isinstance(name, str) and name else f"category_{number}"
        name = name.encode("utf-8", "replace").decode()
        _say(m, "categories", row, entry, {"id": number, "name": name})


def _category_duplicate_id(m: Mending, f: Finding) -> None:
    c = m.columns
    for row in f.rows:
        if not (entry := m.get("categories", row)):
            continue
        first = next(i for i in range(row + 1) if c.category_id[i] == c.category_id[row])
        if c.category_name[first] == c.category_name[row]:
            m.remove("categories", row, f"it repeats the category {entry['id']}")
        else:
            new = m.fresh_id("categories")
            m.set("categories", row, f"id {entry['id']} -> {new}; it was taken", id=new)


def _category_duplicate_name(m: Mending, f: Finding) -> None:
    c, new_id = m.columns, {}
    for row in f.rows:
        entry = m.get("categories", row)
        if not entry or entry["id"] != c.category_id[row]:
            continue  # its id was taken as well: that comes first, this in the next round
        first = c.category_name.index(c.category_name[row])
        if kept := m.get("categories", first):
            new_id[entry["id"]] = kept["id"]
            m.remove("categories", row, f"its objects are of the category {kept['id']} now")
    for row, number in enumerate(c.category.tolist()):
        if number in new_id and c.good["annotations"][row] and m.get("annotations", row):
            what = f"category_id {number} -> {new_id[number]}"
            m.set("annotations", row, what, category_id=new_id[number])


def _category_mojibake(m: Mending, f: Finding) -> None:
    taken = set(m.columns.category_name)
    for row in f.rows:
        entry = m.get("categories", row)
        better = demojibake(entry["name"]) if entry else None
        if better and better not in taken:
            taken.add(better)
            m.set("categories", row, f"name {entry['name']!r} -> {better!r}", name=better)


def _is_unicode(name: str) -> bool:
    try:
        return bool(name.encode())
    except UnicodeEncodeError:
        return False


def _say(m: Mending, part: str, row: int, entry: dict, values: dict) -> None:
    changed = {k: v for k, v in values.items() if entry.get(k) is not v}
    what = ", ".join(f"{k} {as_json(entry.get(k))} -> {as_json(v)}" for k, v in changed.items())
    m.set(part, row, what, **changed)


REMEDIES = {
    "image_malformed": _image_malformed,
    "image_path": _image_path,
    "image_duplicate_id": _image_duplicate_id,
    "image_duplicate_entry": _image_duplicate_entry,
    "image_missing": _image_missing,
    "image_unreadable": _image_unreadable,
    "image_size": _image_size,
    "category_malformed": _category_malformed,
    "category_duplicate_id": _category_duplicate_id,
    "category_duplicate_name": _category_duplicate_name,
    "category_mojibake": _category_mojibake,
}
