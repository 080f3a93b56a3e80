"""The state of a mending: the COCO dict, and a note of each change."""

import itertools
import json
import os
from collections import Counter, defaultdict
from typing import Any

from d2ext.data.formats.coco_file import PARTS
from d2ext.data.validation.coco import json_numbers
from d2ext.data.validation.coco.finding import printable
from d2ext.data.validation.coco.table import CocoTable

_GONE: Any = object()
_REFERENCES = {"images": "image_id", "categories": "category_id"}  # keys of annotations


class Mending:
    """Lists that are changed in place; rows keep their places until the end of a round.

    Attributes:
        content: the COCO dict.
        files: what is known of the image files, or None.
        columns: of the content, as the round began.
        changes: a line for each change.
        done: number of changes.
        drop: whether images and annotations may be removed that the user could still repair.
        of_text: of each part, the integer ids that were given to ids that are text.
    """

    def __init__(self, content: dict, files: Any = None, drop: bool = False):
        self.content = content
        self.files = files
        self.drop = drop
        self.changes: list[str] = []
        for part in PARTS:
            content[part] = list(content[part])
        # The row that an entry had in the file, which is what a reader can look up.
        self._origin = {part: list(range(len(content[part]))) for part in PARTS}
        self.of_text: dict[str, dict[str, int]] = {part: {} for part in PARTS}
        self._ids: dict[str, Counter] = {}
        self._fresh: dict[str, Any] = {}
        self._names: dict[str, dict[str, int]] = {}
        self.columns: CocoTable

    @property
    def done(self) -> int:
        """Number of changes so far."""
        return len(self.changes)

    def begin(self, columns: CocoTable) -> None:
        """Begin a round."""
        self.columns = columns
        self._ids, self._fresh, self._names = {}, {}, {}

    def end(self) -> None:
        """End a round: what was removed goes."""
        for part in PARTS:
            kept = [i for i, e in enumerate(self.content[part]) if e is not _GONE]
            self.content[part] = [self.content[part][i] for i in kept]
            self._origin[part] = [self._origin[part][i] for i in kept]

    def get(self, part: str, row: int) -> Any:
        """Return the entry, or None where it is removed already."""
        entry = self.content[part][row]
        return None if entry is _GONE else entry

    def set(self, part: str, row: int, what: str, **values: Any) -> None:
        """Change an entry's values; a value of None removes the key."""
        entry = {**self.content[part][row], **values}
        removed = {k for k, v in values.items() if v is None}
        self.content[part][row] = {k: v for k, v in entry.items() if k not in removed}
        self.note(part, row, what)

    def replace(self, part: str, row: int, entry: dict, what: str) -> None:
        """Put another entry in its place."""
        self.content[part][row] = entry
        self.note(part, row, what)

    def remove_if_allowed(self, part: str, row: int, why: str) -> None:
        """Remove an entry that the user could still repair, if `drop` is set; otherwise keep it.

        An image stays while another has its id: annotations of it would become the other's.
        """
        entry = self.get(part, row)
        id_ = json_numbers.integer(entry.get("id")) if isinstance(entry, dict) else None
        is_shared = part == "images" and id_ is not None and self._taken(part)[id_] > 1
        if self.drop and not is_shared:
            self.remove(part, row, why)

    def remove(self, part: str, row: int, why: str) -> None:
        """Remove an entry."""
        if self.get(part, row) is not None or self.content[part][row] is None:
            self.content[part][row] = _GONE
            self.note(part, row, f"removed: {why}")

    def add(self, part: str, entry: dict, what: str) -> None:
        """Append an entry."""
        self.content[part].append(entry)
        self._origin[part].append(None)
        self.note(part, len(self.content[part]) - 1, what)

    def note(self, part: str, row: int, what: str) -> None:
        """Note a change."""
        self.changes.append(printable(f"{self.where(part, row)}: {what}"))

    def where(self, part: str, row: int) -> str:
        """Return the place that an entry had in the file."""
        origin = self._origin[part][row]
        return "a new entry" if origin is None else f"{part}[{origin}]"

    def fresh_id(self, part: str) -> int:
        """Return the smallest id from 1 that no entry has and no annotation refers to."""
        if part not in self._fresh:
            taken = {*self._taken(part), *self.of_text[part].values()}
            if key := _REFERENCES.get(part):
                entries = (e for e in self.content["annotations"] if isinstance(e, dict))
                taken.update(json_numbers.integer(e.get(key)) for e in entries)
            self._fresh[part] = (i for i in itertools.count(1) if i not in taken)
        return next(self._fresh[part])

    def integer_id(self, part: str, value: Any) -> int:
        """Return an entry's id as an integer; "x" is the same one wherever it is referred to."""
        number = json_numbers.integer(value)
        if isinstance(value, str):
            # "7" is a 7, and so is "07", unless there is a 7 besides.
            if number is None or (str(number) != value and self._taken(part)[number] > 1):
                if value not in self.of_text[part]:
                    self.of_text[part][value] = self.fresh_id(part)
                return self.of_text[part][value]
        return self.fresh_id(part) if number is None else number

    def reference(self, part: str, value: Any) -> int | None:
        """Return the id that an annotation refers to, as `integer_id` made it, or None.

        A category may be referred to by its name, and an image by its file name, or the last part
        of it without its suffix, if one image alone has that. Another text gets an id.
        """
        known = self.of_text[part].get(value) if isinstance(value, str) else None
        known = json_numbers.integer(value) if known is None else known
        if known is None and isinstance(value, str) and value:
            named = self._named(part).get(value)
            known = self.of_text[part][value] = self.fresh_id(part) if named is None else named
        return known

    def _named(self, part: str) -> dict[str, int]:
        """Return the ids of images or categories by all that may name them and names one alone."""
        if part not in self._names:
            ids = defaultdict(set)
            for e in self.content[part]:
                if isinstance(e, dict) and isinstance(e.get("id"), int):
                    for name in _spellings(part, e):
                        ids[name].add(e["id"])
            self._names[part] = {name: min(some) for name, some in ids.items() if len(some) == 1}
        return self._names[part]

    def _taken(self, part: str) -> Counter:
        """Count each integer among the ids; "7" is a 7 that is not fixed yet."""
        if part not in self._ids:
            entries = (e for e in self.content[part] if isinstance(e, dict))
            self._ids[part] = Counter(json_numbers.integer(e.get("id")) for e in entries)
        return self._ids[part]


def _spellings(part: str, entry: dict) -> set[str]:
    """Return what an annotation may have in place of an entry's id."""
    name = entry.get("name" if part == "categories" else "file_name")
    if not isinstance(name, str):
        return set()
    if part == "categories":
        return {name}
    base = os.path.basename(name)
    return {name, base, os.path.splitext(base)[0]}


def as_json(value: Any) -> str:
    """Return a value for a note."""
    return json.dumps(value, default=str)
