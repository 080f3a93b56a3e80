"""Checks of ids, names and references: everything in a COCO file except shapes."""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from d2ext.data.formats.coco_file import PARTS
from d2ext.data.formats.json_io import inside
from d2ext.data.validation.coco import locations
from d2ext.data.validation.coco.finding import Finding, finding
from d2ext.data.validation.coco.table import CocoTable
from d2ext.errors import UserError


def malformed(c: CocoTable) -> Iterator[Finding]:
    """Find entries that lack a value or have one of the wrong type."""
    for part in PARTS:
        if reasons := c.malformed[part]:
            rows = sorted(reasons)
            example = f"{part}[{rows[0]}]: {reasons[rows[0]]}"
            code = {"categories": "category"}.get(part, part[:-1]) + "_malformed"
            yield finding(code, rows, part, example)


def image_ids(c: CocoTable) -> Iterator[Finding]:
    """Find image ids and image files that appear twice."""
    good = c.good["images"]
    rows = locations.repeated(c.image_id, good)
    if len(rows):
        first = locations.found(c.image_id[rows[:1]], c.image_id, good)[0]
        example = f"{locations.image(c, rows[0])} and images[{first}] ({c.image_name[first]})"
        yield finding("image_duplicate_id", rows, "images", example)
    seen: dict[str, int] = {}
    again = [i for i in np.flatnonzero(good).tolist() if seen.setdefault(c.image_name[i], i) != i]
    if again:
        first = seen[c.image_name[again[0]]]
        example = f"{locations.image(c, again[0])} and images[{first}] (id {c.image_id[first]})"
        yield finding("image_duplicate_entry", again, "images", example)


def image_paths(c: CocoTable, images: str | Path | None) -> Iterator[Finding]:
    """Find image names that lead out of the image folder."""
    wrong = []
    for i in np.flatnonzero(c.good["images"]).tolist():
        try:
            if images is None and os.path.isabs(c.image_name[i]):
                wrong.append(i)
            else:
                inside(images or "", c.image_name[i], "")
        except UserError:
            wrong.append(i)
    if wrong:
        example = f"images[{wrong[0]}] (id {c.image_id[wrong[0]]}): {c.image_name[wrong[0]]!r}"
        yield finding("image_path", wrong, "images", example)


def encodings(c: CocoTable) -> Iterator[Finding]:
    """Find image names in a wrong encoding."""
    yield from _mojibake("image_mojibake", c.image_name, "images")


def categories(c: CocoTable) -> Iterator[Finding]:
    """Find categories that appear twice or have names in a wrong encoding."""
    good = c.good["categories"]
    rows = locations.repeated(c.category_id, good)
    if len(rows):
        first = locations.found(c.category_id[rows[:1]], c.category_id, good)[0]
        example = (
            f"{locations.category(c, rows[0])} and categories[{first}] ({c.category_name[first]})"
        )
        yield finding("category_duplicate_id", rows, "categories", example)
    rows = locations.repeated(np.array(c.category_name, object), good)
    if len(rows):
        yield finding("category_duplicate_name", rows, "categories", locations.category(c, rows[0]))
    yield from _mojibake("category_mojibake", c.category_name, "categories")


def annotation_ids(c: CocoTable) -> Iterator[Finding]:
    """Find annotations with the id 0 and annotation ids that appear twice."""
    good = c.good["annotations"]
    zero = np.flatnonzero(good & (c.id == 0))
    if len(zero):
        example = locations.annotation(c, zero[0])
        yield finding("annotation_id_zero", zero, "annotations", example)
    rows = locations.repeated(c.id, good & (c.id != 0))
    if len(rows):
        yield finding(
            "annotation_duplicate_id", rows, "annotations", locations.annotation(c, rows[0])
        )


def references(c: CocoTable) -> Iterator[Finding]:
    """Find annotations of images and categories that are not listed."""
    good = c.good["annotations"]
    for code, rows_of, values, word in (
        ("unknown_image", locations.image_rows(c), c.image, "image"),
        ("unknown_category", locations.category_rows(c), c.category, "category"),
    ):
        rows = np.flatnonzero(good & (rows_of < 0))
        if len(rows):
            example = f"{locations.annotation(c, rows[0])}: {word}_id {values[rows[0]]}"
            yield finding(code, rows, "annotations", example)


def repetitions(c: CocoTable) -> Iterator[Finding]:
    """Find annotations that equal another in image, category, box and mask."""
    rows = np.flatnonzero(c.good["annotations"])
    box = np.nan_to_num(c.box[rows], nan=-1.0)
    keys = [c.image[rows], c.category[rows], c.crowd[rows], *box.T, c.masks.hash[rows]]
    same = np.zeros(len(rows), np.uint64)
    with np.errstate(over="ignore"):
        for key in keys:  # hash each annotation to 64 bits, which sort fast
            bits = np.ascontiguousarray(key, float).view(np.uint64)
            same = (same ^ bits) * np.uint64(0x9E3779B97F4A7C15)
            same ^= same >> np.uint64(29)
    again = rows[locations.repeated(same, np.ones(len(rows), bool))]
    if len(again):
        yield finding(
            "annotation_duplicate", again, "annotations", locations.annotation(c, again[0])
        )


def demojibake(name: str) -> str | None:
    """Decode a name that is UTF-8 read as Latin-1 or Windows-1252; return None for others."""
    if name.isascii():
        return None
    for encoding in ("cp1252", "latin-1"):
        try:
            return name.encode(encoding).decode("utf-8")
        except UnicodeError:
            continue
    return None


def _mojibake(code: str, names: Sequence[str], part: str) -> Iterator[Finding]:
    better = {i: demojibake(n) for i, n in enumerate(names) if not n.isascii()}
    rows = [i for i, name in better.items() if name or "\ufffd" in names[i]]
    if rows:
        correct = f", should be {better[rows[0]]!r}" if better[rows[0]] else ""
        yield finding(code, rows, part, f"{part}[{rows[0]}]: {names[rows[0]]!r}{correct}")
