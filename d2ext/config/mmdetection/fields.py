"""The fields of a config of MMDetection, and what became of each of them."""

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

# set: became a field of ours, or is its default. unused: has no effect here, and needs none.
# differs: the import trains or evaluates otherwise than MMDetection. unknown: nobody looked at it.
Outcome = Literal["set", "unused", "differs", "unknown"]


@dataclass(frozen=True)
class Row:
    """Outcome of one field.

    Attributes:
        field: Dotted name in their config, with indices of lists: `train_pipeline.2.scale`.
        value: Its value.
        outcome: Whether the field has the same effect here.
        became: Our field with its value, or the reason why there is none.
    """

    field: str
    value: Any
    outcome: Outcome
    became: str


@dataclass
class Fields(Mapping[str, Any]):
    """A section of their config; whoever reads a field says what became of it.

    `fields["lr"]` and `fields.get("lr")` only return values. `became`, `unused` and `differs`
    record the outcome of a field with everything inside it, once; fields without an outcome are
    unknown. A field that the config does not contain has no row, so a translator may record what
    became of a default without asking whether it is there.

    Attributes:
        values: The section: a dict whose values are plain (dict, list, tuple, str, number, None).
        path: Its dotted name, "" for the config.
        rows: Outcomes by field, shared by all sections of a config.
        recent: Names of the fields that were read last, for errors; shared as well.
    """

    values: Mapping[str, Any]  # type: ignore[assignment]
    path: str = ""
    rows: dict[str, Row] = field(default_factory=dict)
    recent: deque[str] = field(default_factory=lambda: deque(maxlen=3))

    def __getitem__(self, name: str) -> Any:
        self._read(name)
        return self.values[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.values)

    def __len__(self) -> int:
        return len(self.values)

    @property
    def type(self) -> str:
        """Return the name in `type` without a scope such as `mmdet.`; "" without one."""
        return str(self.values.get("type", "")).rpartition(".")[2]

    def section(self, name: str) -> "Fields":
        """Return a section inside this one; an empty one if it is absent or None."""
        values = self.get(name)
        values = values if isinstance(values, Mapping) else {}
        return Fields(values, self.name(name), self.rows, self.recent)

    def sections(self, name: str) -> list["Fields"]:
        """Return the dicts of a list; a single dict counts as a list of one."""
        values = self.get(name) or []
        if isinstance(values, Mapping):
            return [self.section(name)]
        found = []
        for i, value in enumerate(values):
            if isinstance(value, Mapping):
                found.append(Fields(value, f"{self.name(name)}.{i}", self.rows, self.recent))
        return found

    def _read(self, name: str) -> None:
        name = self.name(name)
        if name not in self.recent:
            self.recent.append(name)

    def name(self, name: str) -> str:
        """Return the dotted name of a field."""
        return f"{self.path}.{name}" if self.path else name

    def became(self, names: str | Sequence[str], text: str) -> None:
        """Record that fields became a field of ours, or equal its default."""
        self._record(names, "set", text)

    def unused(self, names: str | Sequence[str], why: str) -> None:
        """Record that fields have no effect here, and need none."""
        self._record(names, "unused", why)

    def differs(self, names: str | Sequence[str], text: str) -> None:
        """Record that the imported config trains or evaluates otherwise than MMDetection."""
        self._record(names, "differs", text)

    def change(self, names: str | Sequence[str], outcome: Outcome, text: str) -> None:
        """Replace outcomes that were recorded before, also those of fields inside these."""
        for name in [names] if isinstance(names, str) else names:
            path = self.name(name)
            for changed in [row for row in self.rows if f"{row}.".startswith(f"{path}.")]:
                del self.rows[changed]
        self._record(names, outcome, text)

    def _record(self, names: str | Sequence[str], outcome: Outcome, text: str) -> None:
        for name in [names] if isinstance(names, str) else names:
            if name in self.values:
                path = self.name(name)
                self.rows.setdefault(path, Row(path, self.values[name], outcome, text))

    def outcomes(self) -> list[Row]:
        """Return a row for each field of this section, those inside it included."""
        return [row for name in self.values for row in self._rows(self.name(name), self[name])]

    def _rows(self, path: str, value: Any) -> Iterator[Row]:
        if path in self.rows:
            yield self.rows[path]
            return
        inside: Mapping[Any, Any] = {}
        if isinstance(value, Mapping):
            inside = value
        elif isinstance(value, list | tuple) and any(isinstance(v, Mapping) for v in value):
            inside = dict(enumerate(value))
        if not inside:
            yield Row(path, value, "unknown", "not known to d2ext")
        for name, part in inside.items():
            yield from self._rows(f"{path}.{name}", part)
