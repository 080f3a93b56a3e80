"""A COCO file turned into a store without Python dicts of its objects.

msgspec parses what is checked, and leaves polygons as the text that they are; the store holds that
text. Whatever is odd about a file makes `parse_coco` give up: `read_coco` is what repairs and what
explains, and gives the same records.
"""

import codecs
import gc
import itertools
import json
import logging
import math
import operator
import os
import re
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any

import msgspec
import numpy as np

from d2ext.data.formats.coco import _categories, _category_ids, _read
from d2ext.data.formats.common import inside
from d2ext.data.pages import PagesWriter
from d2ext.data.records import Columns, write_columns
from d2ext.errors import UserError

logger = logging.getLogger(__name__)

_NOTHING = msgspec.Raw(b"null")


class _Image(msgspec.Struct, gc=False):
    id: int
    file_name: str
    height: int
    width: int


class _Annotation(msgspec.Struct, gc=False):
    image_id: int
    category_id: int
    bbox: tuple[float, float, float, float]
    segmentation: msgspec.Raw = _NOTHING
    area: float = math.nan
    iscrowd: int = 0
    ignore: int = 0
    keypoints: list | None = None


class _File(msgspec.Struct):
    images: list[_Image]
    annotations: list[_Annotation]
    categories: msgspec.Raw


# What is left of polygons without numbers and spaces: 6 or more numbers each, an even count.
_POLYGONS = re.compile(rb"\[\[,(?:,,){2,}\](?:,\[,(?:,,){2,}\])*\]")
_NUMBERS = b"0123456789.- \t\r\n"
_HUGE = re.compile(rb"\d{4300}")  # no number that Python reads
_CHUNK = 10_000  # texts that are looked at together
_EXACT = 2.0**52  # below it a float is exact where the file has an integer


def parse_coco(
    json_file: str | Path, image_root: str | Path, classes: Sequence[str] | None = None
) -> Callable[[IO[bytes], dict[str, Any]], None] | None:
    """Parses a COCO file; arguments are `read_coco`'s.

    Returns:
        A function of a file to write the store to and of more entries for its info; None where
        `read_coco` must have a look at the file.
    """
    collecting = gc.isenabled()
    gc.disable()  # there are millions of new objects and no circles: it would look at all, often
    try:
        data = Path(json_file).read_bytes()
        if not _is_utf8(data):
            return None
        content = msgspec.json.decode(data, type=_File)
        categories = _categories({"categories": json.loads(bytes(content.categories))}, json_file)
        return _Parsed(content, categories, json_file, image_root, classes).write
    except (OSError, ValueError, OverflowError, TypeError, UserError, _Odd):
        return None
    finally:
        if collecting:
            gc.enable()


class _Odd(Exception):
    """Something that `read_coco` must look at."""


class _Parsed:
    """Columns of the annotations that are kept, image by image; images by rising id."""

    def __init__(
        self,
        content: _File,
        categories: dict[int, str],
        json_file: str | Path,
        image_root: str | Path,
        classes: Sequence[str] | None,
    ):
        indices = _category_ids(categories, classes, json_file)
        self._images = sorted(content.images, key=lambda image: image.id)
        self._names = _paths(image_root, [image.file_name for image in self._images])
        self.info = {
            "classes": list(categories.values() if classes is None else classes),
            "category_ids": [[id_, i] for id_, i in indices.items() if i is not None],
        }
        ids = np.fromiter((i.id for i in self._images), np.int64, len(self._images))
        sizes = np.array([(i.height, i.width) for i in self._images], np.int32).reshape(-1, 2)
        self._heights, self._widths = sizes.T
        _require(np.all(ids[1:] != ids[:-1]) and np.all(sizes > 0))

        kept = content.annotations
        count = len(kept)

        def column(name: str, dtype: type = np.int64) -> np.ndarray:
            return np.fromiter(map(operator.attrgetter(name), kept), dtype, count)

        of_image, category, crowds = column("image_id"), column("category_id"), column("iscrowd")
        areas = column("area", np.float64)
        numbers = itertools.chain.from_iterable(a.bbox for a in kept)
        boxes = np.fromiter(numbers, np.float64, 4 * count).reshape(-1, 4)
        _require(not any(map(operator.attrgetter("keypoints"), kept)))
        _require(np.all((crowds == 0) | (crowds == 1)))
        _require(np.all(np.abs(boxes) < _EXACT) and not np.any(np.abs(areas) >= _EXACT))
        image = np.searchsorted(ids, of_image)
        _require(np.all(ids[np.minimum(image, len(ids) - 1)] == of_image) if count else True)
        known = np.array(sorted(indices), np.int64)
        labels = np.array([-1 if indices[i] is None else indices[i] for i in known], np.int32)
        place = np.searchsorted(known, category)
        _require(np.all(known[np.minimum(place, len(known) - 1)] == category) if count else True)
        label = labels[place] if count else np.empty(0, np.int32)

        wanted = (column("ignore") != 1) & (label >= 0)
        boxed = np.all(boxes[:, 2:] > 0, axis=1)
        order = np.argsort(image, kind="stable")
        order = order[(wanted & boxed)[order]]
        texts, masks = self._read_masks(kept, wanted & boxed, image)
        without_polygon = masks == _INVALID
        left_out = Counter({
            "without a box of positive size": int(np.sum(wanted & ~boxed)),
            "without a valid polygon": int(np.sum(without_polygon)),
        })  # fmt: skip
        if left_out.total():
            counts = ", ".join(f"{n} {problem}" for problem, n in left_out.items() if n)
            logger.warning("%s: %d annotations left out: %s", json_file, left_out.total(), counts)
        order = order[~without_polygon[order]]
        self._texts = [texts[i] for i in order.tolist()]

        image, crowds, masks = image[order], crowds[order], masks[order]
        boxes[:, 2:] += boxes[:, :2]
        self._arrays = {
            "boxes": boxes[order],
            "crowds": crowds.astype(np.uint8),
            "labels": label[order],
            "areas": areas[order],
        }
        images, objects = len(ids), crowds == 0
        self._counts = np.bincount(image, minlength=images)
        self._columns = Columns(
            self._heights,
            self._widths,
            *(
                np.bincount(image[objects & chosen], minlength=images).astype(np.int32)
                for chosen in (True, masks == _POLYGON, masks == _RLE)
            ),
            label[order][objects],
        )

    def _read_masks(
        self, annotations: list[_Annotation], kept: np.ndarray, image: np.ndarray
    ) -> tuple[list, np.ndarray]:
        """The texts of the masks of the annotations to be kept, and the kind that each is."""
        kinds = np.full(len(annotations), _POLYGON, np.int8)
        texts = [a.segmentation for a in annotations]
        for i in _not_plain(texts):
            if not kept[i]:
                continue
            box = {"bbox": annotations[i].bbox, "segmentation": json.loads(bytes(texts[i]))}
            read, problem = _read(box, int(self._heights[image[i]]), int(self._widths[image[i]]))
            masks = read.get("segmentation")
            if isinstance(masks, list):
                _require(all(type(x) in (int, float) for polygon in masks for x in polygon))
            kind = {list: _POLYGON, dict: _RLE}.get(type(masks), _NO_MASK)
            kinds[i] = _INVALID if problem else kind
            texts[i] = json.dumps(masks).encode()
        return texts, kinds

    def write(self, file: IO[bytes], more: dict[str, Any]) -> None:
        """Writes the store."""
        writer = PagesWriter(file)
        lengths = np.empty(len(self._images), np.int64)
        crcs = np.empty(len(self._images), np.uint32)
        writer.add_bytes("data", self._data(lengths, crcs))
        for name, array in self._arrays.items():
            writer.add(name, array)
        writer.add("starts", np.concatenate([[0], np.cumsum(self._counts)]))
        ids = [image.id for image in self._images]
        write_columns(writer, lengths, crcs, self._names, ids, self._columns)
        writer.finish(self.info | more)

    def _data(self, lengths: np.ndarray, crcs: np.ndarray) -> Iterator[bytes]:
        """[image_id, file_name, [segmentation, ...]] of each image, and its length and checksum."""
        first = 0
        rows = zip(self._images, self._names, self._counts.tolist(), strict=True)
        for i, (image, name, count) in enumerate(rows):
            texts = b",".join(self._texts[first : first + count])
            text = b"[%d,%b,[%b]]" % (image.id, msgspec.json.encode(name), texts)
            lengths[i], crcs[i] = len(text), zlib.crc32(text)
            first += count
            yield text


_INVALID, _NO_MASK, _POLYGON, _RLE = range(4)


def _paths(image_root: str | Path, names: list[str]) -> list[str]:
    """The names in the folder; `inside` looks at those that could lead out of it."""
    prefix = os.path.join(image_root, "")
    return [
        inside(image_root, name, "images")
        if "/" in name or "\0" in name or name in ("", ".", "..")
        else prefix + name
        for name in names
    ]


def _not_plain(texts: list) -> Iterator[int]:
    """The places of texts that are no valid polygons of plain numbers."""
    known = {}
    for first in range(0, len(texts), _CHUNK):
        chunk = texts[first : first + _CHUNK]
        shapes = b"\0".join(chunk).translate(None, _NUMBERS).split(b"\0")
        _require(len(shapes) == len(chunk))
        for row, shape in enumerate(shapes, start=first):
            plain = known.get(shape)
            if plain is None:
                plain = known[shape] = _POLYGONS.fullmatch(shape) is not None
            if not plain or (len(texts[row]) > 4300 and _HUGE.search(texts[row])):
                yield row


def _require(ordinary: Any) -> None:
    if not ordinary:
        raise _Odd


def _is_utf8(data: bytes) -> bool:
    """Whether all of it is; msgspec does not look at texts that nobody asked for."""
    if data.isascii():
        return True
    decoder, view = codecs.getincrementaldecoder("utf-8")(), memoryview(data)
    try:
        for start in range(0, len(view), 1 << 20):
            decoder.decode(view[start : start + (1 << 20)])
        decoder.decode(b"", final=True)
    except UnicodeDecodeError:
        return False
    return True
