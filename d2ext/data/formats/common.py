"""What the readers share: a JSON file read with clear errors, names compared, areas of polygons."""

import contextlib
import difflib
import gc
import json
import os
import reprlib
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from operator import mul
from pathlib import Path
from typing import Any

import msgspec

from d2ext.errors import UserError

_shown = reprlib.Repr()
_shown.maxstring = _shown.maxother = 100


def shown(value: object) -> str:
    """A value of an annotation file for a message: shortened, however long or nested it is."""
    return _shown.repr(value)


def read_json(path: str | Path) -> Any:
    """Reads an annotation file; raises UserError as `read_bytes` and `parse_json` do."""
    return parse_json(read_bytes(path), path)


def parse_json(
    content: bytes,
    path: str | Path,
    make_object: Callable[[list[tuple[str, Any]]], Any] | None = None,
) -> Any:
    """The value of a JSON text in UTF-8, -16 or -32, with or without a byte order mark.

    Args:
        content: the text.
        path: where it comes from, for messages.
        make_object: makes an object of its keys and values; None makes a dict, in which the last
            of equal keys counts.

    Raises:
        UserError: it is no JSON, or is nested deeper than Python can follow.
    """
    try:
        if make_object is not None:
            return json.loads(content, object_pairs_hook=make_object)
        try:
            return msgspec.json.decode(content)  # three times as fast as json
        except msgspec.DecodeError:
            return json.loads(content)  # knows NaN and other encodings, and says where it failed
    except ValueError as e:  # bad JSON or bad UTF-8
        reason = str(e)
    except RecursionError:
        reason = "lists or objects are nested too deep"
    raise UserError(f"{path} is no valid JSON ({reason}); export or download the annotations again")


def read_bytes(path: str | Path) -> bytes:
    """The content of an annotation file.

    Raises:
        UserError: it is absent, or cannot be read.
    """
    path = Path(path)
    try:
        return path.read_bytes()
    except FileNotFoundError:
        remedy = "check the path (in a recipe's config: data.root, the folder that holds the data)"
        own = {  # the recipes' own sets
            "balloon/*/via_region_data.json": "balloon",
            "coco/annotations/instances_*2017.json": "coco",
        }
        for pattern, name in own.items():
            if path.match(pattern):
                command = f"python tools/prepare_data.py {name} --root DIR"
                remedy += f", or run {command} and train with data.root=DIR"
        raise UserError(f"the annotation file {path} does not exist; {remedy}") from None
    except OSError as e:
        raise UserError(f"cannot read the annotation file {path}: {e.strerror}") from e


@contextlib.contextmanager
def no_collection() -> Iterator[None]:
    """No garbage collection while a file is read; a decorator, too.

    It would look through the file's objects, which hold no circles, again and again.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def outline(path: str | Path, keys: Collection[str] = ()) -> Any:
    """The top level of a JSON file; lists and objects in it are left empty, but for `keys`.

    What is left empty is only skipped, which takes a fraction of the time of reading it.

    Raises:
        UserError: as `read_json` does.
    """

    def decode(key: str, part: msgspec.Raw) -> Any:
        empty = {b"[": b"[]", b"{": b"{}"}.get(bytes(memoryview(part)[:1]))
        return json.loads(bytes(part) if key in keys or not empty else empty)

    content = read_bytes(path)
    try:
        parts = msgspec.json.decode(content, type=dict[str, msgspec.Raw])
        return {key: decode(key, part) for key, part in parts.items()}
    except (ValueError, RecursionError):  # msgspec's errors are ValueErrors
        return parse_json(content, path)  # NaN, UTF-16, a list; or it says what is wrong


def inside(root: str | Path, name: object, where: str) -> str:
    """The path of an image that an annotation file names, which must lie in the image folder.

    The check is lexical: symbolic links in the folder may lead elsewhere.

    Args:
        root: the folder.
        name: as the annotation file has it, relative to the folder, or absolute and in it.
        where: the place in the annotation file, for messages.

    Raises:
        UserError: it is no text, empty, too long, or leads out of the folder.
    """
    fits = isinstance(name, str) and name and len(name) < 4096 and "\0" not in name
    if not fits or not is_text(name) or len(max(name.split("/"), key=len)) > 255:
        raise UserError(f"{where}: the image name {shown(name)} is no file name; correct it")
    # What has been checked is what will be opened: without the "..", which a link could turn.
    normal = os.path.normpath(os.path.relpath(name, root) if os.path.isabs(name) else name)
    if normal.split(os.sep, 1)[0] in ("..", "."):
        raise UserError(
            f"{where}: the image {shown(name)} is not in the image folder {root}; name it relative"
            " to that folder, or give the folder that holds all images (/ allows any)"
        )
    return os.path.join(root, normal)


def is_text(text: str) -> bool:
    """Whether UTF-8 can hold it: JSON's escapes can name halves of a surrogate pair."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def nearest(name: object, known: Iterable[str]) -> str:
    """A hint for an error message: the known name nearest to `name`, else all of them."""
    known = list(known)
    close = difflib.get_close_matches(str(name), known, n=1)
    if close:
        return f"did you mean {close[0]!r}?"
    return f"known: {', '.join(known[:20])}{', ...' * (len(known) > 20)}"


def polygon_area(polygon: Sequence[float]) -> float:
    """Area in square pixels of [x0, y0, x1, y1, ...] (shoelace formula)."""
    if not polygon:
        return 0.0
    xs, ys = polygon[::2], polygon[1::2]
    there = sum(map(mul, xs, ys[1:])) + xs[-1] * ys[0]  # map ends with the shorter one
    return abs(there - sum(map(mul, ys, xs[1:])) - ys[-1] * xs[0]) / 2


def natural(name: str) -> tuple:
    """A key that sorts names, numbers by their value and before words."""
    return (not name.isdecimal(), len(name) if name.isdecimal() else 0, name)


def by_name(
    found: Sequence[str], classes: Sequence[str], file: str | Path
) -> dict[str, int | None]:
    """The classes of a file as indices into those that are wanted; None for the others.

    Raises:
        UserError: the file has classes, and none of them is wanted.
    """
    index = {name: i for i, name in enumerate(classes)}
    if found and index.keys().isdisjoint(found):
        hint = nearest(classes[0], found) if classes else "name some"
        raise UserError(f"{file} has none of the classes {', '.join(map(shown, classes))}; {hint}")
    return {name: index.get(name) for name in found}
