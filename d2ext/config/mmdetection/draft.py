"""The LazyConfig that an import writes, as source code."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Call:
    """A lazy call, written as `L(name)(...)` with an import of the name.

    Attributes:
        target: Dotted path of a function or class.
        arguments: Keyword arguments.
    """

    target: str
    arguments: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Code:
    """An expression that is written as it is."""

    text: str


@dataclass
class Draft:
    """Statements of a LazyConfig, in order.

    Attributes:
        lines: The statements.
        imports: Names to import by module.
    """

    lines: list[str] = field(default_factory=list)
    imports: dict[str, set[str]] = field(default_factory=dict)

    def start(self, name: str, recipe: str, part: str = "") -> None:
        """Begin a section with a part of one of our files: `name = d2ext.get_config(recipe).part`.

        Args:
            name: The section, such as `model`.
            recipe: File in `configs/`, such as `common/models/mask_rcnn_fpn.py`.
            part: Name in the file; the section's own if empty.
        """
        self.lines += ["", f'{name} = d2ext.get_config("{recipe}").{part or name}']

    def set(self, path: str, value: Any) -> None:
        """Assign a value, which may contain `Call` and `Code`, to a field."""
        self.lines.append(f"{path} = {self._source(value)}")

    def delete(self, path: str) -> None:
        """Remove a field: `del path`."""
        self.lines.append(f"del {path}")

    def text(self, docstring: str) -> str:
        """Return the file."""
        raise NotImplementedError

    def _source(self, value: Any) -> str:
        raise NotImplementedError
