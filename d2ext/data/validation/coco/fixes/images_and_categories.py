"""Fix images and categories."""

import itertools
import os
import re
import unicodedata
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from d2ext.data.formats.coco_objects import MAX_COORDINATE
from d2ext.data.formats.image_folder import tails
from d2ext.data.formats.images import SUFFIXES
from d2ext.data.formats.json_io import files_in
from d2ext.data.validation.coco import json_numbers, locations
from d2ext.data.validation.coco.checks.entries import demojibake
from d2ext.data.validation.coco.checks.image_files import Photo
from d2ext.data.validation.coco.finding import Finding, printable
from d2ext.data.validation.coco.fixes.changes import MutableCoco, as_json
from d2ext.data.validation.coco.fixes.image_sizes import Size, annotated_size
from d2ext.errors import UserError


@dataclass(frozen=True)
class Files:
    """The image folder.

    Attributes:
        root: Path of the folder.
        inspect: Function that returns the photos with the given names; names that lead out of the
            folder are skipped.
    """

    root: Path
    inspect: Callable[[list[str]], Mapping[str, Photo]]

    def photo(self, name: Any) -> Photo | None:
        """Return the photo with the given name, or None if it cannot be read."""
        found = self.inspect([name]).get(name) if isinstance(name, str) and name else None
        return found if found and found.size else None

    @cached_property
    def _by_key(self) -> Mapping[str, list[str]]:
        """Return the names of all files in the folder, by `_key`."""
        names = defaultdict(list)
        for name in files_in(self.root):
            names[_key(name)].append(name)
        return names

    def similar(self, name: str) -> list[str]:
        """Return the files in any folder that resemble a misspelled name."""
        keys = {_key(text) for text in self._readings(name)}
        return sorted(file for key in keys for file in self._by_key.get(key, ()))

    def like(self, name: str, size: Size | None = None) -> list[str]:
        """Return the files that a misspelled name may mean: those that differ least.

        They differ only in case, the form of accents, encoding, slashes or URL quoting. If there is
        no such file, they have the stated size and differ in one more respect: accents and spaces,
        the suffix, or the folder (as far as `_may_be_elsewhere` allows).

        Args:
            name: File name of the entry.
            size: Width and height of the entry, if it has both.
        """
        for text in self._readings(name):
            differ = {f: _differences(text, f) for f in self._by_key.get(_key(text), ())}
            if found := [f for f, parts in differ.items() if not parts]:
                return found
            close = [f for f, parts in differ.items() if len(parts) == 1 and self._fits(f, size)]
            found = self._most_like(text, close)
            if found and all(
                "folder" not in differ[f] or self._may_be_elsewhere(text, f) for f in found
            ):
                return found
        return []

    def _readings(self, name: str) -> list[str]:
        """Return a name as it is, unquoted and decoded, as paths relative to the folder."""
        root = os.path.abspath(self.root)
        texts = (name, unquote(name), unquote(name.split("?")[0]), demojibake(name) or name)
        paths = (os.path.join(root, text.replace("\\", "/")) for text in texts)
        return list(dict.fromkeys(os.path.relpath(path, root) for path in paths))

    def _may_be_elsewhere(self, name: str, file: str) -> bool:
        """Return whether a name may mean a file in another folder.

        One of the two may have more leading folders, as on another machine. If the folder in the
        name exists, no file in another folder is accepted.
        """
        folder = _pieces(file)[0]
        for tail in tails(name, self.root):
            stated = os.path.dirname(tail)
            if _pieces(tail)[0] == folder:
                return True
            if stated and os.path.isdir(self.root / stated):
                return False
        stated = _pieces(name)[0]
        return not stated or folder.endswith(f"/{stated}")

    def _fits(self, file: str, size: Size | None) -> bool:
        photo = self.photo(file)
        return photo is not None and (size is None or size in (photo.size, photo.stored))

    def _most_like(self, name: str, files: list[str]) -> list[str]:
        """Return the files that share the most trailing folders with a name."""
        wanted = _loose(name).split("/")[-2::-1]

        def common(file: str) -> int:
            pairs = zip(wanted, _loose(file).split("/")[-2::-1], strict=False)
            return sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs))

        most = max(map(common, files), default=0)
        return [file for file in files if common(file) == most]


def _loose(name: str) -> str:
    """Normalize a name's case, accents and slashes."""
    slashes = unicodedata.normalize("NFC", name).replace("\\", "/")
    return os.path.normpath(slashes).casefold().strip()


def _pieces(name: str) -> tuple[str, str, str]:
    """Normalize a name with `_loose`, and split it into folder, stem and image suffix."""
    folder, base = os.path.split(_loose(name))
    stem, suffix = os.path.splitext(base.strip())
    return (folder, stem, suffix) if suffix in SUFFIXES else (folder, stem + suffix, "")


def _key(name: str) -> str:
    """Return the stem of a name without accents, and with "_" for spaces, "_", "+" and "-"."""
    stem = unicodedata.normalize("NFKD", _pieces(name)[1])
    return re.sub(r"[\s_+-]+", "_", "".join(c for c in stem if not unicodedata.combining(c)))


def _differences(name: str, file: str) -> set[str]:
    """Return the parts (folder, stem, suffix) in which a name and a file differ."""
    parts = zip(("folder", "stem", "suffix"), _pieces(name), _pieces(file), strict=True)
    return {part for part, one, other in parts if one != other}


def _image_malformed(m: MutableCoco, f: Finding) -> None:
    rows_of = locations.by_image(m.columns)
    for row in f.rows:
        entry = m.get("images", row)
        if not isinstance(entry, dict):
            m.remove("images", row, "it is not an object")
            continue
        name = entry.get("file_name")
        if type(name) is int:
            name = str(name)
        if not isinstance(name, str) or not name or not _is_unicode(name):
            m.remove_if_allowed("images", row, f"file_name {as_json(name)} is not a name")
            continue
        values: dict[str, Any] = {"file_name": name, "id": m.integer_id("images", entry.get("id"))}
        for side in ("width", "height"):
            value = json_numbers.integer(entry.get(side))
            values[side] = value if value and 0 < value < MAX_COORDINATE else None
        if None in values.values():
            _require_files(m, row, f"{name!r} has no size")
            files = [name] if m.files.photo(name) else m.files.like(name)
            photo = m.files.photo(files[0]) if len(files) == 1 else None
            if not photo:
                m.remove_if_allowed("images", row, "it has no size, and its file was not found")
                continue
            # If the stated side is wrong as well, the next round finds it.
            sides = (values["width"], values["height"])
            size = annotated_size(m.columns, rows_of(values["id"]), photo, sides)
            if not size:
                continue  # the error stays
            values["width"], values["height"] = (a or b for a, b in zip(sides, size, strict=True))
        _set_changed(m, "images", row, entry, values)


def _require_files(m: MutableCoco, row: int, what: str) -> None:
    """Raise UserError without an image folder, rather than drop objects that may be valid."""
    if not m.files:
        where = printable(f"{m.where('images', row)}: {what}")
        raise UserError(f"{where}; to fix it, give --images and the folder of the images")


def _image_name(m: MutableCoco, f: Finding) -> None:
    """Rename images to the files that they mean, if the match is unique both ways.

    Otherwise the error stays, because objects could be assigned to the wrong photo.
    """
    entries = {row: entry for row in f.rows if (entry := m.get("images", row))}
    alike = {}
    for row, entry in entries.items():
        name = entry["file_name"]
        _require_files(m, row, f"{name!r} leads out of the image folder")
        alike[row] = m.files.like(name, (entry["width"], entry["height"]))
    names = [e.get("file_name") for e in m.content["images"] if isinstance(e, dict)]
    taken = {name for name in names if isinstance(name, str)}
    wanted = defaultdict(set)
    for row, files in alike.items():
        for file in files:
            wanted[file].add(entries[row]["file_name"])
    for row, files in alike.items():
        name = entries[row]["file_name"]
        if not files:
            m.remove_if_allowed("images", row, f"no file in the image folder resembles {name!r}")
        elif len(files) == 1 and len(wanted[files[0]]) == 1 and files[0] not in taken:
            m.set("images", row, f"file_name {name!r} -> {files[0]!r}", file_name=files[0])


def _image_duplicate_id(m: MutableCoco, f: Finding) -> None:
    """Assign new ids to images with a duplicate id.

    Only ids without annotations are replaced. Otherwise the error stays, because the image of the
    annotations is ambiguous.
    """
    c = m.columns
    annotated = set(c.image[c.good["annotations"]].tolist())
    firsts = locations.found(c.image_id[f.rows], c.image_id, c.good["images"])
    for row, first in zip(f.rows, firsts, strict=True):
        entry = m.get("images", row)
        one_file = c.image_name[first] == c.image_name[row]  # the two entries are merged later
        if entry and (one_file or entry["id"] not in annotated):
            new = m.fresh_id("images")
            m.set("images", row, f"id {entry['id']} -> {new}; it was taken", id=new)


def _image_duplicate_entry(m: MutableCoco, f: Finding) -> None:
    c = m.columns
    first: dict[str, int] = {}
    new_id: dict[int, int] = {}
    for row in range(len(c.image_name)):
        if c.good["images"][row]:
            first.setdefault(c.image_name[row], row)
    for row in f.rows:
        entry, kept = m.get("images", row), m.get("images", first[c.image_name[row]])
        sizes = {(e["width"], e["height"]) for e in (entry, kept) if e}
        if entry and kept and len(sizes) == 1:  # shapes are mergeable only with equal sizes
            # A duplicate id was replaced earlier in this round; the new one has no annotations.
            if entry["id"] == c.image_id[row] and entry["id"] != kept["id"]:
                new_id[entry["id"]] = kept["id"]
            m.remove("images", row, f"its objects now belong to image {kept['id']}")
    rows = [i for i, image in enumerate(c.image.tolist()) if image in new_id]
    for row in rows:
        entry = m.get("annotations", row)
        if entry and c.good["annotations"][row]:
            new = new_id[entry["image_id"]]
            m.set("annotations", row, f"image_id {entry['image_id']} -> {new}", image_id=new)


def _image_unreadable(m: MutableCoco, f: Finding) -> None:
    for row in f.rows:
        if entry := m.get("images", row):
            m.remove_if_allowed("images", row, f"{entry['file_name']!r} cannot be read")


def _category_malformed(m: MutableCoco, f: Finding) -> None:
    for row in f.rows:
        entry = m.get("categories", row)
        known = entry.get("id") if isinstance(entry, dict) else None
        name = entry.get("name") if isinstance(entry, dict) else None
        has_id = json_numbers.integer(known) is not None or isinstance(known, str)
        if not has_id and not (isinstance(name, str) and name):
            m.remove("categories", row, "it has neither id nor name")
            continue
        number = m.integer_id("categories", known)
        if isinstance(name, int | float) and not isinstance(name, bool):
            name = str(name)
        if not isinstance(name, str) or not name:
            name = known if isinstance(known, str) and known else f"category_{number}"
        name = name.encode("utf-8", "replace").decode()
        _set_changed(m, "categories", row, entry, {"id": number, "name": name})


def _category_duplicate_id(m: MutableCoco, f: Finding) -> None:
    c = m.columns
    annotated = set(c.category[c.good["annotations"]].tolist())
    for row in f.rows:
        if not (entry := m.get("categories", row)):
            continue
        first = next(i for i in range(row + 1) if c.category_id[i] == c.category_id[row])
        if c.category_name[first] == c.category_name[row]:
            m.remove("categories", row, f"it repeats category {entry['id']}")
        elif entry["id"] not in annotated:  # else the error stays, because the name is ambiguous
            new = m.fresh_id("categories")
            m.set("categories", row, f"id {entry['id']} -> {new}; it was taken", id=new)


def _category_duplicate_name(m: MutableCoco, f: Finding) -> None:
    c, new_id = m.columns, {}
    for row in f.rows:
        entry = m.get("categories", row)
        if not entry or entry["id"] != c.category_id[row]:
            continue  # its duplicate id was replaced in this round; merge it in the next
        first = c.category_name.index(c.category_name[row])
        if kept := m.get("categories", first):
            new_id[entry["id"]] = kept["id"]
            m.remove("categories", row, f"its objects now belong to category {kept['id']}")
    for row, number in enumerate(c.category.tolist()):
        if number in new_id and c.good["annotations"][row] and m.get("annotations", row):
            what = f"category_id {number} -> {new_id[number]}"
            m.set("annotations", row, what, category_id=new_id[number])


def _category_mojibake(m: MutableCoco, f: Finding) -> None:
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


def _set_changed(m: MutableCoco, part: str, row: int, entry: dict, values: dict) -> None:
    changed = {k: v for k, v in values.items() if entry.get(k) is not v}
    what = ", ".join(f"{k} {as_json(entry.get(k))} -> {as_json(v)}" for k, v in changed.items())
    m.set(part, row, what, **changed)


REMEDIES = {
    "image_malformed": _image_malformed,
    "image_path": _image_name,
    "image_duplicate_id": _image_duplicate_id,
    "image_duplicate_entry": _image_duplicate_entry,
    "image_missing": _image_name,
    "image_unreadable": _image_unreadable,
    "category_malformed": _category_malformed,
    "category_duplicate_id": _category_duplicate_id,
    "category_duplicate_name": _category_duplicate_name,
    "category_mojibake": _category_mojibake,
}
