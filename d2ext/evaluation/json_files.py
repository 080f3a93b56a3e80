"""JSON files of a known form, parsed by msgspec without dicts, and their columns."""

import contextlib
import json
import re
from collections.abc import Hashable, Sequence
from itertools import chain
from operator import attrgetter
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from d2ext.data.formats.coco_objects import short
from d2ext.data.formats.other_formats import advice
from d2ext.errors import UserError

Box = tuple[float, float, float, float]


def decoded(path: Path, kind: Any, wanted: str, form: str) -> Any:
    """A JSON file as a msgspec type.

    Args:
        path: the file.
        kind: the type.
        wanted: what it should be, for messages.
        form: that format's name in `other_formats`: `coco` or `results`.

    Raises:
        UserError: it cannot be read, is no JSON, cut off, or of another form.
    """
    try:
        data = path.read_bytes()
    except OSError as e:
        raise UserError(f"cannot read {path}: {e.strerror}; check the path") from e
    try:
        with contextlib.suppress(msgspec.DecodeError):
            return msgspec.json.decode(data, type=kind)
        content = json.loads(data)  # knows NaN and UTF-16, and says where it is bad
        try:
            return msgspec.convert(content, kind)
        except msgspec.ValidationError as e:
            reason = re.sub(r" - at `\$(.+)`", r" at \1", str(e)).replace("`", "")
            known = f"; it is {text}" if (text := advice(path, form)) else ""
            raise UserError(f"{path} is no {wanted} ({reason}){known}") from e
    except (ValueError, RecursionError) as e:
        remedy = f"it is {text}" if (text := advice(path, form)) else "write it once more"
        raise UserError(f"{path} is cut off or no JSON ({short(e)}); {remedy}") from e


def box_column(entries: Sequence[Any]) -> np.ndarray:
    """Their `bbox`, float64 (N, 4)."""
    numbers = chain.from_iterable(map(attrgetter("bbox"), entries))
    return np.fromiter(numbers, np.float64, 4 * len(entries)).reshape(-1, 4)


def index_column(entries: Sequence[Any], name: str, ids: Sequence[Hashable]) -> np.ndarray:
    """The place in `ids` of an attribute of each, int64 (N,); -1 where it is none of them."""
    values = list(map(attrgetter(name), entries))
    # All at once, unless there are texts, which numpy would take for numbers, or huge numbers.
    if set(map(type, values)) == set(map(type, ids)) == {int}:
        with contextlib.suppress(OverflowError):
            known, asked = np.array(ids, np.int64), np.array(values, np.int64)
            order = np.argsort(known)
            place = order[np.searchsorted(known, asked, sorter=order).clip(max=len(ids) - 1)]
            return np.where(known[place] == asked, place, -1)
    index = {id_: i for i, id_ in enumerate(ids)}
    return np.array([index.get(value, -1) for value in values], np.int64)
