"""A config for reading: all of it, what it changes of another, and what each key means."""

import ast
import inspect
import io
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, ListConfig, OmegaConf

from d2ext.config.saved import saved_text

_TRAIN = Path(__file__).resolve().parent.parent.parent / "configs" / "common" / "train.py"
_ARGUMENT = re.compile(r"( +)((?:\w+, )*\w+)(?: \(.*?\))?: (.*)")


def whole(cfg: Any) -> str:
    """All of a config, as YAML."""
    return saved_text(cfg)[0]


def difference(cfg: Any, base: Any) -> list[str]:
    """What a config changes of another, a line a key, in the order of the keys."""
    mine, theirs = dict(_leaves(cfg, "")), dict(_leaves(base, ""))
    lines = []
    for key in sorted(mine.keys() | theirs.keys()):
        if key not in theirs:
            lines.append(f"{key}: {_shown(mine[key])} (new)")
        elif key not in mine:
            lines.append(f"{key}: gone, was {_shown(theirs[key])}")
        elif _shown(mine[key]) != _shown(theirs[key]):
            lines.append(f"{key}: {_shown(mine[key])}, was {_shown(theirs[key])}")
    return lines


def keys(cfg: Any) -> list[tuple[str, str, str, str]]:
    """Each key, its type, its value in this config, and what it means.

    Meanings of `train` are the comments in configs/common/train.py; those of a `_target_`'s
    arguments are in its docstring. Without one the meaning is empty.
    """
    meanings = _comments()
    rows = []
    for key, value in _leaves(cfg, ""):
        meaning = meanings.get(key) or _meaning(cfg, key) or ""
        rows.append((key, _kind(value), _shown(value), meaning))
    return rows


def _leaves(node: Any, prefix: str) -> Iterator[tuple[str, Any]]:
    if isinstance(node, DictConfig) and not node._is_none() and len(node):
        for key in node:
            # As it is written: an interpolation is not followed.
            raw = node._get_node(key)
            child = raw if isinstance(raw, (DictConfig, ListConfig)) else raw._value()
            yield from _leaves(child, f"{prefix}.{key}" if prefix else str(key))
    elif isinstance(node, ListConfig) and any(isinstance(x, DictConfig) for x in node):
        for i in range(len(node)):
            yield from _leaves(node._get_node(i), f"{prefix}[{i}]")
    else:
        yield prefix, node


def _plain(value: Any) -> Any:
    if isinstance(value, (DictConfig, ListConfig)):
        return None if value._is_none() else OmegaConf.to_container(value, resolve=False)
    return value


def _shown(value: Any) -> str:
    value = _plain(value)
    if callable(value):
        return f"{value.__module__}.{value.__qualname__}"
    return value if isinstance(value, str) else repr(value)


def _kind(value: Any) -> str:
    value = _plain(value)
    return "any" if value is None else "function" if callable(value) else type(value).__name__


def _comments() -> dict[str, str]:
    """`train.<field>` to the comment beside it in configs/common/train.py, else above it."""
    if not _TRAIN.is_file():  # installed without the recipes
        return {}
    text = _TRAIN.read_text()
    beside, alone = {}, {}
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.COMMENT:
            before = token.line[: token.start[1]].strip()
            words = token.string.lstrip("# ").removeprefix("added: ")
            (beside if before else alone)[token.start[0]] = words
    (call,) = (node for node in ast.walk(ast.parse(text)) if _is_train(node))
    return dict(_fields(call.value, "train", beside, alone))


def _fields(
    call: ast.Call, prefix: str, beside: dict[int, str], alone: dict[int, str]
) -> Iterator[tuple[str, str]]:
    for field in call.keywords:
        name = f"{prefix}.{field.arg}"
        if isinstance(field.value, ast.Call):
            yield from _fields(field.value, name, beside, alone)
        elif field.end_lineno in beside:
            yield name, beside[field.end_lineno]
        else:
            lines, line = [], field.lineno - 1
            while line in alone:
                lines.insert(0, alone[line])
                line -= 1
            yield name, " ".join(lines)


def _is_train(node: ast.AST) -> bool:
    return isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "train"


def _meaning(cfg: Any, key: str) -> str | None:
    """What a docstring says of a key, whose section is a call."""
    parent, _, name = key.rpartition(".")
    node = OmegaConf.select(cfg, parent) if parent else None
    if not isinstance(node, DictConfig) or name == "_target_" or "_target_" not in node:
        return None
    from detectron2.utils.registry import locate

    target = node["_target_"]
    target = locate(target) if isinstance(target, str) else target
    texts = [inspect.getdoc(target) or ""]
    if inspect.isclass(target):
        texts.append(inspect.getdoc(target.__init__) or "")
    for text in texts:
        if found := _arguments(text).get(name):
            return found
    return None


def _arguments(text: str) -> dict[str, str]:
    """The arguments of a docstring in Google's style."""
    found, names, indent = {}, [], None
    lines = text.partition("Args:\n")[2].splitlines()
    for line in lines:
        match = _ARGUMENT.fullmatch(line)
        deep = len(line) - len(line.lstrip())
        if line.strip() and deep == 0:
            break  # the next section
        if match and (indent is None or deep == indent):
            indent, names = deep, match[2].split(", ")
            found |= dict.fromkeys(names, match[3])
        elif line.strip() and indent is not None and deep > indent:
            found |= {name: f"{found[name]} {line.strip()}" for name in names}
    return found
