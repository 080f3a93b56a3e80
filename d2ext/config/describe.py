"""Describe a config: its content, its differences from another, and the meaning of each key."""

import ast
import functools
import inspect
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from d2ext._compat import is_none, raw_value
from d2ext.config.check import accepted
from d2ext.config.help_text import documented, written_help
from d2ext.config.options import train_options
from d2ext.config.overrides import parameters
from d2ext.config.recipes import RECIPES
from d2ext.config.yaml_io import saved_text

_COMMON = RECIPES / "common"
# Sections that all recipes import from the same file, for configs without such imports.
_STARTS = {
    "train": (_COMMON / "train.py", "train"),
    "dataloader": (_COMMON / "data" / "loader.py", "dataloader"),
    "evaluators": (_COMMON / "evaluators.py", "evaluators"),
}
_NONE = inspect.Parameter.empty


class Key(NamedTuple):
    """Description of a config key, as text.

    Attributes:
        name: Dotted name.
        kind: Type or accepted values.
        value: Value in this config; for an argument that the config does not set, the default.
        default: Value before the recipe changes it; None if there is none.
        meaning: One or two sentences.
    """

    name: str
    kind: str
    value: str
    default: str | None
    meaning: str


def whole(cfg: Any) -> str:
    """Return the entire config as YAML."""
    return saved_text(cfg)[0]


def difference(cfg: Any, base: Any) -> list[str]:
    """Return the differences of a config from another, one line per key, sorted by key."""
    mine, theirs = dict(_key_values(cfg, "")), dict(_key_values(base, ""))
    lines = []
    for key in sorted(mine.keys() | theirs.keys()):
        if key not in theirs:
            lines.append(f"{key}: {_shown(mine[key])} (new)")
        elif key not in mine:
            lines.append(f"{key}: removed, was {_shown(theirs[key])}")
        elif _shown(mine[key]) != _shown(theirs[key]):
            lines.append(f"{key}: {_shown(mine[key])}, was {_shown(theirs[key])}")
    return lines


def starting_point(config_file: str | Path) -> Any:
    """Return the sections that a recipe imports from `configs/common`, before it changes them.

    Args:
        config_file: Path of the recipe; if it imports another recipe, that recipe's imports are
            followed. Sections without imports (a run's config.yaml has none) are omitted, except
            for those that all recipes import from the same file.
    """
    from detectron2.config import LazyConfig

    places = _STARTS | _imports(Path(config_file))
    files = {file for file, _ in places.values() if file.is_file()}
    loaded = {file: LazyConfig.load(str(file)) for file in files}
    sections = {name: loaded[file][at] for name, (file, at) in places.items() if file in loaded}
    return OmegaConf.create(sections, flags={"allow_objects": True})


def _imports(file: Path) -> dict[str, tuple[Path, str]]:
    """Return for each section the file of `configs/common` with it, and its name in that file."""
    found: dict[str, tuple[Path, str]] = {}
    if file.suffix != ".py":
        return found
    loaded: dict[str, Path] = {}  # files loaded by get_config, by variable
    for node in ast.parse(file.read_text(encoding="utf-8")).body:
        source, names = None, []
        if isinstance(node, ast.ImportFrom) and node.level and node.module:
            folder = file.resolve().parents[node.level - 1]
            source = folder.joinpath(*node.module.split(".")).with_suffix(".py")
            names = [(alias.asname or alias.name, alias.name) for alias in node.names]
        elif isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            mine, value = node.targets[0].id, node.value
            if recipe := _recipe_of(value):
                loaded[mine] = recipe
            elif isinstance(value, ast.Attribute):
                source = _recipe_of(value.value) or loaded.get(ast.unparse(value.value))
                names = [(mine, value.attr)]
        if source and "common" in source.parts:
            found |= {mine: (source, name) for mine, name in names}
        elif source and source.is_file():
            theirs = _imports(source)
            found |= {mine: theirs[name] for mine, name in names if name in theirs}
    return found


def _recipe_of(node: ast.expr) -> Path | None:
    """Return the file that a call of `d2ext.get_config` loads; None for other expressions."""
    if not isinstance(node, ast.Call) or ast.unparse(node.func) != "d2ext.get_config":
        return None
    name = getattr(node.args[0], "value", None) if node.args else None
    return RECIPES / name if isinstance(name, str) else None


def keys(cfg: Any, start: Any) -> list[Key]:
    """Return every key that an override can set, in the config's order.

    Meanings come from `TrainOptions`, else from help_text.py, else from the docstring of the
    `_target_`; without any of these, the meaning names the callable.

    Args:
        cfg: Config returned by `load_config`.
        start: Sections returned by `starting_point`.
    """
    rows = []
    for name, value in _key_values(cfg, "", arguments=True):
        kind, meaning = _described(cfg, name, value)
        default = _default(start, cfg, name)
        rows.append(
            Key(name, kind, _shown(value), None if default is _NONE else _shown(default), meaning)
        )
    return rows


def _key_values(node: Any, prefix: str, arguments: bool = False) -> Iterator[tuple[str, Any]]:
    """Yield keys and values; with `arguments`, include defaults of arguments that calls omit."""
    if isinstance(node, DictConfig) and not is_none(node) and len(node):
        for key in node:
            below = f"{prefix}.{key}" if prefix else str(key)
            yield from _key_values(raw_value(node, key), below, arguments)
        left_out = parameters(node).items() if arguments else ()
        for name, parameter in left_out:
            if name not in node and parameter.default is not _NONE:
                yield f"{prefix}.{name}", parameter.default
    elif isinstance(node, ListConfig) and any(isinstance(x, DictConfig) for x in node):
        for i in range(len(node)):
            yield from _key_values(raw_value(node, i), f"{prefix}[{i}]", arguments)
    else:
        yield prefix, node


def _plain(value: Any) -> Any:
    if isinstance(value, (DictConfig, ListConfig)):
        return None if is_none(value) else OmegaConf.to_container(value, resolve=False)
    return value


def _shown(value: Any) -> str:
    value = _plain(value)
    if isinstance(value, functools.partial):
        given = [*map(_shown, value.args), *(f"{k}={_shown(v)}" for k, v in value.keywords.items())]
        return f"partial({', '.join([_shown(value.func), *given])})"
    if hasattr(value, "__qualname__"):
        return f"{value.__module__}.{value.__qualname__}"
    return value if isinstance(value, str) and value else repr(value)


def _default(start: Any, cfg: Any, key: str) -> Any:
    """Return the value in `start` if its `_target_` is the same, else the signature's default."""
    section, mine, name = _section(start, key), _section(cfg, key), key.rpartition(".")[2]
    if section is not None and name in section:
        if name == "_target_" or _target(section) == _target(mine):
            return raw_value(section, name)
    given = _parameters(mine).get(name)
    return given.default if given else _NONE


def _section(cfg: Any, key: str) -> DictConfig | None:
    """Return the dict that contains a key."""
    parent = key.rpartition(".")[0]
    found = OmegaConf.select(cfg, parent) if parent else cfg
    return found if isinstance(found, DictConfig) else None


def _parameters(section: DictConfig | None) -> Mapping[str, inspect.Parameter]:
    """Return the parameters of a section's `_target_`, or of its class (such as ShapeSpec)."""
    if section is None:
        return {}
    kind = OmegaConf.get_type(section)
    if kind is None or kind is dict or "_target_" in section:
        return parameters(section)
    return inspect.signature(kind).parameters


def _target(node: DictConfig | None) -> Any:
    """Return the callable of a section; None for a plain dict."""
    from detectron2.utils.registry import locate

    target = node.get("_target_") if node is not None else None
    return locate(target) if isinstance(target, str) else target


def _described(cfg: Any, key: str, value: Any) -> tuple[str, str]:
    """Return the type and the meaning of a key."""
    if option := train_options().get(key):
        return str(option.accepts), option.help
    parent, _, name = key.rpartition(".")
    section = _section(cfg, key)
    target = _target(section)
    hint, meaning = written_help(key, target)
    kind = ""
    if target:
        if name == "_target_":
            what = " ".join((inspect.getdoc(target) or "").strip().partition("\n\n")[0].split())
            return "function", what or "callable that gets the other keys as arguments"
        kind, text = documented(target).get(name, ("", ""))
        meaning = meaning or text or f"argument of {_shown(target)}; see its documentation"
    elif parent and not meaning and (of := _described(cfg, parent, None)[1]):
        meaning = f"of {parent.rpartition('.')[2]}: {of}"
    given = _parameters(section).get(name)
    kind = accepted(key) or hint or _annotation(given) or _kind(cfg, key, value) or kind or "any"
    return kind, meaning


def _annotation(parameter: inspect.Parameter | None) -> str:
    """Return a parameter's type in the notation of check.py, without module names."""
    if parameter is None or parameter.annotation is _NONE:
        return ""
    text = re.sub(r"\b(?:\w+\.)+(?=\w)", "", inspect.formatannotation(parameter.annotation))
    text = re.sub(r"Optional\[(.*)\]", r"\1 | None", text)
    return text.replace(" | ", " or ").replace("None", "null")


def _kind(cfg: Any, key: str, value: Any) -> str:
    """Return the type of a value, resolving references; empty for None."""
    if isinstance(value, str) and value.startswith("${"):
        try:
            value = OmegaConf.select(cfg, key)
        except OmegaConfBaseException:  # the reference cannot be resolved yet
            return ""
    value = _plain(value)
    return "" if value is None else "function" if callable(value) else type(value).__name__
