"""Read the parts of a file that identify its format."""

import json
import re
from dataclasses import dataclass
from typing import Any

_MARKS = {  # byte order marks; UTF-32 first, because its mark begins with UTF-16's
    b"\xef\xbb\xbf": "utf-8-sig",
    b"\xff\xfe\x00\x00": "utf-32",
    b"\x00\x00\xfe\xff": "utf-32",
    b"\xff\xfe": "utf-16",
    b"\xfe\xff": "utf-16",
}
ARCHIVES = (b"PK\x03\x04", b"\x1f\x8b")  # first bytes of ZIP and gzip files
_ROOT = re.compile(r"<(?:[\w.-]+:)?([A-Za-z_][\w.-]*)")  # the first element of an XML file


@dataclass(frozen=True)
class FileHead:
    """The parts of a file that identify its format.

    Attributes:
        suffix: Suffix in lower case, with its dot.
        root: Name of the first element of an XML file; empty for other files.
        is_video: Whether an XML file contains tracks.
        first_line: First line of a file that is neither XML nor JSON.
        value: Value of a JSON file; for a large file, lists and objects inside it may be empty.
    """

    suffix: str = ""
    root: str = ""
    is_video: bool = False
    first_line: str = ""
    value: Any = None

    @property
    def columns(self) -> frozenset[str]:
        """Return the column names in the first line of a CSV file."""
        return frozenset(name.strip(' #"') for name in re.split("[,;\t]", self.first_line.strip()))


def encoding_of(content: bytes) -> str:
    """Return the encoding of a byte order mark, which decoding drops; UTF-8 without a mark."""
    return next((name for mark, name in _MARKS.items() if content.startswith(mark)), "utf-8")


def read_head(content: bytes, suffix: str) -> FileHead:
    """Return the parts of a file that identify its format.

    Args:
        content: Content of the file.
        suffix: Suffix of the file name, in lower case, with its dot.

    Raises:
        ValueError, RecursionError: The file starts like JSON, but is damaged.
    """
    text = content.decode(encoding_of(content), "replace").lstrip()
    if text.startswith("<"):
        root = _ROOT.search(text[:10_000])
        return FileHead(suffix, root=root[1] if root else "", is_video="<track" in text)
    if text.startswith(("{", "[")):
        return FileHead(suffix, value=_json(text))
    return FileHead(suffix, first_line=text.partition("\n")[0])


def _json(text: str) -> Any:
    """Return the value of a JSON text, or of its first line if each line is a value (NDJSON)."""
    try:
        return json.loads(text)
    except ValueError:
        return [json.loads(text.partition("\n")[0])]
