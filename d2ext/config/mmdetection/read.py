"""Read MMDetection's configs without MMDetection, and without executing them.

`read_config` interprets the syntax tree of a file: assignments, literals, names, arithmetic,
comparisons, comprehensions, and calls of a few functions of Python (`dict(...)`, `.update(...)`),
as long as their results have the size of a config. With `trust`, it executes the file
instead, as MMDetection does; imports of packages that are not installed then become names.
"""

import ast
import builtins
import copy
import functools
import importlib.util
import itertools
import operator
import os
import posixpath
import re
import types
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Sized
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeGuard

from d2ext.errors import UserError

_BASE = "_base_"
_DELETE = "_delete_"
# Variables of MMDetection's configs, 3.x and 2.x, that other configs do not have.
_THEIR_NAMES = (_BASE, "train_dataloader", "optim_wrapper", "img_norm_cfg", "lr_config")
_BASE_VARIABLE = re.compile(r"\{\{\s*_base_\.([\w.]+)\s*\}\}")
_ENVIRONMENT = re.compile(r"\{\{\s*\$(\w+)\s*:\s*([^{}]*?)\s*\}\}")
_PACKAGE_CONFIGS = (".mim", "configs")  # folder of the configs in an installed package


def _round(number: float, ndigits: int | None = None) -> float:
    """Return `round(...)`; it computes a power of 10, so the number of digits is limited."""
    if ndigits is not None and abs(ndigits) > _MAX_POWER:
        raise ValueError(f"cannot round to {ndigits} digits")
    return round(number, ndigits)


def _sum(values: Iterable[Any], start: Any = 0) -> Any:
    """Return `sum(...)`, in linear time for lists."""
    return [*start, *itertools.chain(*values)] if isinstance(start, list) else sum(values, start)


# Functions that a config may call, without effects outside the config.
_FUNCTIONS: dict[str, Callable] = {
    f.__name__: f
    for f in (dict, list, tuple, str, int, float, bool, len, range, enumerate, zip, min, max)
}
_FUNCTIONS |= {"os.path.join": posixpath.join, "abs": abs, "sorted": sorted}
_FUNCTIONS |= {"round": _round, "sum": _sum}
_METHODS: dict[type, tuple[str, ...]] = {
    dict: ("update", "pop", "get", "copy", "setdefault", "keys", "values", "items", "merge"),
    list: ("append", "extend", "insert", "pop", "remove", "index", "copy", "reverse"),
    str: ("split", "join", "replace", "lower", "upper", "strip", "startswith", "endswith"),
}
_BINARY: dict[type, Callable] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
    ast.Pow: operator.pow,
}
_IN_PLACE: dict[type, Callable] = {
    ast.Add: operator.iadd
}  # `pipeline += [...]` also changes the loader that uses it
_UNARY: dict[type, Callable] = {
    ast.USub: operator.neg,
    ast.UAdd: operator.pos,
    ast.Not: operator.not_,
}
_COMPARISONS: dict[type, Callable] = {
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
    ast.Is: operator.is_,
    ast.IsNot: operator.is_not,
    ast.In: lambda part, whole: part in whole,
    ast.NotIn: lambda part, whole: part not in whole,
}
_MAX_POWER = 64  # exponent up to which powers are computed
_MAX_BITS = 4096  # of an integer
_MAX_ITEMS = 1_000_000  # items and characters of a value with all that is inside it
_MAX_STEPS = 1_000_000  # values and parts of values that are looked at per file
# Templates of `%` and f-strings whose widths have at most 4 digits.
_TEMPLATE = re.compile(
    r"(?:[^%]|%%|%(?:\(\w*\))?[-#0 +]*\d{0,4}(?:\.\d{0,4})?[a-zA-Z])*", re.DOTALL
)
_FORMAT = re.compile(r"(?:\D|(?<!\d)\d{1,4}(?!\d))*", re.DOTALL)


class _Name(str):
    """A name that a config imports: `mmdet.models.FasterRCNN`."""

    def __getattr__(self, name: str) -> "_Name":  # of a module, in executed files
        if name.startswith("__"):
            raise AttributeError(name)
        return _Name(f"{self}.{name}")


def read_config(path: str | os.PathLike, trust: bool = False) -> dict[str, Any]:
    """Return the values of an MMDetection config (2.x or 3.x), merged over those of its bases.

    Args:
        path: The .py file. Its bases are given by `_base_` or imported in `with read_base()`.
        trust: Whether to execute the files instead of interpreting them.

    Returns:
        Values by name: dict, list, tuple, str, numbers, bool and None. Classes and functions that
        a config imports are their dotted names.

    Raises:
        UserError: A file does not exist, fails, or contains code that is not interpreted.
    """
    try:
        return _plain(_read(Path(path), trust, ()), str(path))
    except RecursionError:
        raise UserError(f"{path}: a value contains itself, or is nested too deeply") from None


def is_mmdetections(path: Path) -> bool:
    """Return whether a Python file is a config of MMDetection, by the names that it assigns."""
    try:
        tree = ast.parse(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, SyntaxError, RecursionError):
        return False
    return any(_is_read_base(node) or _assigned(node) in _THEIR_NAMES for node in tree.body)


def _read(path: Path, trust: bool, readers: Sequence[Path]) -> dict[str, Any]:
    """Return the variables of a file.

    Args:
        path: The file.
        trust: Whether to execute it.
        readers: Files that are being read because of each other, outermost first.
    """
    if path.resolve() in readers:
        raise UserError(f"{readers[-1]}: {path} is a base of itself; remove it from {_BASE}")
    tree, text = _parsed(path)
    readers = [*readers, path.resolve()]
    reader = _Interpreter(path, text, lambda base: _read(base, trust, readers))
    reader.names[_BASE] = _merged_bases(tree, reader)
    if trust:
        _execute(tree, reader)
    else:
        for statement in tree.body:
            if not _is_base(statement):
                reader.run(statement)
        reader.check_size(tree, list(reader.names.values()))
    own = {
        name: value
        for name, value in reader.names.items()
        if name != _BASE and not name.startswith("__") and not _is_import(value)
    }
    return _merged(own, reader.names.get(_BASE, {}), str(path))  # the file may have changed it


def _parsed(path: Path) -> tuple[ast.Module, str]:
    """Return the syntax tree of a file and its text with predefined variables replaced."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise UserError(f"the config file {path} does not exist") from None
    except (OSError, ValueError) as e:
        raise UserError(f"cannot read the config file {path}: {e}") from None
    variables = {
        "fileDirname": str(path.resolve().parent),
        "fileBasename": path.name,
        "fileBasenameNoExtension": path.stem,
        "fileExtname": path.suffix,
    }
    for name, value in variables.items():
        text = re.sub(rf"\{{\{{\s*{name}\s*\}}\}}", value.replace("\\", "/"), text)
    text = _ENVIRONMENT.sub(lambda match: os.environ.get(match[1], match[2]), text)
    try:
        return ast.parse(text, str(path)), text
    except (SyntaxError, ValueError, RecursionError, MemoryError) as e:
        place = f"{path}:{e.lineno}" if isinstance(e, SyntaxError) and e.lineno else str(path)
        raise UserError(f"{place}: {_reason(e)}; only Python configs can be imported") from None


def _merged_bases(tree: ast.Module, reader: "_Interpreter") -> dict[str, Any]:
    """Return the variables of the files that `_base_` names; {} without it."""
    base: dict[str, Any] = {}
    for statement in tree.body:
        if not _is_base(statement):
            continue
        names = reader.value(statement.value)  # type: ignore[attr-defined]
        for name in [names] if isinstance(names, str) else names:
            values = reader.read(_base_path(str(name), reader.path, statement.lineno))
            if twice := base.keys() & values.keys():
                raise UserError(
                    f"{reader.path}:{statement.lineno}: two files in {_BASE} define {min(twice)};"
                    " remove it from one of them"
                )
            base |= values
    return base


def _base_path(name: str, file: Path, line: int) -> Path:
    """Return the path of a base, given relative to the file or as `mmdet::FOLDER/NAME.py`."""
    if "::" not in name:
        path = file.parent / os.path.expanduser(name)
        if not path.is_file():
            raise UserError(
                f"{file}:{line}: the base {name} does not exist; copy MMDetection's configs folder"
                " with this file, or correct the path"
            )
        return path
    package, _, inside = name.partition("::")
    spec = importlib.util.find_spec(package) if package.isidentifier() else None
    folders = [
        Path(found, *_PACKAGE_CONFIGS)
        for found in (spec and spec.origin and [Path(spec.origin).parent]) or []
    ]
    folders += [parent / "configs" for parent in file.resolve().parents]
    for folder in folders:
        if (folder / inside).is_file():
            return folder / inside
    raise UserError(
        f"{file}:{line}: the base {name} is in the package {package}, which is not installed; put"
        f" its configs folder next to {file.name} or in a folder above it"
    )


def _is_base(node: ast.stmt) -> bool:
    return _assigned(node) == _BASE


def _assigned(node: ast.stmt) -> str:
    """Return the name that a statement assigns; "" for other statements."""
    if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
        return node.targets[0].id
    return ""


def _is_read_base(node: ast.stmt) -> bool:
    return isinstance(node, ast.With) and any(
        isinstance(item.context_expr, ast.Call)
        and ast.unparse(item.context_expr.func).rpartition(".")[2] == "read_base"
        for item in node.items
    )


def _merged(own: Mapping[str, Any], base: Mapping[str, Any], place: str) -> dict[str, Any]:
    """Return a base updated by a file: dicts are merged, other values replaced."""
    merged = dict(base)
    for name, value in own.items():
        here = f"{place}: {name}"
        if isinstance(value, dict) and name in merged:
            value = dict(value)
            if not value.pop(_DELETE, False):
                if not isinstance(merged[name], dict):
                    raise UserError(
                        f"{here} is a dict, and {_shown(merged[name])} in its base; add"
                        f" {_DELETE}=True to replace it"
                    )
                merged[name] = _merged(value, merged[name], here)
                continue
        merged[name] = _merged(value, {}, here) if isinstance(value, dict) else value
    return merged


class _Interpreter:
    """Interpret the statements of one file.

    Attributes:
        path: The file.
        text: Its source.
        read: Returns the variables of another file.
        names: The variables defined so far.
    """

    def __init__(self, path: Path, text: str, read: Callable[[Path], dict[str, Any]]):
        self.path, self.text, self.read = path, text, read
        self.names: dict[str, Any] = {}
        self.steps = 0  # values looked at

    def run(self, statement: ast.stmt) -> None:
        """Execute a statement."""
        with self._errors(statement):
            self._run(statement)

    def check_size(self, node: ast.AST, value: Any) -> None:
        """Raise a UserError if a value is too large for a config, or if reading takes too long."""
        large, steps = _measured(value)
        self.steps += steps
        if large or self.steps > _MAX_STEPS:
            raise self._too_large(node)

    def value(self, node: ast.expr) -> Any:
        """Return the value of an expression."""
        with self._errors(node):
            return self._value(node)

    def import_base(self, node: ast.With) -> None:
        """Import the variables that `with read_base():` takes from other files."""
        for statement in node.body:
            if isinstance(statement, ast.Pass):
                continue
            if not isinstance(statement, ast.ImportFrom):
                raise self._unknown(statement)
            for alias in statement.names:
                module = statement.module or ""
                if not module and statement.level:  # from . import x
                    module, taken = alias.name, "*"
                else:
                    taken = alias.name
                found = self.read(self._module_path(module, statement))
                if taken == "*":
                    self.names |= found
                elif taken in found:
                    self.names[alias.asname or taken] = found[taken]
                else:
                    raise UserError(
                        f"{self.path}:{statement.lineno}: {module} does not define {taken}"
                    )

    def _module_path(self, module: str, node: ast.ImportFrom) -> Path:
        parts = module.split(".")
        if node.level:
            path = self.path.parent.joinpath(*[".."] * (node.level - 1), *parts)
        else:
            spec = importlib.util.find_spec(parts[0])
            if spec is None or not spec.origin:
                raise UserError(
                    f"{self.path}:{node.lineno}: the base {module} is in the package {parts[0]},"
                    " which is not installed; copy its configs and use a relative import"
                )
            path = Path(spec.origin).parent.joinpath(*parts[1:])
        path = path.with_name(f"{path.name}.py")
        if not path.is_file():
            raise UserError(f"{self.path}:{node.lineno}: the base {path} does not exist")
        return path

    def _run(self, statement: ast.stmt) -> None:
        match statement:
            case ast.Assign(targets=targets, value=value):
                made = self._value(value)
                for target in targets:
                    self._assign(target, made)
            case ast.AnnAssign(target=target, value=ast.expr() as value):
                self._assign(target, self._value(value))
            case ast.AugAssign(target=target, op=op, value=value) if type(op) in _BINARY:
                apply = _IN_PLACE.get(type(op), _BINARY[type(op)])
                left, right = self._value(target), self._value(value)
                self._assign(target, self._operate(statement, apply, left, right))
            case ast.Expr(value=ast.Constant()) | ast.Pass():
                pass
            case ast.Expr(value=ast.Call(func=ast.Attribute()) as call):
                self._value(call)
            case ast.Delete(targets=targets):
                for target in targets:
                    self._delete(target)
            case ast.Import(names=names):
                for alias in names:
                    whole = alias.name if alias.asname else alias.name.partition(".")[0]
                    self.names[alias.asname or whole] = _Name(whole)
            case ast.ImportFrom(module=module, names=names, level=0) if names[0].name != "*":
                for alias in names:
                    self.names[alias.asname or alias.name] = _Name(f"{module}.{alias.name}")
            case ast.With() if _is_read_base(statement):
                self.import_base(statement)
            case _:
                raise self._unknown(statement)

    def _assign(self, target: ast.expr, value: Any) -> None:
        match target:
            case ast.Name(id=name):
                self.names[name] = value
            case ast.Attribute(value=owner, attr=name):
                self._dict(owner)[name] = value
            case ast.Subscript(value=owner, slice=key):
                self._value(owner)[self._value(key)] = value
            case ast.Tuple(elts=parts) | ast.List(elts=parts):
                for part, item in zip(parts, value, strict=True):
                    self._assign(part, item)
            case _:
                raise self._unknown(target)

    def _delete(self, target: ast.expr) -> None:
        match target:
            case ast.Name(id=name):
                del self.names[name]
            case ast.Attribute(value=owner, attr=name):
                del self._dict(owner)[name]
            case ast.Subscript(value=owner, slice=key):
                del self._value(owner)[self._value(key)]
            case _:
                raise self._unknown(target)

    def _value(self, node: ast.expr) -> Any:
        value = self._evaluated(node)
        self.check_size(node, value)
        return value

    def _evaluated(self, node: ast.expr) -> Any:
        match node:
            case ast.Constant(value=str() as text):
                return self._text(node, text)
            case ast.Constant(value=None | bool() | int() | float() as value):
                return value
            case ast.Name(id=name) if name in self.names:
                return self.names[name]
            case ast.List():
                return self._items(node.elts)
            case ast.Tuple():
                return tuple(self._items(node.elts))
            case ast.Dict():
                return self._make_dict(node)
            case ast.Set(elts=[ast.Set(elts=[variable])]):  # {{_base_.model}}
                return copy.deepcopy(self._value(variable))
            case ast.Attribute(value=owner, attr=name):
                value = self._value(owner)
                return (
                    _Name(f"{value}.{name}")
                    if isinstance(value, _Name)
                    else self._dict(owner)[name]
                )
            case ast.Subscript(value=owner, slice=key):
                return self._value(owner)[self._value(key)]
            case ast.Slice(lower=lower, upper=upper, step=step):
                return slice(*(part and self._value(part) for part in (lower, upper, step)))
            case ast.BinOp(left=left, op=op, right=right) if type(op) in _BINARY:
                return self._operate(node, _BINARY[type(op)], self._value(left), self._value(right))
            case ast.UnaryOp(op=op, operand=operand) if type(op) in _UNARY:
                return _UNARY[type(op)](self._value(operand))
            case ast.BoolOp(op=op, values=values):
                return self._first(values, until=isinstance(op, ast.Or))
            case ast.Compare():
                return self._compare(node)
            case ast.IfExp(test=test, body=body, orelse=other):
                return self._value(body if self._value(test) else other)
            case ast.JoinedStr(values=parts):
                texts = [str(self._value(part)) for part in parts]
                self.check_size(node, texts)
                return "".join(texts)
            case ast.FormattedValue(value=value, conversion=-1, format_spec=spec):
                how = self._value(spec) if spec else ""
                if not _FORMAT.fullmatch(how):
                    raise self._too_large(node)
                return format(self._value(value), how)
            case ast.ListComp(elt=made) | ast.GeneratorExp(elt=made):
                return [self._value(made) for _ in self._loops(node, node.generators)]
            case ast.DictComp(key=key, value=value):
                loops = self._loops(node, node.generators)
                return {self._value(key): self._value(value) for _ in loops}
            case ast.Call():
                return self._call(node)
        raise self._unknown(node)

    def _text(self, node: ast.expr, text: str) -> Any:
        """Return a string with its `{{_base_.x}}` replaced, or the value if that is all of it."""
        if match := _BASE_VARIABLE.fullmatch(text):
            return copy.deepcopy(self._base_value(match[1]))
        parts: list[Any] = _BASE_VARIABLE.split(text)
        parts[1::2] = map(self._base_value, parts[1::2])
        self.check_size(node, parts)
        return "".join(map(str, parts))

    def _base_value(self, dotted: str) -> Any:
        return functools.reduce(operator.getitem, dotted.split("."), self.names[_BASE])

    def _items(self, nodes: Sequence[ast.expr]) -> list[Any]:
        items: list[Any] = []
        for node in nodes:
            if isinstance(node, ast.Starred):
                items += self._value(node.value)
            else:
                items.append(self._value(node))
        return items

    def _make_dict(self, node: ast.Dict) -> dict[Any, Any]:
        made: dict[Any, Any] = {}
        for key, value in zip(node.keys, node.values, strict=True):
            if key is None:
                made |= self._value(value)
            else:
                made[self._value(key)] = self._value(value)
        return made

    def _dict(self, node: ast.expr) -> dict[str, Any]:
        """Return the dict whose key is read or set as an attribute."""
        value = self._value(node)
        if not isinstance(value, dict):
            raise self._unknown(node)
        return value

    def _operate(self, node: ast.AST, apply: Callable, left: Any, right: Any) -> Any:
        """Return the result of an operation, unless it is clearly too large to compute."""
        if apply is operator.pow and abs(right) > _MAX_POWER:
            raise self._too_large(node)
        if apply is operator.mul:
            pairs = ((left, right), (right, left))
            if any(_length(part) * size > _MAX_ITEMS for part, size in pairs if _is_int(size)):
                raise self._too_large(node)
        if apply is operator.mod and isinstance(left, str) and not _TEMPLATE.fullmatch(left):
            raise self._too_large(node)
        result = apply(left, right)
        self.check_size(node, result)
        return result

    def _first(self, nodes: Sequence[ast.expr], until: bool) -> Any:
        """Return the first value that is true (or false), or the last one."""
        for node in nodes:
            value = self._value(node)
            if bool(value) is until:
                break
        return value

    def _compare(self, node: ast.Compare) -> bool:
        left = self._value(node.left)
        for op, other in zip(node.ops, node.comparators, strict=True):
            right = self._value(other)
            if not _COMPARISONS[type(op)](left, right):
                return False
            left = right
        return True

    def _loops(self, node: ast.expr, generators: Sequence[ast.comprehension]) -> Iterator[None]:
        """Assign the variables of a comprehension, and restore the names after it."""
        if not generators:
            yield
            return
        first, *others = generators
        if first.is_async:
            raise self._unknown(node)
        before = dict(self.names)
        for item in self._value(first.iter):
            self._assign(first.target, item)
            if all(self._value(test) for test in first.ifs):
                yield from self._loops(node, others)
        for name in [name for name in self.names if name not in before]:
            del self.names[name]
        self.names |= before

    def _call(self, node: ast.Call) -> Any:
        match node.func:
            case ast.Name(id=name) if name not in self.names and name in _FUNCTIONS:
                function = _FUNCTIONS[name]
            case ast.Attribute(value=owner, attr=name):
                value = self._value(owner)
                if isinstance(value, _Name):
                    function = _FUNCTIONS.get(f"{value}.{name}")
                    if function is None:
                        raise self._unknown(node)
                elif name not in _METHODS.get(type(value), ()):
                    raise self._unknown(node)
                elif name == "merge":
                    function = functools.partial(_merge_in_place, value, str(self.path))
                else:
                    function = getattr(value, name)
            case _:
                raise self._unknown(node)
        arguments = self._items(node.args)
        named: dict[str, Any] = {}
        for keyword in node.keywords:
            given = self._value(keyword.value)
            named |= given if keyword.arg is None else {keyword.arg: given}
        if function is range and len(range(*arguments)) > _MAX_ITEMS:
            raise self._too_large(node)
        if isinstance(node.func, ast.Attribute) and isinstance(value, str):  # replace, join
            if any(len(value) * _length(argument) > _MAX_ITEMS for argument in arguments):
                raise self._too_large(node)
        return function(*arguments, **named)

    def _unknown(self, node: ast.AST) -> UserError:
        source = (ast.get_source_segment(self.text, node) or "").partition("\n")[0]
        if isinstance(node, ast.Name):
            return UserError(
                f"{self._place(node)}: {node.id} is not defined in the file or its bases; --trust"
                " executes the file"
            )
        return UserError(
            f"{self._place(node)}: the import does not execute `{_shortened(source)}`; if you trust"
            " the file, --trust does"
        )

    def _too_large(self, node: ast.AST) -> UserError:
        source = (ast.get_source_segment(self.text, node) or "").partition("\n")[0]
        what = f"the value of `{_shortened(source)}` is" if source else "its values are"
        return UserError(
            f"{self._place(node)}: {what} too large for a config; if you trust the file, --trust"
            " executes it"
        )

    def _place(self, node: ast.AST) -> str:
        return f"{self.path}:{getattr(node, 'lineno', 1)}"

    @contextmanager
    def _errors(self, node: ast.AST) -> Iterator[None]:
        """Turn errors of the interpreted code into UserErrors."""
        try:
            yield
        except UserError:
            raise
        except (ArithmeticError, LookupError, TypeError, ValueError, AttributeError) as e:
            raise UserError(f"{self._place(node)}: {_reason(e)}") from e
        except (RecursionError, MemoryError) as e:
            raise UserError(f"{self._place(node)}: {type(e).__name__}; simplify the config") from e


def _measured(value: Any) -> tuple[bool, int]:
    """Return whether a value is too large for a config, and the number of parts looked at."""
    size, steps, stack = 0, 0, [value]
    while stack and size <= _MAX_ITEMS:
        part = stack.pop()
        steps += 1
        size += 1
        if isinstance(part, str):
            size += len(part)
        elif isinstance(part, int) and part.bit_length() > _MAX_BITS:
            return True, steps
        elif isinstance(part, dict):
            stack += [*part, *part.values()]
        elif isinstance(part, list | tuple):
            stack += part
    return size > _MAX_ITEMS, steps


def _length(value: Any) -> int:
    """Return the length of a value; 0 if it has none."""
    return len(value) if isinstance(value, Sized) else 0


def _is_int(value: Any) -> TypeGuard[int]:
    return isinstance(value, int)


def _merge_in_place(values: dict[str, Any], place: str, other: Mapping[str, Any]) -> None:
    """Merge a dict into another one, as `ConfigDict.merge` does."""
    values |= _merged(other, values, place)


class _Attributes(dict):
    """A dict whose keys are also attributes, for executed files."""

    __getattr__ = dict.__getitem__
    __setattr__ = dict.__setitem__
    __delattr__ = dict.__delitem__


class _Module(types.ModuleType):
    """A module that is not installed: its attributes are their names."""

    __path__: list[str] = []

    def __getattr__(self, name: str) -> _Name:
        if name.startswith("__"):
            raise AttributeError(name)
        return _Name(f"{self.__name__}.{name}")


class _BaseVariables(ast.NodeTransformer):
    """Replace `{{_base_.x}}`, quoted or not, by the expression."""

    def visit_Set(self, node: ast.Set) -> ast.AST:
        match node:
            case ast.Set(elts=[ast.Set(elts=[variable])]):
                return variable
        return self.generic_visit(node)

    def visit_Constant(self, node: ast.Constant) -> ast.AST:
        match = _BASE_VARIABLE.fullmatch(node.value) if isinstance(node.value, str) else None
        return (
            ast.copy_location(ast.parse(f"_base_.{match[1]}", mode="eval").body, node)
            if match
            else node
        )


def _execute(tree: ast.Module, reader: _Interpreter) -> None:
    """Execute a file, with names in place of what packages that are not installed define."""

    def import_(name: str, *args: Any, **kwargs: Any) -> Any:
        try:
            return builtins.__import__(name, *args, **kwargs)
        except ImportError:
            return _Module(name if args[2:] and args[2] else name.partition(".")[0])

    for statement in tree.body:
        if isinstance(statement, ast.With) and _is_read_base(statement):
            reader.import_base(statement)
    names: dict[str, Any] = {name: _attributes(value) for name, value in reader.names.items()}
    names["__builtins__"] = {**vars(builtins), "__import__": import_}
    names["__file__"] = str(reader.path)
    rest = [s for s in tree.body if not _is_base(s) and not _is_read_base(s)]
    code = ast.fix_missing_locations(_BaseVariables().visit(ast.Module(rest, [])))
    try:
        exec(compile(code, str(reader.path), "exec"), names)
    except (Exception, SystemExit) as e:  # a config is code, so any error is the user's
        raise UserError(f"{reader.path}: {_reason(e)}") from e
    reader.names = names


def _attributes(value: Any) -> Any:
    if isinstance(value, dict):
        return _Attributes({name: _attributes(part) for name, part in value.items()})
    if isinstance(value, list | tuple):
        return type(value)(_attributes(part) for part in value)
    return value


def _is_import(value: Any) -> bool:
    """Return whether a variable of a file is an import or a definition, not a value."""
    return isinstance(value, _Name | types.ModuleType | types.FunctionType | type)


def _plain(value: Any, name: str) -> Any:
    """Return a copy of a value without references to shared parts."""
    if isinstance(value, dict):
        return {key: _plain(part, f"{name}: {key}") for key, part in value.items()}
    if isinstance(value, list):
        return [_plain(part, name) for part in value]
    if isinstance(value, tuple | range):
        return tuple(_plain(part, name) for part in value)
    if isinstance(value, str):
        return str(value)
    if value is None or isinstance(value, bool | int | float):
        return value
    if isinstance(value, type | types.FunctionType):
        return f"{value.__module__}.{value.__qualname__}"
    raise UserError(f"{name} is {_shown(value)}, which is not a plain value")


def _reason(error: BaseException) -> str:
    text = str(error).strip().partition("\n")[0]
    if isinstance(error, KeyError):
        return f"there is no key {text}"
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def _shown(value: Any) -> str:
    return _shortened(repr(value))


def _shortened(text: str) -> str:
    return text if len(text) <= 60 else f"{text[:57]}..."
