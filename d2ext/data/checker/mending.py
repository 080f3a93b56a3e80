"""The state of a mending: the COCO dict, and a note of each change."""

import itertools
import json
from collections import Counter
from typing import Any

from d2ext.data.checker import numbers
from d2ext.data.checker.columns import PARTS, Columns
from d2ext.data.checker.finding import shown

_GONE: Any = object()


class Mending:
    """Lists that are changed in place; rows keep their places until the end of a round.

    Attributes:
        content: the COCO dict.
        files: what is known of the image files, or None.
        columns: of the content, as the round began.
        changes: a line for each change.
        done: number of changes.
        of_text: of each part, the integer ids that were given to ids that are text.
    """

    def __init__(self, content: dict, files: Any = None):
        self.content = content
        self.files = files
        self.changes: list[str] = []
        for part in PARTS:
            content[part] = list(content[part])
        # The row that an entry had in the file, which is what a reader can look up.
        self._origin = {part: list(range(len(content[part]))) for part in PARTS}
        self.of_text: dict[str, dict[str, int]] = {part: {} for part in PARTS}
        self._ids: dict[str, Counter] = {}
        self._fresh: dict[str, Any] = {}
        self.columns: Columns

    @property
    def done(self) -> int:
        """Number of changes so far."""
        return len(self.changes)

    def begin(self, columns: Columns) -> None:
        """Begins a round."""
        self.columns = columns
        self._ids, self._fresh = {}, {}

    def end(self) -> None:
        """Ends a round: what was removed goes."""
        for part in PARTS:
            kept = [i for i, e in enumerate(self.content[part]) if e is not _GONE]
            self.content[part] = [self.content[part][i] for i in kept]
            self._origin[part] = [self._origin[part][i] for i in kept]

    def get(self, part: str, row: int) -> Any:
        """The entry, or None where it is removed already."""
        entry = self.content[part][row]
        return None if entry is _GONE else entry

    def set(self, part: str, row: int, what: str, **values: Any) -> None:
        """Changes an entry's values; a value of None removes the key."""
        entry = {**self.content[part][row], **values}
        removed = {k for k, v in values.items() if v is None}
        self.content[part][row] = {k: v for k, v in entry.items() if k not in removed}
        self.note(part, row, what)

    def replace(self, part: str, row: int, entry: dict, what: str) -> None:
        """Puts another entry in its place."""
        self.content[part][row] = entry
        self.note(part, row, what)

    def remove(self, part: str, row: int, why: str) -> None:
        """Removes an entry."""
        if self.get(part, row) is not None or self.content[part][row] is None:
            self.content[part][row] = _GONE
            self.note(part, row, f"removed: {why}")

    def add(self, part: str, entry: dict, what: str) -> None:
        """Appends an entry."""
        self.content[part].append(entry)
        self._origin[part].append(None)
        self.note(part, len(self.content[part]) - 1, what)

    def note(self, part: str, row: int, what: str) -> None:
        """Notes a change."""
        self.changes.append(shown(f"{self.where(part, row)}: {what}"))

    def where(self, part: str, row: int) -> str:
        """The place that an entry had in the file."""
        origin = self._origin[part][row]
        return "a new entry" if origin is None else f"{part}[{origin}]"

    def fresh_id(self, part: str) -> int:
        """The smallest id from 1 that is not taken."""
        if part not in self._fresh:
            taken = {*self._taken(part), *self.of_text[part].values()}
            self._fresh[part] = (i for i in itertools.count(1) if i not in taken)
        return next(self._fresh[part])

    def integer_id(self, part: str, value: Any) -> int:
        """The id of an entry as an integer; "x" is the same one wherever it is referred to."""
        number = numbers.integer(value)
        if isinstance(value, str):
            # "7" is a 7, and so is "07", unless there is a 7 besides.
            if number is None or (str(number) != value and self._taken(part)[number] > 1):
                if value not in self.of_text[part]:
                    self.of_text[part][value] = self.fresh_id(part)
                return self.of_text[part][value]
        return self.fresh_id(part) if number is None else number

    def reference(self, part: str, value: Any) -> int | None:
        """The id that an annotation refers to, as `integer_id` has made it; None if it is none.

        A category may be referred to by its name; a text that is no name, either, gets an id.
        """
        known = self.of_text[part].get(value) if isinstance(value, str) else None
        known = numbers.integer(value) if known is None else known
        if known is None and part == "categories" and isinstance(value, str) and value:
            named = [e["id"] for e in self.content[part] if e["name"] == value]
            known = self.of_text[part][value] = named[0] if named else self.fresh_id(part)
        return known

    def _taken(self, part: str) -> Counter:
        """How often each integer is an id; "7" is a 7 that is not mended yet."""
        if part not in self._ids:
            entries = (e for e in self.content[part] if isinstance(e, dict))
            self._ids[part] = Counter(numbers.integer(e.get("id")) for e in entries)
        return self._ids[part]


def as_json(value: Any) -> str:
    """A value for a note."""
    return json.dumps(value, default=str)
