"""Named arrays in one file that any number of processes map into memory.

The file holds the bytes of the arrays, then a JSON with their offsets, then the length and checksum
of the JSON. It is written in one pass, and a truncated file is invalid. (Arrow's IPC files have no
checksums, and importing pyarrow takes 27 MB per process, half of an additional process's budget.)
"""

import itertools
import json
import mmap
import struct
import zlib
from collections.abc import Iterable
from typing import IO, Any

import numpy as np

_MAGIC = b"d2pages1"
_TRAILER = struct.Struct("<8sQQ")  # magic, length and CRC-32 of the JSON before it
_ALIGNMENT = 64  # bytes


class Damaged(Exception):
    """The array file is truncated, modified or invalid."""


class ArrayFileWriter:
    """Write arrays one after the other; `finish` completes the file."""

    def __init__(self, file: IO[bytes]):
        self._file = file
        self._at = 0
        self._arrays: dict[str, dict] = {}

    def add(self, name: str, array: np.ndarray) -> None:
        """Add an array, whose checksum readers verify when they open the file."""
        array = np.ascontiguousarray(array)
        self._align()
        entry = {"dtype": array.dtype.str, "shape": array.shape, "offset": self._at}
        data = array.reshape(-1).view(np.uint8)
        self._arrays[name] = {**entry, "crc": zlib.crc32(data.data)}
        self._write(data)

    def add_bytes(self, name: str, pieces: Iterable[bytes]) -> None:
        """Add bytes as a uint8 array, whose content readers do not verify on opening."""
        self._align()
        offset = self._at
        pieces = iter(pieces)
        while chunk := b"".join(itertools.islice(pieces, 256)):
            self._write(chunk)
        self._arrays[name] = {"dtype": "|u1", "shape": [self._at - offset], "offset": offset}

    def finish(self, info: dict[str, Any]) -> None:
        """Complete the file with the offsets of the arrays and `info` (JSON values)."""
        text = json.dumps({"arrays": self._arrays, "info": info}).encode()
        self._write(text)
        self._write(_TRAILER.pack(_MAGIC, len(text), zlib.crc32(text)))

    def _align(self) -> None:
        self._write(bytes(-self._at % _ALIGNMENT))

    def _write(self, data: Any) -> None:
        self._file.write(data)
        self._at += len(data)


def map_file(path: str) -> mmap.mmap:
    """Map a file into memory that all of its readers share.

    Raises:
        OSError: The file cannot be opened.
        Damaged: The file is empty.
    """
    with open(path, "rb") as f:
        try:
            return mmap.mmap(f.fileno(), 0, access=mmap.ACCESS_READ)
        except ValueError as e:
            raise Damaged(f"{path} is empty") from e


def read_arrays(buffer: Any) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Return the arrays, as views of the buffer, and the info.

    Raises:
        Damaged: The buffer is not a complete, unmodified file of `ArrayFileWriter`.
    """
    try:
        end = len(buffer) - _TRAILER.size
        magic, length, crc = _TRAILER.unpack(buffer[end:])
        text = bytes(buffer[end - length : end])
        if magic != _MAGIC or len(text) != length or zlib.crc32(text) != crc:
            raise Damaged("its trailer is invalid")
        content = json.loads(text)
        arrays = {}
        for name, entry in content["arrays"].items():
            dtype, shape = np.dtype(entry["dtype"]), tuple(entry["shape"])
            count = int(np.prod(shape))
            flat: Any = np.frombuffer(buffer, dtype, count, entry["offset"]) if count else []
            array = np.asarray(flat, dtype).reshape(shape)
            if "crc" in entry and zlib.crc32(array.reshape(-1).view(np.uint8).data) != entry["crc"]:
                raise Damaged(f"{name} does not match its checksum")
            arrays[name] = array
    except (struct.error, ValueError, IndexError, KeyError, TypeError) as e:
        raise Damaged(repr(e)) from e
    return arrays, content["info"]
