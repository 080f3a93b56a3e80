"""Sequences of Detectron2 dataset dicts that are decoded one by one on access.

`columns_of` returns the heights, widths, objects and classes of any sequence of dataset dicts, a
list or a `Records`, without decoding the latter; `select` and `join` make new sequences without
copying dicts.
"""

import abc
import bisect
import functools
import json
import operator
import os
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import IO, Any

import msgspec
import numpy as np

from d2ext.data.formats.annotation_kinds import CROWD, DIFFICULT, GROUP_OF
from d2ext.data.records.array_file import ArrayFileWriter, map_file, read_arrays
from d2ext.data.records.columns import Columns, list_boxes, list_columns, no_keypoints
from d2ext.errors import UserError


class _Decoded(Sequence):
    """A sequence whose elements are created on access."""

    def __iter__(self) -> Iterator[dict]:
        # Sequence.__iter__ would treat an IndexError raised while decoding an element as the end.
        return map(self.__getitem__, range(len(self)))

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return select(self, np.arange(len(self))[index])
        i = operator.index(index)
        if not -len(self) <= i < len(self):
            raise IndexError(f"record {i} of {len(self)}")
        return self._record(i % len(self))

    @abc.abstractmethod
    def _record(self, i: int) -> dict:
        """Return the element at `i`, which is not negative."""


class Records(_Decoded):
    """Dataset dicts in a buffer written by `write_records` or `write_store`.

    Each access decodes an element again, so callers may modify it. Pickling a `Records` stores only
    the path of its file, unless it is in memory.

    Args:
        source: Path of the file, or bytes in memory.

    Raises:
        Damaged: The buffer is not a complete store.
        OSError: The file cannot be opened.
    """

    def __init__(self, source: str | bytes | memoryview):
        self._source = source
        buffer = map_file(source) if isinstance(source, str) else source
        self._arrays, self.info = read_arrays(buffer)
        self._data = self._arrays["data"].data
        self._ends = self._arrays["ends"]

    @functools.cached_property
    def columns(self) -> Columns:
        """Return the columns of these records, as views of the buffer."""
        columns = Columns(*(self._arrays[name] for name in Columns.NAMES))
        if len(columns.keypoints) == len(columns.flags):
            return columns
        return replace(columns, keypoints=no_keypoints(len(columns.flags)))

    def boxes(self) -> np.ndarray:
        """Return the boxes of all annotations, float64 (M, 4), x0, y0, x1, y1 in pixels.

        Files that hold no array of them, written by older versions, are decoded.
        """
        return self._arrays["boxes"] if "boxes" in self._arrays else list_boxes(self)

    def file_names(self) -> list[str]:
        """Return the `file_name` of each record."""
        return json.loads(bytes(self._arrays["file_names"]))

    def image_ids(self) -> list:
        """Return the `image_id` of each record, or None if it has none."""
        return json.loads(bytes(self._arrays["image_ids"]))

    def __len__(self) -> int:
        return len(self._ends)

    def _record(self, i: int) -> dict:
        data = self._data[self._ends[i - 1] if i else 0 : self._ends[i]]
        if zlib.crc32(data) != self._arrays["crcs"][i]:
            raise UserError(
                f"the cached dataset {self._source} is damaged; delete it and start again"
            )
        content = _decode(data)
        return content if isinstance(content, dict) else self._from_columns(i, *content)

    def _from_columns(
        self, i: int, image_id: int, file_name: str, masks: list, keypoints: list | None = None
    ) -> dict:
        """Return the record of a COCO file, for which `data` holds only these values."""
        arrays = self._arrays
        part = slice(arrays["starts"][i], arrays["starts"][i + 1])
        rows = (arrays[name][part].tolist() for name in ("boxes", "flags", "categories", "areas"))
        annotations = []
        for box, flags, label, area, mask, points in zip(
            *rows, masks, keypoints or [None] * len(masks), strict=True
        ):
            crowd = flags & CROWD
            annotation = {"bbox": box, "bbox_mode": 0, "iscrowd": crowd, "category_id": label}
            if flags & DIFFICULT:
                annotation["difficult"] = 1
            if flags & GROUP_OF:
                annotation["is_group_of"] = 1
            if area == area:
                annotation["area"] = area
            if mask is not None:
                annotation["segmentation"] = mask
            if points is not None:
                annotation["keypoints"] = points
            annotations.append(annotation)
        return {
            "file_name": file_name,
            "image_id": image_id,
            "height": int(arrays["heights"][i]),
            "width": int(arrays["widths"][i]),
            "annotations": annotations,
        }

    def __reduce__(self) -> tuple:
        source = self._source
        return Records, (source if isinstance(source, str) else bytes(source),)


class View(_Decoded):
    """Selected and optionally transformed dicts of other sequences; see select, join, applied.

    Args:
        parts: Sequences to concatenate.
        indices: Indices into the concatenation, int64 (N,); None selects all.
        function: Picklable function that maps a dict to the dict to return.
    """

    def __init__(
        self,
        parts: Sequence[Sequence[dict]],
        indices: np.ndarray | None = None,
        function: Callable[[dict], dict] | None = None,
    ):
        self.parts = parts
        self.indices = indices
        self.function = function
        self._starts = np.cumsum([0, *map(len, parts)]).tolist()

    def __len__(self) -> int:
        return self._starts[-1] if self.indices is None else len(self.indices)

    def _record(self, i: int) -> dict:
        i = i if self.indices is None else int(self.indices[i])
        part = bisect.bisect_right(self._starts, i) - 1
        record = self.parts[part][i - self._starts[part]]
        return self.function(record) if self.function else record

    @property
    def columns(self) -> Columns:
        """Return the columns of these records, without boxes."""
        return self._joined(boxes=False)

    def columns_with_boxes(self) -> Columns:
        """Return the columns of these records, with boxes."""
        return self._joined(boxes=True)

    def _joined(self, boxes: bool) -> Columns:
        parts = [columns_of(part, boxes) for part in self.parts]
        names = [*Columns.NAMES, "boxes"] if boxes else Columns.NAMES
        columns = Columns(*(np.concatenate([getattr(c, n) for c in parts]) for n in names))
        if self.indices is not None:
            columns = columns.take(self.indices)
        changed = getattr(self.function, "columns", None)
        return changed(columns) if changed else columns


def select(records: Sequence[dict], indices: Sequence[int] | np.ndarray) -> View:
    """Return the records with these indices, in this order; indices may repeat.

    Args:
        records: Dataset dicts.
        indices: Indices as in numpy: integers, or a bool for each record.

    Raises:
        IndexError: An index is out of range.
    """
    chosen = np.asarray(indices, None if len(indices) else np.int64)
    return View([records], np.arange(len(records))[chosen])


def join(parts: Sequence[Sequence[dict]]) -> View:
    """Concatenate sequences of records."""
    return View(parts)


def applied(records: Sequence[dict], function: Callable[[dict], dict]) -> View:
    """Return the records, each transformed by a picklable function on access.

    If the function changes anything that columns hold (sizes, crowds, classes, mask kinds), it must
    have a method `columns` that applies the same change to `Columns`.
    """
    return View([records], function=function)


def relabeled(records: Sequence[dict], labels: Sequence[int | None]) -> View:
    """Return the records with `category_id` c as labels[c]; drop annotations where it is None.

    The input is not modified.
    """
    return View([records], function=_Relabel(tuple(labels)))


@dataclass(frozen=True)
class _Relabel:
    labels: tuple[int | None, ...]

    def __call__(self, record: dict) -> dict:
        if "annotations" not in record:
            return record
        pairs = [(a, self.labels[a["category_id"]]) for a in record["annotations"]]
        kept = [{**a, "category_id": label} for a, label in pairs if label is not None]
        return {**record, "annotations": kept}

    def columns(self, columns: Columns) -> Columns:
        return columns.relabeled(self.labels)


def columns_of(records: Sequence[dict], boxes: bool = False) -> Columns:
    """Return the columns of a list or, without decoding, of any sequence of this module.

    Args:
        records: Dataset dicts.
        boxes: Whether to include the boxes, which take more memory than all other columns.
    """
    if isinstance(records, Records):
        return replace(records.columns, boxes=records.boxes()) if boxes else records.columns
    if isinstance(records, View):
        return records.columns_with_boxes() if boxes else records.columns
    columns = list_columns(records)
    return replace(columns, boxes=list_boxes(records)) if boxes else columns


def file_names_of(records: Sequence[dict]) -> list[str]:
    """Return the `file_name` of each record, without decoding a `Records`."""
    return _named(records, "file_name", Records.file_names)


def image_ids_of(records: Sequence[dict]) -> list:
    """Return the `image_id` of each record, or None, without decoding a `Records`."""
    return _named(records, "image_id", Records.image_ids)


def _named(records: Sequence[dict], key: str, stored: Callable[[Records], list]) -> list:
    if isinstance(records, Records):
        return stored(records)
    if isinstance(records, View):
        values = [value for part in records.parts for value in _named(part, key, stored)]
        return values if records.indices is None else [values[i] for i in records.indices]
    return [r.get(key) for r in records]


def write_records(file: IO[bytes], records: Sequence[dict], info: dict[str, Any]) -> None:
    """Write dataset dicts to a file that `Records` reads.

    Args:
        file: File to write to.
        records: Dataset dicts of JSON values (box modes become integers, tuples become lists).
        info: JSON values for `Records.info`.

    Raises:
        UserError: A record holds other values.
    """
    try:
        data = [json.dumps(record, default=os.fspath).encode() for record in records]
    except (TypeError, ValueError) as e:
        raise UserError(f"the dataset cannot be cached: {e}; use plain numbers and strings") from e
    writer = ArrayFileWriter(file)
    writer.add_bytes("data", data)
    writer.add("boxes", list_boxes(records))
    write_columns(
        writer,
        np.fromiter(map(len, data), np.int64, len(data)),
        np.fromiter(map(zlib.crc32, data), np.uint32, len(data)),
        file_names_of(records),
        image_ids_of(records),
        columns_of(records),
    )
    writer.finish(info)


def write_columns(
    writer: ArrayFileWriter,
    lengths: np.ndarray,
    crcs: np.ndarray,
    file_names: list,
    image_ids: list,
    columns: Columns,
) -> None:
    """Write what stores hold besides `data`: ends and checksums of records in it, and columns."""
    writer.add("ends", np.cumsum(lengths, dtype=np.int64))
    writer.add("crcs", crcs)
    for name, values in (("file_names", file_names), ("image_ids", image_ids)):
        text = json.dumps(values, default=os.fspath).encode()
        writer.add(name, np.frombuffer(text, np.uint8))
    for name in Columns.NAMES:
        array = getattr(columns, name)
        writer.add(name, array if name != "keypoints" or array.any() else array[:0])


def _decode(data: memoryview) -> Any:
    try:
        return msgspec.json.decode(data)
    except msgspec.DecodeError:  # NaN, or a number beyond the range of a float
        return json.loads(bytes(data))
