"""The LazyConfig that an import writes, as source code."""

import keyword
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

_WIDTH = 100  # columns
_INDENT = 4


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


@dataclass(frozen=True)
class _Group:
    """Source code in brackets.

    Attributes:
        start: Opening bracket, and what is before it.
        items: What is before each item, such as `name=`, and the item.
        end: Closing bracket.
        is_call: Whether the items are arguments, which may share a line of their own.
    """

    start: str
    items: Sequence[tuple[str, "_Group | str"]]
    end: str
    is_call: bool = False

    def __str__(self) -> str:
        comma = "," if self.start == "(" and len(self.items) == 1 else ""
        return f"{self.start}{self.body}{comma}{self.end}"

    @property
    def body(self) -> str:
        """Return the items on one line."""
        return ", ".join(f"{name}{item}" for name, item in self.items)


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
        code, start = self._code(value), f"{path} = "
        text = start + _written(code, len(start), 0, 0)
        if isinstance(code, str) and len(text) > _WIDTH >= len(code) + _INDENT:
            text = f"{start}(\n{' ' * _INDENT}{code}\n)"
        if "." not in path:
            self.lines.append("")
        self.lines.append(text)

    def delete(self, path: str) -> None:
        """Remove a field: `del path`."""
        self.lines.append(f"del {path}")

    def use(self, module: str, name: str) -> None:
        """Import a name that `Code` uses."""
        self.imports.setdefault(module, set()).add(name)

    def text(self, docstring: str) -> str:
        """Return the file.

        Args:
            docstring: Its text without the quotes, wrapped.
        """
        quoted = docstring.replace("\\", "\\\\").replace('"""', r"\"\"\"")
        head = [f'"""{quoted}"""', ""]
        if any("d2ext.get_config" in line for line in self.lines):
            head.append("import d2ext")
        for module, names in sorted(self.imports.items()):
            start = f"from {module} import "
            listed = _Group("(", [("", name) for name in sorted(names)], ")", is_call=True)
            line = start + listed.body
            head.append(line if len(line) <= _WIDTH else start + _written(listed, _WIDTH, 0, 0))
        return "\n".join([*head, *self.lines]).rstrip() + "\n"

    def _code(self, value: Any) -> _Group | str:
        """Return the source of a value, and import what it needs."""
        match value:
            case Code():
                return value.text
            case Call():
                module, _, name = value.target.rpartition(".")
                self.use(module, name)
                self.use("detectron2.config", "LazyCall as L")
                items = [(f"{name}=", self._code(v)) for name, v in value.arguments.items()]
                return _Group(f"L({name})(", items, ")", is_call=True)
            case Mapping() if all(map(_is_identifier, value)):
                items = [(f"{name}=", self._code(v)) for name, v in value.items()]
                return _Group("dict(", items, ")", is_call=True)
            case Mapping():
                items = [(f"{self._code(name)}: ", self._code(v)) for name, v in value.items()]
                return _Group("{", items, "}")
            case list():
                return _Group("[", [("", self._code(v)) for v in value], "]")
            case tuple():
                return _Group("(", [("", self._code(v)) for v in value], ")")
            case str():
                return _quoted(value)
            case float() if not math.isfinite(value):
                return f'float("{value}")'
        return repr(value)


def _written(code: _Group | str, column: int, indent: int, after: int) -> str:
    """Return code that starts at a column, on one or more lines, formatted as Black does.

    Args:
        code: The code.
        column: Characters before it on its first line.
        indent: Indentation of its last line.
        after: Characters after it on its last line.
    """
    flat = str(code)
    if isinstance(code, str) or not code.items or column + len(flat) + after <= _WIDTH:
        return flat
    inner, pad = indent + _INDENT, " " * (indent + _INDENT)
    if code.is_call and inner + len(code.body) <= _WIDTH:
        return f"{code.start}\n{pad}{code.body}\n{' ' * indent}{code.end}"
    lines = [
        f"{pad}{name}{_written(item, inner + len(name), inner, 1)}," for name, item in code.items
    ]
    return "\n".join([code.start, *lines, f"{' ' * indent}{code.end}"])


def _is_identifier(name: Any) -> bool:
    return isinstance(name, str) and name.isidentifier() and not keyword.iskeyword(name)


def _quoted(text: str) -> str:
    """Return a string literal in double quotes, unless it contains them."""
    literal = repr(text)
    if literal[0] == "'" and '"' not in text:
        inner = literal[1:-1].replace("\\'", "'")
        return f'"{inner}"'
    return literal
