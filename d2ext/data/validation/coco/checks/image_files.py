"""Checks that need the image files: headers always, pixels where they are asked for."""

import hashlib
import os
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from d2ext.data.formats.images import SCALING, depth, open_image, orientation, stored_size
from d2ext.data.formats.json_io import inside
from d2ext.data.validation.coco import locations
from d2ext.data.validation.coco.finding import Finding, finding
from d2ext.data.validation.coco.table import CocoTable
from d2ext.errors import UserError

DECODED_BY_ITSELF = 500  # a set of up to so many images is decoded unless that is refused


@dataclass(frozen=True)
class Photo:
    """The facts about an image file.

    Attributes:
        size: width and height as Detectron2 reads it, turned as its EXIF data say; None without.
        stored: width and height of the file's pixels.
        orientation: 5 to 8 where the EXIF data turn it by 90 degrees, else 1.
        problem: why there is no size; `absent` where there is no file.
        is_refused: whether the problem is a limit or a missing package; the file may be sound.
        length: of the file, in bytes.
        depth: what it has in place of 8 bits a channel, see `depth`.
        has_frames: whether it has several frames or pages.
        is_transparent: whether some pixels are; False where pixels are not decoded.
    """

    size: tuple[int, int] | None
    stored: tuple[int, int] | None = None
    orientation: int = 1
    problem: str = ""
    is_refused: bool = False
    length: int = 0
    depth: str | None = None
    has_frames: bool = False
    is_transparent: bool = False


def look(root: str | Path, names: Iterable[str], decode: bool = False) -> dict[str, Photo]:
    """Looks at image files, several at a time; names that lead out of the folder are left out."""
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
            facts = {"length": length, "depth": depth(image)}
            # The second picture of an MPO is the camera's own preview or another exposure.
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
    with_alpha = image.mode in ("LA", "P", "PA", "RGBA") and image.has_transparency_data
    return with_alpha and image.convert("RGBA").getchannel("A").getextrema()[0] < 255


def image_files(c: CocoTable, photos: Mapping[str, Photo]) -> Iterator[Finding]:
    """Files that are missing, unreadable, of another size than the entry says, or read in part."""
    rows = [i for i in np.flatnonzero(c.good["images"]) if c.image_name[i] in photos]
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
    wrong = [i for i in rows if photo[i].size and photo[i].size != tuple(c.image_size[i])]
    if wrong:
        turned = [i for i in wrong if photo[i].stored == tuple(c.image_size[i])]
        i = (turned or wrong)[0]
        said, is_ = ("{} x {}".format(*size) for size in (c.image_size[i], photo[i].size))
        example = f"{locations.image(c, i)}: {said}, the file has {is_}"
        if turned:
            example += (
                f" (its EXIF orientation turns it, as for {len(turned)} of these {len(wrong)};"
                " --fix turns the shapes, too)"
            )
        yield finding("image_size", wrong, "images", example)
    if deep := [i for i in rows if photo[i].depth]:
        kinds = ", ".join(sorted({photo[i].depth for i in deep}))
        example = f"{locations.image(c, deep[0])}; {kinds}; when it is read, {SCALING}"
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
    """Files with the same bytes: within the set, and in the set that it is held against."""
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
    """Category names that only one of two sets has; the other's rows follow ours."""
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
    except OSError:  # it went while we looked
        return ""
