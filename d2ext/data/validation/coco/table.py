"""A COCO file as arrays, read in chunks: half a gigabyte in seconds, whatever is in it."""

import os
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
from d2ext.data.formats.json_io import no_collection
from d2ext.data.validation.coco.json_numbers import number
from d2ext.data.validation.coco.outlines import Outlines, join, outlines
from d2ext.errors import UserError

_CHUNK = 2048
_MIN_PARALLEL = 100_000  # entries that are worth further processes
_work: tuple = ()  # of such a process: all entries, and how they are decoded


@dataclass(frozen=True)
class CocoTable:
    """The checked columns of a COCO file.

    Attributes:
        image_id, image_size: (I,) and (I, 2) width and height, and `image_name`, a list.
        category_id: (C,), and `category_name`, a list.
        id, image, category: (A,) the annotations' own id, their image's and their category's.
        box: (A, 4) x, y, width, height in pixels; NaN without one.
        area: (A,) square pixels; NaN without one.
        crowd: (A,) bool.
        ignored: (A,) bool: marked as ignored, difficult or a group.
        rotated: (A,) bool: with a rotation among its attributes.
        keypoints: (A,) bool: with keypoints.
        masks: what is known of the masks.
        malformed: of each part, the reason by row. Such rows have id -1, which counts for nothing
            because `good` is false there.
        good: of each part, (N,) bool: not malformed.
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
    masks: Outlines
    malformed: dict[str, dict[int, str]]
    good: dict[str, np.ndarray]


def read_coco_table(json_file: str | Path) -> CocoTable:
    """Read a COCO file.

    Raises:
        UserError: it cannot be read, is not JSON, or lacks one of the three lists.
    """
    try:
        return _columns(*read_as_is(json_file))
    except (ValueError, RecursionError):  # with a number that Python alone reads
        return coco_table(read_content(json_file), json_file)


def coco_table(content: Any, name: str | Path = "the content") -> CocoTable:
    """Return the columns of a COCO dict.

    Raises:
        UserError: it lacks one of the three lists.
    """
    require_lists(content, name)
    return _columns({part: content[part] for part in PARTS}, convert_entries)


def _chunks(entries: list, kind: type, decode: Decode, reasons: dict[int, str]) -> Iterator[list]:
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
    _no_unicode(images, "file_name", malformed["images"])
    _no_unicode(categories, "name", malformed["categories"])
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
        box=boxes,
        area=areas,
        masks=masks,
        malformed=malformed,
        good=good,
    )


def _annotations(
    entries: list, decode: Decode, wrong: dict[int, str]
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, Outlines]:
    """Ids (own, image's, category's, crowd), marks, boxes, areas and masks; adds to `wrong`."""
    coco_table = (
        [np.empty((0, 4), np.int64)],
        [np.empty((0, 3), bool)],
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


def _parts(entries: list, decode: Decode) -> Iterator[tuple]:
    """Return what `_part` makes of all entries; many are split over several processes."""
    cores = len(os.sched_getaffinity(0)) if sys.platform == "linux" else 1
    if len(entries) < _MIN_PARALLEL or cores == 1:
        for first in range(0, len(entries), _CHUNK):
            yield _part(first, entries, decode)
        return
    # Forked, they have the entries without a copy; threads would wait for one another.
    with ProcessPoolExecutor(cores, get_context("fork"), _take, (entries, decode)) as pool:
        try:
            yield from pool.map(_taken_part, range(0, len(entries), _CHUNK), chunksize=8)
        except BrokenProcessPool:
            raise UserError(
                "a process that reads the annotations was killed, most likely for want of memory;"
                " end other programs, or read on one core (taskset -c 0 ...)"
            ) from None


def _take(*work: Any) -> None:
    global _work
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends them
    _work = work


def _taken_part(first: int) -> tuple:
    return _part(first, *_work)


def _part(first: int, entries: list, decode: Decode) -> tuple:
    """Return the columns of `_CHUNK` entries from `first` on.

    Returns:
        `first`, what is wrong with entries by row from there, ids, marks, boxes, areas, whether one
        of the numbers is NaN or infinite, and the masks.
    """
    made, wrong = decode(entries[first : first + _CHUNK], ValidAnnotation)
    no_box, nan, none = (np.nan,) * 4, float("nan"), ValidAnnotation(-1, -1, -1)
    chunk = [a or none for a in made]
    ids = np.array([(a.id, a.image_id, a.category_id, a.iscrowd) for a in chunk], np.int64)
    marks = np.array([_marks(a) for a in chunk], bool)
    boxes = np.array([a.bbox or no_box for a in chunk])
    areas = np.array([nan if a.area is None else a.area for a in chunk])
    # NaN stands for "without" there, so that one in the file must be told from it here.
    has_box = np.array([a.bbox is not None for a in chunk], bool)
    has_area = np.array([a.area is not None for a in chunk], bool)
    not_finite = (has_box & ~np.isfinite(boxes).all(1)) | (has_area & ~np.isfinite(areas))
    masks = outlines([a.segmentation for a in chunk])
    return first, wrong, ids, marks, boxes, areas, not_finite, masks


def _marks(a: ValidAnnotation) -> tuple[bool, bool, bool]:
    """Return whether it is to be ignored, is rotated, and has keypoints."""
    rotation = number(a.attributes.get("rotation")) if isinstance(a.attributes, dict) else None
    keypoints = isinstance(a.keypoints, list) and any(a.keypoints)
    return bool(a.ignore or a.difficult or a.is_group_of), bool(rotation), keypoints


def _no_unicode(entries: list, key: str, reasons: dict[int, str]) -> None:
    """JSON can name half a surrogate, which no file system and no terminal takes."""
    for i, entry in enumerate(entries):
        if entry and not getattr(entry, key).isascii():
            try:
                getattr(entry, key).encode()
            except UnicodeEncodeError:
                entries[i] = None
                reasons[i] = f"{key} holds characters that are none"
