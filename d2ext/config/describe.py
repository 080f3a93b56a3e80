"""A config for reading: all of it, what it changes of another, and what each key means."""

import ast
import inspect
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from d2ext._compat import is_none, raw_value
from d2ext.config.check import accepted
from d2ext.config.help_text import COMMON, comments, documented
from d2ext.config.overrides import parameters
from d2ext.config.yaml_io import saved_text

# Sections that start from the same file in all recipes, for a config that does not say from which.
_STARTS = {
    "train": (COMMON / "train.py", "train"),
    "dataloader": (COMMON / "data" / "loader.py", "dataloader"),
    "evaluators": (COMMON / "evaluators.py", "evaluators"),
}
_HINT = re.compile(r"(.*) \[([\w ,]+)\]")  # a type behind a comment
_NONE = inspect.Parameter.empty


class Key(NamedTuple):
    """A key of a config, in words.

    Attributes:
        name: dotted.
        kind: the type, or the values, that it takes.
        value: in this config; of an argument that the config leaves out, the default.
        default: before the recipe changes it; None where there is none.
        meaning: a sentence or two.
    """

    name: str
    kind: str
    value: str
    default: str | None
    meaning: str


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


def starting_point(config_file: str | Path) -> Any:
    """The sections of a recipe before it changes them: what it imports from `configs/common`.

    Args:
        config_file: the recipe; where it imports another one, that one's imports count. Sections
            that cannot be found so (a run's config.yaml has no imports) are left out, but for
            those that all recipes have from one file.
    """
    from detectron2.config import LazyConfig

    places = _STARTS | _imports(Path(config_file))
    files = {file for file, _ in places.values() if file.is_file()}
    loaded = {file: LazyConfig.load(str(file)) for file in files}
    sections = {name: loaded[file][at] for name, (file, at) in places.items() if file in loaded}
    return OmegaConf.create(sections, flags={"allow_objects": True})


def _imports(file: Path) -> dict[str, tuple[Path, str]]:
    """Section to the file of `configs/common` that it is imported from, and its name in there."""
    found: dict[str, tuple[Path, str]] = {}
    if file.suffix != ".py":
        return found
    for node in ast.parse(file.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.ImportFrom) and node.level and node.module:
            folder = file.resolve().parents[node.level - 1]
            source = folder.joinpath(*node.module.split(".")).with_suffix(".py")
            if "common" in source.parts:
                theirs = {alias.name: (source, alias.name) for alias in node.names}
            else:
                theirs = _imports(source) if source.is_file() else {}
            names = [(alias.asname or alias.name, alias.name) for alias in node.names]
            found |= {mine: theirs[name] for mine, name in names if name in theirs}
    return found


def keys(cfg: Any, start: Any) -> list[Key]:
    """Every key that an override can name, in the config's order.

    Meanings are the comments in configs/common, else what the docstring of a `_target_` says of its
    arguments; where that says nothing of one, the meaning names the callable.

    Args:
        cfg: of `load_config`.
        start: of `starting_point`.
    """
    written = comments()
    rows = []
    for name, value in _leaves(cfg, "", arguments=True):
        kind, meaning = _described(cfg, name, value, written)
        default = _default(start, cfg, name)
        rows.append(
            Key(name, kind, _shown(value), None if default is _NONE else _shown(default), meaning)
        )
    return rows


def _leaves(node: Any, prefix: str, arguments: bool = False) -> Iterator[tuple[str, Any]]:
    """Dotted key and value; with `arguments` also what calls leave out, with its default."""
    if isinstance(node, DictConfig) and not is_none(node) and len(node):
        for key in node:
            below = f"{prefix}.{key}" if prefix else str(key)
            yield from _leaves(raw_value(node, key), below, arguments)
        left_out = parameters(node).items() if arguments else ()
        for name, parameter in left_out:
            if name not in node and parameter.default is not _NONE:
                yield f"{prefix}.{name}", parameter.default
    elif isinstance(node, ListConfig) and any(isinstance(x, DictConfig) for x in node):
        for i in range(len(node)):
            yield from _leaves(raw_value(node, i), f"{prefix}[{i}]", arguments)
    else:
        yield prefix, node


def _plain(value: Any) -> Any:
    if isinstance(value, (DictConfig, ListConfig)):
        return None if is_none(value) else OmegaConf.to_container(value, resolve=False)
    return value


def _shown(value: Any) -> str:
    value = _plain(value)
    if callable(value):
        return f"{value.__module__}.{value.__qualname__}"
    return value if isinstance(value, str) and value else repr(value)


def _default(start: Any, cfg: Any, key: str) -> Any:
    """The value in `start`, where the same is called there, else that of the call's signature."""
    section, mine, name = _section(start, key), _section(cfg, key), key.rpartition(".")[2]
    if section is not None and name in section:
        if name == "_target_" or _target(section) == _target(mine):
            return raw_value(section, name)
    given = _parameters(mine).get(name)
    return given.default if given else _NONE


def _section(cfg: Any, key: str) -> DictConfig | None:
    """The dict that holds a key."""
    parent = key.rpartition(".")[0]
    found = OmegaConf.select(cfg, parent) if parent else cfg
    return found if isinstance(found, DictConfig) else None


def _parameters(section: DictConfig | None) -> Mapping[str, inspect.Parameter]:
    """Of what a section calls, or of the class (ShapeSpec) that it is."""
    if section is None:
        return {}
    kind = OmegaConf.get_type(section)
    is_dict = "_target_" in section or kind in (None, dict)
    return parameters(section) if is_dict else inspect.signature(kind).parameters


def _target(node: DictConfig | None) -> Any:
    """The function or class that a section calls; None for a plain dict."""
    from detectron2.utils.registry import locate

    target = node.get("_target_") if node is not None else None
    return locate(target) if isinstance(target, str) else target


def _described(cfg: Any, key: str, value: Any, written: dict[str, str]) -> tuple[str, str]:
    """Type and meaning of a key."""
    parent, _, name = key.rpartition(".")
    section = _section(cfg, key)
    kind, said, comment = "", "", written.get(key, "")
    if target := _target(section):
        if name == "_target_":
            what = " ".join((inspect.getdoc(target) or "").strip().partition("\n\n")[0].split())
            return "function", what or "what is called with the keys beside it"
        kind, said = documented(target).get(name, ("", ""))
        said = said or f"argument of {_shown(target)}: see its documentation"
        comment = comment or written.get(f"{target.__name__}.{name}", "")
    elif parent and not comment and (of := _described(cfg, parent, None, written)[1]):
        said = f"of {parent.rpartition('.')[2]}: {of}"
    hint = ""
    if match := _HINT.fullmatch(comment):
        comment, hint = match.groups()
    given = _parameters(section).get(name)
    kind = accepted(key) or hint or _annotation(given) or _kind(cfg, key, value) or kind or "any"
    return kind, comment or said


def _annotation(parameter: inspect.Parameter | None) -> str:
    """Of a parameter, in the words of check.py and without the modules of its names."""
    if parameter is None or parameter.annotation is _NONE:
        return ""
    text = re.sub(r"\b(?:\w+\.)+(?=\w)", "", inspect.formatannotation(parameter.annotation))
    text = re.sub(r"Optional\[(.*)\]", r"\1 | None", text)
    return text.replace(" | ", " or ").replace("None", "null")


def _kind(cfg: Any, key: str, value: Any) -> str:
    """The type of a value, or of what it refers to; empty for None."""
    if isinstance(value, str) and value.startswith("${"):
        try:
            value = OmegaConf.select(cfg, key)
        except OmegaConfBaseException:  # it refers to nothing, as of now
            return ""
    value = _plain(value)
    return "" if value is None else "function" if callable(value) else type(value).__name__
