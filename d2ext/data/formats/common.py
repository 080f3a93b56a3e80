"""What the readers share: a JSON file read with clear errors, names compared, areas of polygons."""

import difflib
import json
import os
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import Any

from d2ext.errors import UserError


def read_json(path: str | Path) -> Any:
    """Reads an annotation file.

    Raises:
        UserError: it is absent, cannot be read, or is no JSON.
    """
    path = Path(path)
    try:
        return json.loads(path.read_bytes())
    except FileNotFoundError:
        remedy = "check json_file, or set data.root to the folder that holds the data"
        own = {  # the recipes' own sets
            "balloon/*/via_region_data.json": "balloon",
            "coco/annotations/instances_*2017.json": "coco",
        }
        for pattern, name in own.items():
            if path.match(pattern):
                command = f"python tools/prepare_data.py {name} --root {path.parents[2]}"
                remedy += f", or fetch it: {command}"
        raise UserError(f"the annotation file {path} does not exist; {remedy}") from None
    except OSError as e:
        raise UserError(f"cannot read the annotation file {path}: {e.strerror}") from e
    except (ValueError, RecursionError) as e:  # bad JSON or bad UTF-8; nested without end
        raise UserError(
            f"{path} is no valid JSON ({e}); export or download the annotations again"
        ) from e


def outline(path: str | Path, keys: Collection[str] = ()) -> Any:
    """The top level of a JSON file; lists and objects in it are left empty, but for `keys`.

    What is left empty is only skipped, which takes a fraction of the time of reading it.

    Raises:
        UserError: as `read_json` does.
    """
    import msgspec

    def decode(key: str, part: msgspec.Raw) -> Any:
        empty = {b"[": b"[]", b"{": b"{}"}.get(bytes(memoryview(part)[:1]))
        return json.loads(bytes(part) if key in keys or not empty else empty)

    try:
        parts = msgspec.json.decode(Path(path).read_bytes(), type=dict[str, msgspec.Raw])
        return {key: decode(key, part) for key, part in parts.items()}
    except (OSError, ValueError, RecursionError):
        return read_json(path)  # NaN, UTF-16, a list; or it says what is wrong


def inside(root: str | Path, name: object, where: str) -> str:
    """The path of an image that an annotation file names, which must lie in the image folder.

    The check is lexical: symbolic links in the folder may lead elsewhere.

    Args:
        root: the folder.
        name: as the annotation file has it, relative to the folder.
        where: the place in the annotation file, for messages.

    Raises:
        UserError: it is no text, empty, absolute, or leads out of the folder.
    """
    if not isinstance(name, str) or not name or "\0" in name:
        raise UserError(f"{where}: the image name {name!r:.100} is no file name; correct it")
    if os.path.isabs(name) or os.path.normpath(name).split(os.sep)[0] in ("..", "."):
        raise UserError(
            f"{where}: the image {name!r:.300} is not in the image folder {root}; name it relative"
            " to that folder"
        )
    return os.path.join(root, name)


def nearest(name: object, known: Iterable[str]) -> str:
    """A hint for an error message: the known name nearest to `name`, else all of them."""
    known = list(known)
    close = difflib.get_close_matches(str(name), known, n=1)
    if close:
        return f"did you mean {close[0]!r}?"
    return f"known: {', '.join(known[:20])}{', ...' * (len(known) > 20)}"


def polygon_area(polygon: Sequence[float]) -> float:
    """Area in square pixels of [x0, y0, x1, y1, ...] (shoelace formula)."""
    xs, ys = polygon[::2], polygon[1::2]
    twice = sum(xs[i - 1] * y - x * ys[i - 1] for i, (x, y) in enumerate(zip(xs, ys, strict=True)))
    return abs(twice) / 2
