"""A COCO file turned into a store without Python dicts of its objects.

msgspec parses what is checked, and leaves polygons as the text that they are; the store holds that
text. Whatever is odd about a file makes `parse_coco` give up: `read_coco` is what repairs and what
explains, and gives the same records.
"""

import codecs
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

from d2ext.data.formats.coco import _categories, _category_ids, _counts, _read_annotation
from d2ext.data.formats.coco_objects import FAR_BOX, FLAT_BOX, MALFORMED
from d2ext.data.formats.json_io import inside, no_collection, not_read
from d2ext.data.records.array_file import ArrayFileWriter
from d2ext.data.records.columns import CROWD, DIFFICULT, GROUP_OF, POLYGON, Columns, mask_kind
from d2ext.data.records.records import write_columns
from d2ext.errors import UserError

logger = logging.getLogger(__name__)

_ABSENT = -(2**62)
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
    iscrowd: int = _ABSENT
    ignore: int = 0
    difficult: int = 0
    is_group_of: int | bool = False  # a bool where hotcoco has written it
    keypoints: msgspec.Raw = _NOTHING


class _File(msgspec.Struct):
    images: list[_Image]
    annotations: list[_Annotation]
    categories: msgspec.Raw


# What is left of polygons without digits and spaces: 6 or more numbers each, an even count.
_POLYGONS = re.compile(rb"\[\[,(?:,,){2,}\](?:,\[,(?:,,){2,}\])*\]")
_DIGITS = bytes.maketrans(b"123456789", b"000000000")
_FAR = (b",0000000", b"[0000000")  # 7 digits before the point, among the others as zeros
_CHUNK = 10_000  # texts that are looked at together
_SIZE = 1_000_000  # pixels; what reaches as far is no image, box or polygon
_EXACT = 2.0**52  # below it a float is exact where the file has an integer


@no_collection()
def parse_coco(
    json_file: str | Path, image_root: str | Path, classes: Sequence[str] | None = None
) -> Callable[[IO[bytes], dict[str, Any]], None] | None:
    """Parses a COCO file; arguments are `read_coco`'s.

    Returns:
        A function of a file to write the store to and of more entries for its info; None where
        `read_coco` must have a look at the file.
    """
    try:
        data = Path(json_file).read_bytes()
        if not _is_utf8(data):
            return None
        content = msgspec.json.decode(data, type=_File)
        categories = _categories({"categories": json.loads(bytes(content.categories))}, json_file)
        return _Parsed(content, categories, json_file, image_root, classes).write
    except (OSError, RecursionError, UserError, _Odd, *MALFORMED):
        return None


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
        _require(np.all(ids[1:] != ids[:-1]) and np.all((sizes > 0) & (sizes < _SIZE)))

        kept = content.annotations
        count = len(kept)

        def column(name: str, dtype: type = np.int64) -> np.ndarray:
            return np.fromiter(map(operator.attrgetter(name), kept), dtype, count)

        of_image, category, crowds = column("image_id"), column("category_id"), column("iscrowd")
        areas = column("area", np.float64)
        numbers = itertools.chain.from_iterable(map(operator.attrgetter("bbox"), kept))
        boxes = np.fromiter(numbers, np.float64, 4 * count).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        lacks_crowd, lacks_area = crowds == _ABSENT, np.isnan(areas)
        crowds[lacks_crowd] = 0
        difficult, group_of = column("ignore") | column("difficult"), column("is_group_of")
        for flags in (crowds, difficult, group_of):
            _require(np.all((flags == 0) | (flags == 1)))
        _require(not np.any(np.abs(areas) >= _EXACT))
        image = np.searchsorted(ids, of_image)
        _require(np.all(ids[np.minimum(image, len(ids) - 1)] == of_image) if count else True)
        known = np.array(sorted(indices), np.int64)
        labels = np.array([-1 if indices[i] is None else indices[i] for i in known], np.int32)
        place = np.searchsorted(known, category)
        _require(np.all(known[np.minimum(place, len(known) - 1)] == category) if count else True)
        label = labels[place] if count else np.empty(0, np.int32)

        wanted = label >= 0
        near = np.all(np.abs(boxes) < _SIZE, axis=1)
        boxed = near & np.all(boxes[:, 2:] > boxes[:, :2], axis=1)
        left_out = Counter()
        left_out[FLAT_BOX] = int(np.sum(wanted & near & ~boxed))
        left_out[FAR_BOX] = int(np.sum(wanted & ~near))
        repaired: Counter = Counter()
        valid = wanted & boxed
        texts = [a.segmentation for a in kept]
        masks = np.full(count, POLYGON, np.int8)
        slow = np.zeros(count, bool)
        slow[_not_plain(texts)] = True
        slow = valid & (slow | lacks_area)
        for i in np.flatnonzero(slow).tolist():
            annotation = {"bbox": kept[i].bbox, "segmentation": msgspec.json.decode(texts[i])}
            annotation["iscrowd"] = None if lacks_crowd[i] else int(crowds[i])
            annotation["area"] = None if lacks_area[i] else float(areas[i])
            height, width = sizes[image[i]].tolist()
            read, problem = _read_annotation(annotation, height, width, repaired)
            if problem:
                left_out[problem] += 1
                valid[i] = False
            else:
                areas[i] = read["area"]
                masks[i] = mask_kind(read)
                texts[i] = json.dumps(read.get("segmentation")).encode()
        repaired["without iscrowd (0)"] += int(np.sum(lacks_crowd & valid & ~slow))
        self.info["left_out"] = not_read(+left_out, int(np.sum(~wanted)))
        self.info["keypoints"] = sum(
            bool(json.loads(bytes(a.keypoints)))
            for a, is_wanted in zip(kept, wanted.tolist(), strict=True)
            if is_wanted and a.keypoints is not _NOTHING
        )
        if +left_out:
            logger.warning("%s: %s skipped: %s", json_file, *_counts(+left_out))
        if +repaired:
            logger.info("%s: %s repaired: %s", json_file, *_counts(+repaired))

        order = np.argsort(image, kind="stable")
        order = order[valid[order]]
        self._texts = [texts[i] for i in order.tolist()]
        flags = (crowds * CROWD | difficult * DIFFICULT | group_of * GROUP_OF)[order]
        self._arrays = {"boxes": boxes[order], "areas": areas[order]}
        self._columns = Columns(
            *sizes.T,
            np.bincount(image[order], minlength=len(ids)).astype(np.int32),
            label[order],
            masks[order],
            flags.astype(np.uint8),
        )

    def write(self, file: IO[bytes], more: dict[str, Any]) -> None:
        """Writes the store."""
        writer = ArrayFileWriter(file)
        lengths = np.empty(len(self._images), np.int64)
        crcs = np.empty(len(self._images), np.uint32)
        writer.add_bytes("data", self._data(lengths, crcs))
        for name, array in self._arrays.items():
            writer.add(name, array)
        counts = self._columns.annotations
        writer.add("starts", np.concatenate([[0], np.cumsum(counts, dtype=np.int64)]))
        ids = [image.id for image in self._images]
        write_columns(writer, lengths, crcs, self._names, ids, self._columns)
        writer.finish(self.info | more)

    def _data(self, lengths: np.ndarray, crcs: np.ndarray) -> Iterator[bytes]:
        """[image_id, file_name, [segmentation, ...]] of each image, and its length and checksum."""
        first = 0
        counts = self._columns.annotations.tolist()
        rows = zip(self._images, self._names, counts, strict=True)
        for i, (image, name, count) in enumerate(rows):
            texts = b",".join(self._texts[first : first + count])
            text = b"[%d,%b,[%b]]" % (image.id, msgspec.json.encode(name), texts)
            lengths[i], crcs[i] = len(text), zlib.crc32(text)
            first += count
            yield text


def _paths(image_root: str | Path, names: list[str]) -> list[str]:
    """The names in the folder; `inside` looks at those that could lead out of it."""
    prefix = os.path.join(image_root, "")
    return [
        inside(image_root, name, "images")
        if "/" in name or "\0" in name or name in ("", ".", "..")
        else prefix + name
        for name in names
    ]


def _not_plain(texts: list) -> list[int]:
    """The places of texts that are no valid polygons of plain numbers below _SIZE."""
    places, known = [], {}
    for first in range(0, len(texts), _CHUNK):
        chunk = texts[first : first + _CHUNK]
        zeros = b"\0".join(chunk).translate(_DIGITS, b"- \t\r\n")
        far = _reaches_far(zeros)
        shapes = zeros.translate(None, b"0.").split(b"\0")
        _require(len(shapes) == len(chunk))
        for row, shape in enumerate(shapes, start=first):
            plain = known.get(shape)
            if plain is None:
                plain = known[shape] = _POLYGONS.fullmatch(shape) is not None
            if plain and far:
                zeros = bytes(texts[row]).translate(_DIGITS, b"- \t\r\n")
                plain = not _reaches_far(zeros)
            if not plain:
                places.append(row)
    return places


def _reaches_far(zeros: bytes) -> bool:
    # From the right, since what a mark begins with is rarer than the zeros it ends with.
    return any(zeros.rfind(mark) >= 0 for mark in _FAR)


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
