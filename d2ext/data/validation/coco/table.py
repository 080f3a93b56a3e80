"""Read a COCO file into arrays, valid or not, in chunks: half a gigabyte takes seconds."""

import signal
import sys
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np

from d2ext.data.formats.annotation_kinds import count_keypoints
from d2ext.data.formats.coco_file import (
    PARTS,
    VALID,
    Decode,
    ValidAnnotation,
    convert_entries,
    read_as_is,
    read_content,
    require_lists,
)
from d2ext.data.formats.coco_objects import MALFORMED, read_keypoints
from d2ext.data.formats.json_io import no_collection
from d2ext.data.validation.coco.json_numbers import number
from d2ext.data.validation.coco.outlines import Outlines, join, outlines
from d2ext.errors import UserError
from d2ext.limits import usable_cores

_CHUNK = 2048
_MIN_PARALLEL = 100_000  # entries from which several processes are faster
_work: tuple = ()  # in such a process: all entries, and the function that decodes them


@dataclass(frozen=True)
class CocoTable:
    """The checked columns of a COCO file.

    Attributes:
        image_id: (I,) Image ids.
        image_size: (I, 2) Width and height of each image.
        image_name: File name of each image.
        category_id: (C,) Category ids.
        category_name: Name of each category.
        id: (A,) Annotation ids.
        image: (A,) Image id of each annotation.
        category: (A,) Category id of each annotation.
        box: (A, 4) x, y, width, height in pixels; NaN without a box.
        area: (A,) Area in square pixels; NaN without one.
        crowd: (A,) bool, whether the annotation is a crowd.
        ignored: (A,) bool, whether it is marked as ignored, difficult or a group.
        rotated: (A,) bool, whether its attributes include a rotation.
        keypoints: (A,) bool, whether it has labeled keypoints.
        malformed_keypoints: (A,) bool, whether its keypoints are malformed.
        masks: Measurements of the masks.
        malformed: For each part, the reason by row. Such rows have the placeholder id -1.
        good: For each part, (N,) bool, False for malformed rows.
    """

    image_id: np.ndarray
    image_size: np.ndarray
    image_name: list[str]
    category_id: np.ndarray
    category_name: list[str]
    id: np.ndarray
    image: np.ndarray
    category: np.ndarray
    box: np.ndarray
    area: np.ndarray
    crowd: np.ndarray
    ignored: np.ndarray
    rotated: np.ndarray
    keypoints: np.ndarray
    malformed_keypoints: np.ndarray
    masks: Outlines
    malformed: dict[str, dict[int, str]]
    good: dict[str, np.ndarray]


def read_coco_table(json_file: str | Path) -> CocoTable:
    """Read a COCO file.

    Raises:
        UserError: The file cannot be read, is not JSON, or lacks one of the three lists.
    """
    try:
        return _columns(*read_as_is(json_file))
    except (ValueError, RecursionError):  # holds a number that only Python's json reads
        return coco_table(read_content(json_file), json_file)


def coco_table(content: Any, name: str | Path = "the content") -> CocoTable:
    """Return the table of a COCO dict.

    Raises:
        UserError: The dict lacks one of the three lists.
    """
    require_lists(content, name)
    return _columns({part: content[part] for part in PARTS}, convert_entries)


def _chunks(
    entries: Sequence, kind: type, decode: Decode, reasons: dict[int, str]
) -> Iterator[list]:
    for first in range(0, len(entries), _CHUNK):
        made, wrong = decode(entries[first : first + _CHUNK], kind)
        reasons.update({first + i: reason for i, reason in wrong.items()})
        yield made


def _columns(parts: Mapping[str, Sequence], decode: Decode) -> CocoTable:
    malformed: dict[str, dict[int, str]] = {part: {} for part in PARTS}
    images, categories = (
        [e for c in _chunks(parts[part], VALID[part], decode, malformed[part]) for e in c]
        for part in ("images", "categories")
    )
    _check_unicode(images, "file_name", malformed["images"])
    _check_unicode(categories, "name", malformed["categories"])
    with no_collection():
        ids, marks, boxes, areas, masks = _annotations(
            parts["annotations"], decode, malformed["annotations"]
        )
    sizes = {"images": len(images), "annotations": len(ids), "categories": len(categories)}
    good = {part: np.ones(size, bool) for part, size in sizes.items()}
    for part, reasons in malformed.items():
        good[part][list(reasons)] = False
    return CocoTable(
        image_id=np.array([e.id if e else -1 for e in images], np.int64),
        image_size=np.array(
            [(e.width, e.height) if e else (1, 1) for e in images], np.int64
        ).reshape(-1, 2),
        image_name=[e.file_name if e else "" for e in images],
        category_id=np.array([e.id if e else -1 for e in categories], np.int64),
        category_name=[e.name if e else "" for e in categories],
        id=ids[:, 0],
        image=ids[:, 1],
        category=ids[:, 2],
        crowd=ids[:, 3] == 1,
        ignored=marks[:, 0],
        rotated=marks[:, 1],
        keypoints=marks[:, 2],
        malformed_keypoints=marks[:, 3],
        box=boxes,
        area=areas,
        masks=masks,
        malformed=malformed,
        good=good,
    )


def _annotations(
    entries: Sequence, decode: Decode, wrong: dict[int, str]
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, Outlines]:
    """Return ids (own, image's, category's, crowd), marks, boxes, areas and masks.

    The reasons of malformed entries are added to `wrong`.
    """
    coco_table: tuple[list[Any], ...] = (
        [np.empty((0, 4), np.int64)],
        [np.empty((0, 4), bool)],
        *([np.empty((0, 4))], [[]], [np.empty(0, bool)], []),
    )
    for first, reasons, *parts in _parts(entries, decode):
        wrong.update({first + i: reason for i, reason in reasons.items()})
        for column, part in zip(coco_table, parts, strict=True):
            column.append(part)
    ids, marks, boxes, areas, not_finite = map(np.concatenate, coco_table[:5])
    shapes = join(coco_table[5])
    for row in np.flatnonzero(not_finite | shapes.not_finite).tolist():
        wrong.setdefault(row, "holds NaN or an infinite number")
    return ids, marks, boxes, areas, shapes


def _parts(entries: Sequence, decode: Decode) -> Iterator[tuple]:
    """Yield the columns of all entries, by `_part`; many entries are split among processes."""
    cores = usable_cores() if sys.platform == "linux" else 1
    if len(entries) < _MIN_PARALLEL or cores == 1:
        for first in range(0, len(entries), _CHUNK):
            yield _part(first, entries, decode)
        return
    # Forked processes share the entries without a copy; threads would contend for the GIL.
    with ProcessPoolExecutor(cores, get_context("fork"), _take, (entries, decode)) as pool:
        try:
            yield from pool.map(_taken_part, range(0, len(entries), _CHUNK), chunksize=8)
        except BrokenProcessPool:
            raise UserError(
                "a process that reads the annotations was killed, most likely because memory ran"
                " out; close other programs, or use one core (taskset -c 0 ...)"
            ) from None


def _take(*work: Any) -> None:
    global _work
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends its workers
    _work = work


def _taken_part(first: int) -> tuple:
    return _part(first, *_work)


def _part(first: int, entries: Sequence, decode: Decode) -> tuple:
    """Return the columns of `_CHUNK` entries starting at `first`.

    Returns:
        `first`, the reasons of malformed entries by row relative to `first`, ids, marks, boxes,
        areas, whether a box or an area is NaN or infinite, and the masks.
    """
    made, wrong = decode(entries[first : first + _CHUNK], ValidAnnotation)
    no_box, nan, none = (np.nan,) * 4, float("nan"), ValidAnnotation(-1, -1, -1)
    chunk = [a or none for a in made]
    ids = np.array([(a.id, a.image_id, a.category_id, a.iscrowd) for a in chunk], np.int64)
    marks = np.array([_marks(a) for a in chunk], bool)
    boxes = np.array([a.bbox or no_box for a in chunk])
    areas = np.array([nan if a.area is None else a.area for a in chunk])
    # NaN marks missing values in these arrays, so a NaN in the file is detected separately.
    has_box = np.array([a.bbox is not None for a in chunk], bool)
    has_area = np.array([a.area is not None for a in chunk], bool)
    not_finite = (has_box & ~np.isfinite(boxes).all(1)) | (has_area & ~np.isfinite(areas))
    masks = outlines([a.segmentation for a in chunk])
    return first, wrong, ids, marks, boxes, areas, not_finite, masks


def _marks(a: ValidAnnotation) -> tuple[bool, bool, bool, bool]:
    """Return whether an annotation is ignored, is rotated, and has labeled or bad keypoints."""
    rotation = number(a.attributes.get("rotation")) if isinstance(a.attributes, dict) else None
    try:
        labeled, malformed = count_keypoints(read_keypoints(a.keypoints) or ())[1] > 0, False
    except MALFORMED:
        labeled, malformed = False, True
    ignored = bool(a.ignore or a.difficult or a.is_group_of)
    return ignored, bool(rotation), labeled, malformed


def _check_unicode(entries: list, key: str, reasons: dict[int, str]) -> None:
    """Mark entries with lone surrogates, which JSON allows, but file systems and terminals do not.

    Args:
        entries: Entries; invalid ones become None.
        key: Key of the text to check.
        reasons: Reasons of malformed entries by row, which are added to.
    """
    for i, entry in enumerate(entries):
        if entry and not getattr(entry, key).isascii():
            try:
                getattr(entry, key).encode()
            except UnicodeEncodeError:
                entries[i] = None
                reasons[i] = f"{key} is not valid Unicode"
