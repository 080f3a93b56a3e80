"""A COCO dict that is being fixed, with a log of its changes."""

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


class MutableCoco:
    """A COCO dict whose lists are edited in place; rows keep their indices until a round ends.

    Attributes:
        content: The COCO dict.
        files: Image folder, or None.
        columns: Table of the content at the start of the round.
        changes: One line for each change.
        done: Number of changes.
        drop: Whether images and annotations that the user could still repair may be removed.
        of_text: For each part, the integer ids assigned to ids that are text.
    """

    def __init__(self, content: dict, files: Any = None, drop: bool = False):
        self.content = content
        self.files = files
        self.drop = drop
        self.changes: list[str] = []
        for part in PARTS:
            content[part] = list(content[part])
        # The row of each entry in the original file, where the user can look it up.
        self._origin: dict[str, list[int | None]] = {
            part: list(range(len(content[part]))) for part in PARTS
        }
        self.of_text: dict[str, dict[str, int]] = {part: {} for part in PARTS}
        self._ids: dict[str, Counter] = {}
        self._fresh: dict[str, Any] = {}
        self._names: dict[str, dict[str, int]] = {}
        self.columns: CocoTable

    @property
    def done(self) -> int:
        """Return the number of changes so far."""
        return len(self.changes)

    def begin(self, columns: CocoTable) -> None:
        """Start a round."""
        self.columns = columns
        self._ids, self._fresh, self._names = {}, {}, {}

    def end(self) -> None:
        """End a round: delete the removed entries."""
        for part in PARTS:
            kept = [i for i, e in enumerate(self.content[part]) if e is not _GONE]
            self.content[part] = [self.content[part][i] for i in kept]
            self._origin[part] = [self._origin[part][i] for i in kept]

    def get(self, part: str, row: int) -> Any:
        """Return an entry, or None if it has been removed."""
        entry = self.content[part][row]
        return None if entry is _GONE else entry

    def set(self, part: str, row: int, what: str, **values: Any) -> None:
        """Set values of an entry; None removes a key."""
        entry = {**self.content[part][row], **values}
        removed = {k for k, v in values.items() if v is None}
        self.content[part][row] = {k: v for k, v in entry.items() if k not in removed}
        self.note(part, row, what)

    def replace(self, part: str, row: int, entry: dict, what: str) -> None:
        """Replace an entry."""
        self.content[part][row] = entry
        self.note(part, row, what)

    def remove_if_allowed(self, part: str, row: int, why: str) -> None:
        """Remove an entry that the user could still repair, but only if `drop` is set.

        An image is kept as long as another one has the same id; otherwise its annotations would be
        assigned to the other image.
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
        """Log a change."""
        self.changes.append(printable(f"{self.where(part, row)}: {what}"))

    def where(self, part: str, row: int) -> str:
        """Return the place of an entry in the original file."""
        origin = self._origin[part][row]
        return "a new entry" if origin is None else f"{part}[{origin}]"

    def fresh_id(self, part: str) -> int:
        """Return the smallest positive id that no entry has and no annotation refers to."""
        if part not in self._fresh:
            taken = {*self._taken(part), *self.of_text[part].values()}
            if key := _REFERENCES.get(part):
                entries = (e for e in self.content["annotations"] if isinstance(e, dict))
                taken.update(json_numbers.integer(e.get(key)) for e in entries)
            self._fresh[part] = (i for i in itertools.count(1) if i not in taken)
        return next(self._fresh[part])

    def integer_id(self, part: str, value: Any) -> int:
        """Return an entry's id as an integer; an id that is text always gets the same integer."""
        number = json_numbers.integer(value)
        if isinstance(value, str):
            # "7" means 7, and so does "07", unless 7 exists as well.
            if number is None or (str(number) != value and self._taken(part)[number] > 1):
                if value not in self.of_text[part]:
                    self.of_text[part][value] = self.fresh_id(part)
                return self.of_text[part][value]
        return self.fresh_id(part) if number is None else number

    def reference(self, part: str, value: Any) -> int | None:
        """Return the id that an annotation refers to, as returned by `integer_id`, or None.

        An annotation may also refer to a category by name, and to an image by its file name, the
        last part of that, or its stem, if only one image has it. Any other text gets a new id.
        """
        known = self.of_text[part].get(value) if isinstance(value, str) else None
        known = json_numbers.integer(value) if known is None else known
        if known is None and isinstance(value, str) and value:
            named = self._named(part).get(value)
            known = self.of_text[part][value] = self.fresh_id(part) if named is None else named
        return known

    def _named(self, part: str) -> dict[str, int]:
        """Map every unambiguous name of an image or category to its id."""
        if part not in self._names:
            ids = defaultdict(set)
            for e in self.content[part]:
                if isinstance(e, dict) and isinstance(e.get("id"), int):
                    for name in _spellings(part, e):
                        ids[name].add(e["id"])
            self._names[part] = {name: min(some) for name, some in ids.items() if len(some) == 1}
        return self._names[part]

    def _taken(self, part: str) -> Counter:
        """Count the entries with each id; an id "7" that is not fixed yet counts as 7."""
        if part not in self._ids:
            entries = (e for e in self.content[part] if isinstance(e, dict))
            self._ids[part] = Counter(json_numbers.integer(e.get("id")) for e in entries)
        return self._ids[part]


def _spellings(part: str, entry: dict) -> set[str]:
    """Return the names that an annotation may have in place of an entry's id."""
    name = entry.get("name" if part == "categories" else "file_name")
    if not isinstance(name, str):
        return set()
    if part == "categories":
        return {name}
    base = os.path.basename(name)
    return {name, base, os.path.splitext(base)[0]}


def as_json(value: Any) -> str:
    """Format a value for the log."""
    return json.dumps(value, default=str)
