"""Checks that read the image files: always their headers, their pixels on request."""

import hashlib
import os
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from d2ext.data.formats.images import SCALING, depth, open_image, orientation, stored_size
from d2ext.data.formats.json_io import inside
from d2ext.data.validation.coco import locations
from d2ext.data.validation.coco.finding import Finding, finding
from d2ext.data.validation.coco.table import CocoTable
from d2ext.errors import UserError

DECODED_BY_DEFAULT = 500  # sets of up to this many images are decoded by default


@dataclass(frozen=True)
class Photo:
    """Properties of an image file.

    Attributes:
        size: Width and height as Detectron2 reads the image, with the EXIF orientation applied;
            None if the image cannot be read.
        stored: Width and height of the stored pixels.
        orientation: EXIF orientation if it rotates the image by 90 degrees (5 to 8), else 1.
        problem: Why there is no size; `absent` if there is no file.
        is_refused: Whether the problem is a limit or a missing package; the file may be intact.
        length: Length of the file in bytes.
        depth: Description of channels that do not have 8 bits, see `depth`.
        has_frames: Whether the file has several frames or pages.
        is_transparent: Whether any pixel is transparent; False if pixels are not decoded.
    """

    size: tuple[int, int] | None
    stored: tuple[int, int] = (0, 0)
    orientation: int = 1
    problem: str = ""
    is_refused: bool = False
    length: int = 0
    depth: str | None = None
    has_frames: bool = False
    is_transparent: bool = False


def read_photos(root: str | Path, names: Iterable[str], decode: bool = False) -> dict[str, Photo]:
    """Inspect image files in parallel; skip names that lead out of the folder."""
    paths = {}
    for name in dict.fromkeys(names):
        try:
            paths[name] = inside(root, name, "")
        except UserError:
            continue
    with ThreadPoolExecutor(min(8, (os.cpu_count() or 1) + 2)) as pool:
        photos = pool.map(lambda path: _photo(path, decode), paths.values())
        return dict(zip(paths, photos, strict=True))


def _photo(path: str, decode: bool) -> Photo:
    try:
        length = os.path.getsize(path)
        with open_image(path) as image:
            stored, turn = stored_size(image), orientation(image)
            facts: dict[str, Any] = {"length": length, "depth": depth(image)}
            # The second picture of an MPO is the camera's preview or another exposure.
            facts["has_frames"] = image.format != "MPO" and getattr(image, "is_animated", False)
            if decode:
                image.load()
                facts["is_transparent"] = _is_transparent(image)
        turned = turn >= 5
        return Photo(stored[::-1] if turned else stored, stored, turn if turned else 1, **facts)
    except (FileNotFoundError, NotADirectoryError):
        return Photo(None, problem="absent")
    except UserError as e:
        return Photo(None, problem=str(e), is_refused=True)
    except Exception as e:
        return Photo(None, problem=f"{type(e).__name__}: {e}")


def _is_transparent(image: Image.Image) -> bool:
    if image.mode not in ("LA", "P", "PA", "RGBA") or not image.has_transparency_data:
        return False
    lowest: Any = image.convert("RGBA").getchannel("A").getextrema()[0]
    return lowest < 255


def image_files(c: CocoTable, photos: Mapping[str, Photo]) -> Iterator[Finding]:
    """Find files that are missing, unreadable, of the wrong size or read only in part.

    Files that are read only in part have more than 8 bits per channel, several frames or
    transparent pixels.
    """
    rows = [i for i in np.flatnonzero(c.good["images"]).tolist() if c.image_name[i] in photos]
    photo = {i: photos[c.image_name[i]] for i in rows}
    missing = [i for i in rows if photo[i].problem == "absent"]
    if missing:
        example = f"{locations.image(c, missing[0])}; {len(missing)} of {len(c.image_id)} images"
        yield finding("image_missing", missing, "images", example)
    for code, refused in (("image_refused", True), ("image_unreadable", False)):
        problems = {i: photo[i].problem for i in rows if photo[i].is_refused == refused}
        broken = [i for i, problem in problems.items() if problem not in ("", "absent")]
        if broken:
            example = f"{locations.image(c, broken[0])}: {problems[broken[0]]}"
            yield finding(code, broken, "images", example)
    sizes = {i: size for i in rows if (size := photo[i].size)}
    wrong = [i for i, size in sizes.items() if size != tuple(c.image_size[i])]
    if wrong:
        turned = [i for i in wrong if photo[i].stored == tuple(c.image_size[i])]
        i = (turned or wrong)[0]
        stated, actual = ("{} x {}".format(*size) for size in (c.image_size[i], sizes[i]))
        example = f"{locations.image(c, i)}: {stated}, but the file has {actual}"
        if turned:
            example += (
                f" (its EXIF orientation rotates it, as in {len(turned)} of these {len(wrong)};"
                " --fix rotates the shapes, too)"
            )
        yield finding("image_size", wrong, "images", example)
    depths = {i: depth for i in rows if (depth := photo[i].depth)}
    if deep := list(depths):
        kinds = ", ".join(sorted(set(depths.values())))
        example = f"{locations.image(c, deep[0])}; {kinds}; when read, {SCALING}"
        yield finding("image_depth", deep, "images", example)
    for code, some in (
        ("image_frames", [i for i in rows if photo[i].has_frames]),
        ("image_transparent", [i for i in rows if photo[i].is_transparent]),
    ):
        if some:
            yield finding(code, some, "images", locations.image(c, some[0]))


def identical(
    c: CocoTable,
    photos: Mapping[str, Photo],
    root: str | Path,
    against: tuple[Mapping[str, Photo], str | Path] | None = None,
) -> Iterator[Finding]:
    """Find files with the same bytes, within the set and in the set that it is compared with."""
    sets = [(photos, root), *([against] if against else [])]
    by_length = defaultdict(list)
    for which, (several, folder) in enumerate(sets):
        for name, photo in several.items():
            if photo.size:
                by_length[photo.length].append((which, name, inside(folder, name, "")))
    alike = [entry for group in by_length.values() if len(group) > 1 for entry in group]
    with ThreadPoolExecutor(min(8, (os.cpu_count() or 1) + 2)) as pool:
        hashes = list(pool.map(lambda entry: _hash(entry[2]), alike))
    groups = defaultdict(list)
    for (which, name, _), digest in zip(alike, hashes, strict=True):
        if digest:
            groups[digest].append((which, name))
    row_of = {name: i for i, name in enumerate(c.image_name) if c.good["images"][i]}
    within, between = {}, {}
    for group in groups.values():
        own = [name for which, name in group if which == 0]
        others = [name for which, name in group if which == 1]
        within.update({row_of[name]: own[0] for name in own[1:]})
        if others:
            between.update({row_of[name]: others[0] for name in own})
    for code, twins in (("image_identical", within), ("against_identical", between)):
        if twins:
            i, twin = next(iter(twins.items()))
            yield finding(code, list(twins), "images", f"{locations.image(c, i)} and {twin}")


def categories_against(c: CocoTable, other: CocoTable) -> Iterator[Finding]:
    """Find category names that only one of two sets has; the other set's rows come last."""
    ours, theirs = set(c.category_name), set(other.category_name)
    if ours != theirs:
        rows = [i for i, name in enumerate(c.category_name) if name not in theirs]
        lacking = [i for i, name in enumerate(other.category_name) if name not in ours]
        parts = [f"{c.category_name[rows[0]]!r} is only here"] if rows else []
        parts += [f"{other.category_name[lacking[0]]!r} only there"] if lacking else []
        yield finding("against_categories", [*rows, *lacking], "categories", ", ".join(parts))


def _hash(path: str) -> str:
    try:
        with open(path, "rb") as f:
            return hashlib.file_digest(f, "blake2b").hexdigest()
    except OSError:  # deleted since it was inspected
        return ""
