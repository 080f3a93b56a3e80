"""Helpers shared by the readers: files, folders, names, polygon areas, with clear errors."""

import codecs
import contextlib
import csv
import gc
import io
import itertools
import json
import os
import re
import reprlib
import sys
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from operator import mul
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import msgspec

from d2ext.data.formats.file_head import ARCHIVES, encoding_of
from d2ext.data.formats.other_formats import advice
from d2ext.errors import UserError
from d2ext.invocation import command
from d2ext.text import did_you_mean, shortened

_shown = reprlib.Repr()
_shown.maxstring = _shown.maxother = 100


def truncate_repr(value: object) -> str:
    """Return a short repr of a value from a file, for messages, even if it is long or nested."""
    return _shown.repr(value)


def read_json(path: str | Path) -> Any:
    """Read a JSON annotation file; raise UserError like `read_bytes` and `parse_json`."""
    return parse_json(read_bytes(path), path)


def parse_json(
    content: bytes,
    path: str | Path,
    make_object: Callable[[list[tuple[str, Any]]], Any] | None = None,
) -> Any:
    """Parse JSON text in UTF-8, UTF-16 or UTF-32, with or without a byte order mark.

    Args:
        content: The text.
        path: Where the text comes from, for messages.
        make_object: Builds an object from its keys and values; None builds a dict, in which the
            last of several equal keys wins.

    Raises:
        UserError: The text is not valid JSON, or is nested too deeply for Python.
    """
    try:
        if make_object is not None:
            return json.loads(content, object_pairs_hook=make_object)
        try:
            return msgspec.json.decode(content)  # three times as fast as json
        except msgspec.DecodeError:
            return json.loads(content)  # accepts NaN and other encodings, and locates errors
    except UnicodeDecodeError as e:
        raise _not_decoded(path, e) from None
    except ValueError as e:
        reason = str(e)
    except RecursionError:
        reason = "lists or objects are nested too deeply"
    remedy = f"it is {known}" if (known := advice(path)) else "export or download it again"
    raise UserError(f"{path} is not valid JSON ({reason}); {remedy}")


def read_bytes(path: str | Path) -> bytes:
    """Return the content of an annotation file.

    Raises:
        UserError: The file does not exist, cannot be read, or is an archive.
    """
    path = Path(path)
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        remedy = "check the path (in a recipe's config: data.root, the folder that holds the data)"
        own = {  # datasets of the bundled recipes
            "balloon/*/via_region_data.json": "balloon",
            "coco/annotations/instances_*2017.json": "coco",
            "VOC20*/ImageSets/Main/*.txt": "voc",
            "OpenImages/annotations/*.csv": "open_images",
        }
        for pattern, name in own.items():
            if path.match(pattern):
                prepare = f"{command('prepare')} {name} --root DIR"
                remedy += f", or run {prepare} and train with data.root=DIR"
        raise UserError(f"the annotation file {path} does not exist; {remedy}") from None
    except IsADirectoryError:
        raise UserError(f"{path} is a folder; give an annotation file") from None
    except OSError as e:
        raise UserError(f"cannot read the annotation file {path}: {e.strerror}") from e
    if content.startswith(ARCHIVES):
        raise UserError(f"{path} is {advice(path)}")
    return content


def read_text(path: str | Path) -> str:
    """Read a text file in UTF-8, or in UTF-16 or UTF-32 with a byte order mark.

    Raises:
        UserError: The file cannot be read or is in another encoding.
    """
    return _decoded(read_bytes(path), path)


def _decoded(content: bytes, path: str | Path, default: str = "utf-8") -> str:
    """Decode a file's content according to its byte order mark, or as `default` without one."""
    encoding = encoding_of(content)
    try:
        text = content.decode(default if encoding == "utf-8" else encoding)
    except UnicodeDecodeError as e:
        raise _not_decoded(path, e) from None
    if "\0" in text:
        raise UserError(
            f"{path} contains NUL characters (UTF-16 without a byte order mark?); save it as UTF-8"
        )
    return text


def _not_decoded(path: str | Path, e: UnicodeDecodeError) -> UserError:
    return UserError(
        f"{path} is not valid {e.encoding.upper()} (byte {e.start}: {e.reason}); save it as UTF-8,"
        " for example with `iconv -f CP1252 -t UTF-8`"
    )


def read_xml(path: str | Path) -> ElementTree.Element:
    """Read an XML file in the encoding that it declares, and strip namespaces from its tags.

    Raises:
        UserError: The file cannot be read or is not valid XML.
    """
    content = read_bytes(path)
    # Decode here: expat supports neither GBK nor Shift JIS, and fails on files that declare UTF-16
    # but are not UTF-16.
    declared = re.match(rb"\s*<\?xml[^>]*?encoding\s*=\s*[\"']([\w.:-]+)", content)
    encoding = declared[1].decode() if declared else "utf-8"
    try:
        if codecs.lookup(encoding).name.startswith(("utf-16", "utf-32")):
            encoding = "utf-8"
        root = ElementTree.fromstring(_decoded(content, path, encoding).lstrip())
        for element in root.iter():
            element.tag = element.tag.rpartition("}")[2]
    except LookupError:
        raise UserError(f"{path} is in an unknown encoding, {encoding}; save it as UTF-8") from None
    except (ElementTree.ParseError, ValueError, RecursionError) as e:
        reason = f"it is {known}" if (known := advice(path)) else "export or download it again"
        raise UserError(f"{path} is not valid XML ({e}); {reason}") from e
    return root


def read_typed(path: Path, kind: Any, wanted: str, form: str) -> Any:
    """Read a JSON file as a msgspec type.

    Args:
        path: Path of the file.
        kind: The type to decode.
        wanted: Name of what the file should be, for messages.
        form: Name of that format for `other_formats.advice`: `coco` or `results`.

    Raises:
        UserError: The file cannot be read, is truncated or not JSON, or does not fit `kind`.
    """
    try:
        data = path.read_bytes()
    except OSError as e:
        raise UserError(f"cannot read {path}: {e.strerror}; check the path") from e
    try:
        with contextlib.suppress(msgspec.DecodeError):
            return msgspec.json.decode(data, type=kind)
        content = json.loads(data)  # accepts NaN and UTF-16, and locates errors
        try:
            return msgspec.convert(content, kind)
        except msgspec.ValidationError as e:
            reason = re.sub(r" - at `\$(.+)`", r" at \1", str(e)).replace("`", "")
            known = f"; it is {text}" if (text := advice(path, form)) else ""
            raise UserError(f"{path} is not a {wanted} ({reason}){known}") from e
    except (ValueError, RecursionError) as e:
        remedy = f"it is {text}" if (text := advice(path, form)) else "write it again"
        raise UserError(f"{path} is truncated or not JSON ({short(e)}); {remedy}") from e


def short(value: object) -> str:
    """Return a value or an error for a message, truncated to about 100 characters."""
    text = f"no {value}" if isinstance(value, KeyError) else str(value)
    return text if len(text) <= 120 else text[:100] + "..."


def csv_rows(path: str | Path) -> csv.DictReader:
    """Read a CSV into dicts keyed by column, separated by commas, semicolons or tabs.

    Raises:
        UserError: The file cannot be read or is in another encoding.
        csv.Error: The file is malformed; iterating over the rows may raise it as well.
    """
    csv.field_size_limit(sys.maxsize)  # an outline of 10,000 corners exceeds the default
    text = read_text(path)
    separator = max(",;\t", key=text.partition("\n")[0].count)
    rows = csv.DictReader(io.StringIO(text, newline=""), delimiter=separator)
    rows.fieldnames = [name.strip().lstrip("#") for name in rows.fieldnames or ()]
    return rows


def text_lines(path: str | Path) -> Iterator[str]:
    """Yield the lines of a text file like `read_text`, without reading it as a whole.

    Raises:
        UserError: The file cannot be read or is in another encoding.
    """
    try:
        with open(path, "rb") as f:
            head = f.read(4096)
    except OSError:
        read_bytes(path)  # raises a clear error
        raise
    if head.startswith(ARCHIVES):
        raise UserError(f"{path} is {advice(path)}")
    try:
        with open(path, encoding=encoding_of(head), newline="") as f:
            yield from f
    except UnicodeDecodeError:
        read_text(path)  # raises an error that names the byte
        raise


def csv_lines(path: str | Path) -> Iterator[tuple[int, list[str]]]:
    """Yield the line number and the cells of each row of a CSV, which is not read as a whole.

    Cells are separated by commas, semicolons or tabs. Empty rows are skipped.

    Raises:
        UserError: The file cannot be read, is in another encoding, or is malformed.
    """
    csv.field_size_limit(sys.maxsize)
    lines = text_lines(path)
    first = next(lines, "")
    rows = csv.reader(itertools.chain([first], lines), delimiter=max(",;\t", key=first.count))
    try:
        for row in rows:
            if row:
                yield rows.line_num, row
    except csv.Error as e:
        raise UserError(f"{path} is not a valid CSV ({e}); download it again") from e


# Created by operating systems, file managers and servers; dot files are ignored anyway.
_LITTER = frozenset(
    ("__MACOSX", "@eaDir", "$RECYCLE.BIN", "System Volume Information", "lost+found")
)


def files_in(folder: str | Path, suffixes: Collection[str] | None = None) -> list[str]:
    """List the files in a folder and its subfolders, relative to the folder and sorted.

    Symbolic links are followed, except links to an ancestor folder, which would never end.
    Hidden files and folders and those created by operating systems (`__MACOSX`) are ignored.

    Args:
        folder: The folder to search.
        suffixes: Lowercase suffixes of the files to list; None lists all files.

    Raises:
        UserError: A folder cannot be read, or a link that may point to a folder is broken.
    """
    root = os.fspath(folder)
    found = []
    # Resolved, from the root to each folder.
    ancestors: dict[str, tuple[str, ...]] = {root: (os.path.realpath(root),)}
    for parent, folders, files in os.walk(root, onerror=_unreadable, followlinks=True):
        above, kept = ancestors.pop(parent), []
        for name in sorted(folders):
            path = os.path.join(parent, name)
            if is_litter(name):
                continue
            real = os.path.join(above[-1], name)
            if os.path.islink(path):
                real = os.path.realpath(path)
                if any(f"{one}{os.sep}".startswith(f"{real}{os.sep}") for one in above):
                    continue
            kept.append(name)
            ancestors[path] = (*above, real)
        folders[:] = kept
        for name in files:
            path, suffix = os.path.join(parent, name), os.path.splitext(name)[1].lower()
            if (suffixes is None or suffix in suffixes) and not is_litter(name):
                found.append(os.path.relpath(path, root))
            elif not suffix and os.path.islink(path) and not os.path.exists(path):
                raise UserError(
                    f"{path} is a broken symbolic link to {os.readlink(path)}; correct or remove it"
                )
    return sorted(found)


def is_litter(name: str) -> bool:
    """Return whether a file or folder name is hidden or created by an operating system."""
    return name.startswith(".") or name in _LITTER


def _unreadable(e: OSError) -> None:
    raise UserError(f"cannot read the folder {e.filename}: {e.strerror}") from e


def annotation_files(source: Path, suffix: str, usual: str = "") -> list[tuple[Path, str]]:
    """List the annotation files of a dataset that has one per image, sorted.

    Args:
        source: The folder of the files, which may have subfolders, or a single file.
        suffix: Suffix of the files, such as ".xml".
        usual: Subfolder that holds the files if it exists.

    Returns:
        Each file with its subfolder.

    Raises:
        UserError: There are no such files.
    """
    if source.is_file():
        return [(source, "")]
    if not source.is_dir():
        raise UserError(f"{source} does not exist; give the folder of the annotations")
    folder = source / usual if (source / usual).is_dir() else source
    if not (files := files_in(folder, {suffix})):
        raise UserError(f"{source} contains no {suffix} file; give the folder of the annotations")
    return [(folder / name, os.path.dirname(name)) for name in files]


@contextlib.contextmanager
def no_collection() -> Iterator[None]:
    """Disable garbage collection while reading a file, as a context manager or decorator.

    The collector would traverse the parsed objects, which have no cycles, over and over.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def outline(path: str | Path, keys: Collection[str] = ()) -> Any:
    """Return the top level of a JSON file, with all lists and objects emptied except for `keys`.

    Emptied parts are skipped, which takes a fraction of the time of parsing them.

    Raises:
        UserError: As in `read_json`.
    """

    def decode(key: str, part: msgspec.Raw) -> Any:
        empty = {b"[": b"[]", b"{": b"{}"}.get(bytes(memoryview(part)[:1]))
        return json.loads(bytes(part) if key in keys or not empty else empty)

    content = read_bytes(path)
    try:
        parts = msgspec.json.decode(content, type=dict[str, msgspec.Raw])
        return {key: decode(key, part) for key, part in parts.items()}
    except (ValueError, RecursionError):  # msgspec's errors are ValueErrors
        return parse_json(content, path)  # accepts NaN, UTF-16 and lists, or reports the error


def inside(root: str | Path, name: object, where: str) -> str:
    """Return the path of an image named in an annotation file, if it is inside the image folder.

    The check is lexical: symbolic links in the folder may lead elsewhere.

    Args:
        root: The image folder.
        name: Image name in the annotation file: relative to the folder, or an absolute path in it.
        where: Location in the annotation file, for messages.

    Raises:
        UserError: The name is not text, is empty or too long, or leads out of the folder.
    """
    if (
        not isinstance(name, str)
        or not 0 < len(name) < 4096
        or "\0" in name
        or not is_text(name)
        or len(max(name.split("/"), key=len)) > 255
    ):
        raise UserError(
            f"{where}: the image name {truncate_repr(name)} is not a valid file name; correct it"
        )
    # Open the path that was checked: an unresolved ".." after a link could lead elsewhere.
    normal = os.path.normpath(os.path.relpath(name, root) if os.path.isabs(name) else name)
    if normal.split(os.sep, 1)[0] in ("..", "."):
        raise UserError(
            f"{where}: the image {truncate_repr(name)} is not in the image folder {root}; give its"
            " path relative to that folder, or give the folder that holds all images (/ allows any)"
        )
    return os.path.join(root, normal)


def is_text(text: str) -> bool:
    """Return whether UTF-8 can encode the text: JSON escapes may hold half a surrogate pair."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def nearest(name: object, known: Iterable[str]) -> str:
    """Return a hint for an error message: the known name most like `name`, or the first 20."""
    known = list(known)
    return did_you_mean(name, known, f"known: {shortened(known, 20)}")


def not_read(left_out: Mapping[str, int], other_classes: int) -> dict[str, int]:
    """Count what a reader skips by reason, including objects of classes not requested."""
    return dict(Counter(left_out) + Counter({"of classes not asked for": other_classes}))


def polygon_area(polygon: Sequence[float]) -> float:
    """Return the area of [x0, y0, x1, y1, ...] in square pixels (shoelace formula)."""
    if not polygon:
        return 0.0
    xs, ys = polygon[::2], polygon[1::2]
    forward = sum(map(mul, xs, ys[1:])) + xs[-1] * ys[0]  # map stops at the shorter argument
    return abs(forward - sum(map(mul, ys, xs[1:])) - ys[-1] * xs[0]) / 2


def natural(name: str) -> tuple:
    """Return a sort key that orders numbers by value and before words."""
    return (not name.isdecimal(), len(name) if name.isdecimal() else 0, name)


def by_name(
    found: Sequence[str], classes: Sequence[str], file: str | Path
) -> dict[str, int | None]:
    """Map each class of a file to its index in `classes`, or to None if it is not requested.

    Raises:
        UserError: The file has classes, but none of the requested ones.
    """
    index = {name: i for i, name in enumerate(classes)}
    if found and index.keys().isdisjoint(found):
        hint = nearest(classes[0], found) if classes else "name some"
        raise UserError(
            f"{file} has none of the classes {', '.join(map(truncate_repr, classes))}; {hint}"
        )
    return {name: index.get(name) for name in found}
