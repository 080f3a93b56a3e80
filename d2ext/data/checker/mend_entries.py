"""What `--fix` does with images and categories."""

import itertools
import os
import unicodedata
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from d2ext.data.checker import numbers, place
from d2ext.data.checker.entries import demojibake
from d2ext.data.checker.files import Photo
from d2ext.data.checker.finding import Finding, shown
from d2ext.data.checker.mend_sizes import frame
from d2ext.data.checker.mending import Mending, as_json
from d2ext.data.formats.objects import FAR
from d2ext.errors import UserError


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
    def by_loose_name(self) -> Mapping[str, list[str]]:
        """The names of all files in the folder, by how they look when one is not particular."""
        names = defaultdict(list)
        for folder, _, files in os.walk(self.root):
            for file in files:
                name = os.path.relpath(os.path.join(folder, file), self.root)
                names[_loose(name)].append(name)
        return names

    @cached_property
    def by_base(self) -> Mapping[str, list[str]]:
        """The same names, by their last parts."""
        names = defaultdict(list)
        for name in itertools.chain.from_iterable(self.by_loose_name.values()):
            names[os.path.basename(name)].append(name)
        return names

    def like(self, name: str) -> list[str]:
        """The files whose names differ in case, accents' form, encoding or slashes only."""
        variants = {_loose(v) for v in (name, demojibake(name)) if v}
        return [found for v in sorted(variants) for found in self.by_loose_name.get(v, ())]


def _loose(name: str) -> str:
    return os.path.normpath(unicodedata.normalize("NFC", name).replace("\\", "/")).casefold()


def _image_malformed(m: Mending, f: Finding) -> None:
    rows_of = place.by_image(m.columns)
    for row in f.rows:
        entry = m.get("images", row)
        if not isinstance(entry, dict):
            m.remove("images", row, "it is no object")
            continue
        name = entry.get("file_name")
        if type(name) is int:
            name = str(name)
        if not isinstance(name, str) or not name or not _is_unicode(name):
            m.remove("images", row, f"file_name {as_json(name)} is no name")
            continue
        values = {"file_name": name, "id": m.integer_id("images", entry.get("id"))}
        for side in ("width", "height"):
            value = numbers.integer(entry.get(side))
            values[side] = value if value and 0 < value < FAR else None
        if None in values.values():
            _needs_files(m, row, f"{name!r} has no size")
            photo = m.files.photo(name)
            if not photo:
                m.remove("images", row, "it has no size, and there is no image to read it from")
                continue
            # A side that is wrong, too, is seen when both are there.
            sides = (values["width"], values["height"])
            size = frame(m.columns, rows_of(values["id"]), photo, sides)
            values["width"], values["height"] = (a or b for a, b in zip(sides, size, strict=True))
        _say(m, "images", row, entry, values)


def _needs_files(m: Mending, row: int, what: str) -> None:
    """Objects must not go only because nobody looked."""
    if not m.files:
        where = shown(f"{m.where('images', row)}: {what}")
        raise UserError(f"{where}; to mend it, give --images and the folder of the images")


def _image_path(m: Mending, f: Finding) -> None:
    alike = {}
    for row in f.rows:
        if not (entry := m.get("images", row)):
            continue
        name = entry["file_name"]
        _needs_files(m, row, f"{name!r} leads out of the image folder")
        root = os.path.abspath(m.files.root)
        relative = os.path.relpath(os.path.normpath(os.path.join(root, name)), root)
        if m.files.photo(relative):
            m.set("images", row, f"file_name {name!r} -> {relative!r}", file_name=relative)
        else:
            alike[row] = m.files.by_base.get(os.path.basename(name.replace("\\", "/")), [])
    _rename(m, alike)


def _rename(m: Mending, alike: Mapping[int, list[str]]) -> None:
    """Names images by files that are alike, where one file and one name are; another is not theirs.

    Where there is more than one the error stays: objects would get into another photo.
    """
    names = [e.get("file_name") for e in m.content["images"] if isinstance(e, dict)]
    taken = {name for name in names if isinstance(name, str)}
    wanted = defaultdict(set)
    for row, files in alike.items():
        for file in files:
            wanted[file].add(m.get("images", row)["file_name"])
    for row, files in alike.items():
        name = m.get("images", row)["file_name"]
        if not files:
            m.remove("images", row, f"there is no file {name!r} in the image folder")
        elif len(files) == 1 and len(wanted[files[0]]) == 1 and files[0] not in taken:
            m.set("images", row, f"file_name {name!r} -> {files[0]!r}", file_name=files[0])


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
        sizes = {(e["width"], e["height"]) for e in (entry, kept) if e}
        if entry and kept and len(sizes) == 1:  # else their shapes are not of the same pixels, yet
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
    entries = {row: entry for row in f.rows if (entry := m.get("images", row))}
    _rename(m, {row: m.files.like(entry["file_name"]) for row, entry in entries.items()})


def _image_unreadable(m: Mending, f: Finding) -> None:
    for row in f.rows:
        if entry := m.get("images", row):
            m.remove("images", row, f"{entry['file_name']!r} cannot be read")


def _category_malformed(m: Mending, f: Finding) -> None:
    for row in f.rows:
        entry = m.get("categories", row)
        known = entry.get("id") if isinstance(entry, dict) else None
        if numbers.integer(known) is None and not isinstance(known, str):
            m.remove("categories", row, "it has no id")
            continue
        number, name = m.integer_id("categories", known), entry.get("name")
        if isinstance(name, int | float) and not isinstance(name, bool):
            name = str(name)
        if not isinstance(name, str) or not name:
            name = known if isinstance(known, str) and known else f"category_{number}"
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
    "category_malformed": _category_malformed,
    "category_duplicate_id": _category_duplicate_id,
    "category_duplicate_name": _category_duplicate_name,
    "category_mojibake": _category_mojibake,
}
