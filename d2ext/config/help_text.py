"""What keys mean: comments in configs/common, and docstrings of what a config calls."""

import ast
import inspect
import io
import re
import tokenize
from pathlib import Path
from typing import Any

COMMON = Path(__file__).resolve().parent.parent.parent / "configs" / "common"
_ARGUMENT = re.compile(r"( +)((?:\w+, )*\w+)(?: \((.*?)\))?:\s*(.*)")
_DEFAULT = re.compile(r"\s*\(default: (?:[^()]|\([^()]*\))*\)")  # that of the signature holds


def documented(target: Any) -> dict[str, tuple[str, str]]:
    """Argument to its type and its sentence in the docstrings of a callable and its bases.

    The docstrings are in Google's style; a type that is not in there is an empty text.
    """
    levels = [x for c in target.__mro__ for x in (c, c.__init__)] if inspect.isclass(target) else []
    found: dict[str, tuple[str, str]] = {}
    for level in levels or [target]:
        found = _arguments(inspect.getdoc(level) or "") | found
    return found


def _arguments(text: str) -> dict[str, tuple[str, str]]:
    found, names, indent = {}, [], None
    lines = text.partition("Args:\n")[2].splitlines()
    for line in lines:
        match = _ARGUMENT.fullmatch(line)
        deep = len(line) - len(line.lstrip())
        if line.strip() and deep == 0:
            break  # the next section
        if match and (indent is None or deep == indent):
            indent, names = deep, match[2].split(", ")
            found |= dict.fromkeys(names, (match[3] or "", match[4]))
        elif line.strip() and indent is not None and deep > indent:
            for name in names:
                kind, said = found[name]
                found[name] = kind, f"{said} {line.strip()}".lstrip()
    return {name: (kind, _DEFAULT.sub("", said)) for name, (kind, said) in found.items()}


def comments() -> dict[str, str]:
    """What the comments in configs/common say of fields.

    Returns:
        `train.seed` to the comment beside this field of `train = dict(...)`, else above it; and
        `Mapper.is_train` to the comment beside this argument of `L(Mapper)(...)`. Empty where
        d2ext is installed without its recipes.
    """
    found: dict[str, str] = {}
    for file in sorted(COMMON.rglob("*.py")):
        text = file.read_text(encoding="utf-8")
        beside, alone = {}, {}
        for token in tokenize.generate_tokens(io.StringIO(text).readline):
            if token.type == tokenize.COMMENT:
                before = token.line[: token.start[1]].strip()
                words = token.string.lstrip("# ").removeprefix("added: ")
                (beside if before else alone)[token.start[0]] = words
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.Assign):
                found |= _of_fields(ast.unparse(node.targets[0]), node.value, beside, alone)
            elif isinstance(node, ast.Call) and (called := _lazy(node)):
                given = ((k.arg, beside.get(k.end_lineno)) for k in node.keywords)
                found |= {f"{called}.{name}": words for name, words in given if words}
    return found


def _of_fields(
    name: str, node: ast.expr, beside: dict[int, str], alone: dict[int, str]
) -> dict[str, str]:
    """The comments of `name = node`; of a dict those of its fields."""
    if not (
        isinstance(node, ast.Call) and getattr(node.func, "id", "") == "dict" and node.keywords
    ):
        return {name: beside[node.end_lineno]} if node.end_lineno in beside else {}
    found: dict[str, str] = {}
    for field in node.keywords:
        key = f"{name}.{field.arg}"
        found |= _of_fields(key, field.value, beside, alone)
        lines, line = [], field.lineno - 1
        while line in alone and line > node.lineno:
            lines.insert(0, alone[line])
            line -= 1
        if lines:
            found.setdefault(key, " ".join(lines))
    return found


def _lazy(node: ast.Call) -> str:
    """`X` of the call `L(X)(...)`; empty for others."""
    maker = node.func
    if isinstance(maker, ast.Call) and getattr(maker.func, "id", "") == "L":
        return ast.unparse(maker.args[0]).rpartition(".")[2]
    return ""
