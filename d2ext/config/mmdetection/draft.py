"""The LazyConfig that an import writes, as source code."""

import keyword
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from d2ext.errors import UserError

_WIDTH = 100  # columns
_INDENT = 4
_TARGET = "_target_"  # of a lazy call, which Detectron2 executes
_INTERPOLATION = re.compile(r"(\\*)\$\{")  # backslashes before it are escaped, too


@dataclass(frozen=True)
class Call:
    """A lazy call, written as `L(name)(...)` with an import of the name.

    Attributes:
        target: Dotted path of a function or class.
        arguments: Keyword arguments.

    Raises:
        UserError: A name is not an identifier.
    """

    target: str
    arguments: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in (*self.target.split("."), *self.arguments):
            if not _is_identifier(name) or name == _TARGET:
                raise UserError(f"{name!r} is not a name of an argument; remove it from the config")


@dataclass(frozen=True)
class Code:
    """An expression that is written as it is."""

    text: str


class Interpolation(str):
    """A string in which OmegaConf resolves `${...}`; in all other strings, it is plain text."""


def literal(text: str) -> str:
    """Return a string of which OmegaConf reads the given one, without resolving `${...}`."""
    return _INTERPOLATION.sub(lambda match: f"{match[1] * 2}\\${{", text)


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

    Whatever a config contains is written as data: names must be identifiers, values must be plain,
    and only `Call`, `Code` and `Interpolation` become calls, expressions and interpolations. The
    methods raise UserError for anything else.

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
        if not re.fullmatch(r"\w+(/\w+)*\.py", recipe):
            raise UserError(f"{recipe!r} is not a recipe of d2ext")
        name, part = _checked(name), _checked(part or name)
        self.lines += ["", f'{name} = d2ext.get_config("{recipe}").{part}']

    def set(self, path: str, value: Any) -> None:
        """Assign a value, which may contain `Call`, `Code` and `Interpolation`, to a field."""
        start = f"{_checked(path)} = "
        try:
            code = self._code(value)
        except (ValueError, RecursionError) as e:
            raise UserError(f"{path} cannot be written: {e}") from e
        text = start + _written(code, len(start), 0, 0)
        if isinstance(code, str) and len(text) > _WIDTH >= len(code) + _INDENT:
            text = f"{start}(\n{' ' * _INDENT}{code}\n)"
        if "." not in path:
            self.lines.append("")
        self.lines.append(text)

    def delete(self, path: str) -> None:
        """Remove a field: `del path`."""
        self.lines.append(f"del {_checked(path)}")

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
            case Mapping() if _TARGET in value:
                raise ValueError(f"{_TARGET} would be called; remove it from the config")
            case Mapping() if all(map(_is_identifier, value)):
                items = [(f"{name}=", self._code(v)) for name, v in value.items()]
                return _Group("dict(", items, ")", is_call=True)
            case Mapping():
                items = [(f"{_key(name)}: ", self._code(v)) for name, v in value.items()]
                return _Group("{", items, "}")
            case list() | tuple():
                # Detectron2 makes a new ListConfig of a list, which would read `${` once more.
                if any(isinstance(v, str) and _INTERPOLATION.search(v) for v in value):
                    raise ValueError("a string in a list contains `${`; rename it")
                start, end = "[]" if isinstance(value, list) else "()"
                return _Group(start, [("", self._code(v)) for v in value], end)
            case Interpolation():
                return _quoted(value)
            case "???":
                raise ValueError("`???` is a missing value of OmegaConf; give another string")
            case str():
                return _quoted(literal(value))
            case float() if not math.isfinite(value):
                return f'float("{value}")'
            case None | bool() | int() | float():
                return repr(value)
        raise ValueError(f"a {type(value).__name__} is not a plain value")


def _checked(path: str) -> str:
    """Return the dotted path of a field, whose parts are identifiers with indices."""
    for part in path.split("."):
        if not _is_identifier(re.sub(r"(\[\d+\])+$", "", part)):
            raise UserError(f"{path!r} is not a name of a field; rename it in the config")
    return path


def _key(name: Any) -> str:
    """Return the source of a key of a dict, in which OmegaConf resolves nothing."""
    if not isinstance(name, str | int | float):
        raise ValueError(f"the key {name!r} of a dict is not a string")
    return _quoted(name) if isinstance(name, str) else repr(name)


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
    quoted = repr(str(text))
    if quoted[0] == "'" and '"' not in text:
        inner = quoted[1:-1].replace("\\'", "'")
        return f'"{inner}"'
    return quoted
