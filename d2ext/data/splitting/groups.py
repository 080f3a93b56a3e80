"""Group the images of a dataset that must stay on the same side of a split."""

import hashlib
import importlib.util
import json
import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from d2ext.data.formats.images import existing
from d2ext.data.records.cache import cached_value
from d2ext.data.splitting.near_duplicates import near_duplicates, perceptual_hashes
from d2ext.errors import UserError
from d2ext.text import plural
from d2ext.waiting import waiting_for


@dataclass(frozen=True)
class Groups:
    """Groups of images that stay together.

    Attributes:
        of_image: Group of each image, from 0 without gaps, int64 (N,).
        lines: Sentences about what was found.
    """

    of_image: np.ndarray
    lines: list[str] = field(default_factory=list)


def find_groups(
    names: Sequence[str],
    image_root: str | Path | None,
    group_by: str | None,
    option: str,
) -> Groups:
    """Group images with the same name, with the same match of a pattern, and near-duplicates.

    Near-duplicates of near-duplicates belong together, too.

    Args:
        names: File names of the images.
        image_root: Folder of the images; None does not search for near-duplicates.
        group_by: Regular expression that is searched in the names. Images with the same capture
            groups, or the same match if there are none, are a group; others stand alone.
        option: Name of the option with the pattern, for messages.

    Raises:
        UserError: The pattern is not a regular expression, or matches no name.
    """
    sets = _Sets(len(names))
    lines = []
    sets.join(_equal(names))
    if group_by is not None:
        keys = _keys(names, group_by, option)
        sets.join(_equal(keys))
        lone = keys.count(None)
        line = f"{option}: {plural(len(set(keys) - {None}), 'group')} of {len(keys) - lone} images"
        verb = "does" if lone == 1 else "do"
        lines.append(line + (f"; {plural(lone, 'image')} {verb} not match" if lone else ""))
    if image_root is not None:
        paths = [existing(os.path.join(image_root, name)) for name in names]
        pairs, failed = _cached_pairs(paths, image_root)
        sets.join(pairs)
        if compared := len(names) - len(failed):
            lines.append(_near_line(pairs, compared))
        for i, reason in list(failed.items())[:1]:
            lines.append(
                f"near-duplicates: {len(failed)} of {plural(len(names), 'photo')} not compared,"
                f" such as {paths[i]}: {reason}"
            )
    return Groups(sets.numbered(), lines)


def _near_line(pairs: Sequence[Sequence[int]], compared: int) -> str:
    rows = sorted({i for pair in pairs for i in pair})
    if not rows:
        return f"near-duplicates: none among {compared} photos"
    index = {row: i for i, row in enumerate(rows)}
    sets = _Sets(len(rows))
    sets.join([index[i], index[j]] for i, j in pairs)
    groups = plural(int(sets.numbered().max()) + 1, "group")
    return f"near-duplicates: {groups} of {len(rows)} photos, of {compared}, never on both sides"


def _keys(names: Sequence[str], group_by: str, option: str) -> list[tuple | None]:
    try:
        pattern = re.compile(group_by)
    except re.error as e:
        raise UserError(f"{option} {group_by!r} is not a regular expression: {e}") from e
    found = [pattern.search(name) for name in names]
    if names and not any(found):
        raise UserError(f"{option} {group_by!r} matches no file name, such as {names[0]}")
    return [match and (match.groups() or (match[0],)) for match in found]


def _equal(keys: Sequence) -> Iterable[tuple[int, int]]:
    """Yield each image with the first one that has the same key; None is equal to nothing."""
    first: dict = {}
    for i, key in enumerate(keys):
        if key is not None and (j := first.setdefault(key, i)) != i:
            yield j, i


def _cached_pairs(
    paths: Sequence[str], image_root: str | Path
) -> tuple[list[list[int]], dict[int, str]]:
    """Return enough near-duplicate pairs to connect each group, and why photos were not compared.

    They are cached until a photo, by its size and time, or the folder changes.
    """

    def compute() -> list:
        with waiting_for(f"the search for near-duplicates among {len(paths)} photos"):
            hashes, failed = perceptual_hashes(paths)
            rows = np.delete(np.arange(len(paths)), list(failed))
            sets, kept = _Sets(len(paths)), []
            for pairs in near_duplicates(hashes[rows]):
                kept += sets.join(rows[pairs].T.tolist())
            return [kept, list(failed.items())]

    heic = importlib.util.find_spec("pillow_heif") is not None  # decides what can be read
    content = json.dumps([list(paths), [_stamp(path) for path in paths], heic]).encode()
    digest = hashlib.sha256(content).hexdigest()
    pairs, failed = cached_value(image_root, f"near-duplicates {digest}", compute)
    return pairs, dict(failed)


def _stamp(path: str) -> list[int] | None:
    try:
        found = os.stat(path)
    except (OSError, ValueError):
        return None
    return [found.st_size, found.st_mtime_ns]


class _Sets:
    """Disjoint sets of the numbers below `count` (union-find)."""

    def __init__(self, count: int):
        self.parents = list(range(count))

    def join(self, pairs: Iterable[Sequence[int]]) -> list[list[int]]:
        """Join the sets of each pair; return the pairs that were in different sets before."""
        joined = []
        for i, j in pairs:
            a, b = self._root(i), self._root(j)
            if a != b:
                self.parents[max(a, b)] = min(a, b)
                joined.append([i, j])
        return joined

    def numbered(self) -> np.ndarray:
        """Return the number of each set, from 0 without gaps, by its members."""
        roots = [self._root(i) for i in range(len(self.parents))]
        return np.unique(roots, return_inverse=True)[1]

    def _root(self, i: int) -> int:
        while self.parents[i] != i:
            self.parents[i] = self.parents[self.parents[i]]
            i = self.parents[i]
        return i
