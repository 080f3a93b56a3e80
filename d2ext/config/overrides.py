"""Strict overrides: `a.b=c` sets a known field to a value of its type; anything else is an error.

Detectron2's `LazyConfig.apply_overrides` silently adds misspelled keys, and its grammar refuses
`=`, `(`, commas and non-ASCII letters in values.
"""

import inspect
import json
import re
import shlex
from collections.abc import Iterator, Sequence
from typing import Any

from d2ext._compat import is_none, raw_value
from d2ext.config.check import accepted, check_field, target_name
from d2ext.config.renamed import current_name, rename_targets
from d2ext.errors import UserError
from d2ext.text import did_you_mean, plural

# Fields, by the end of their key, that accept other types than that of their current value, in
# addition to the fields in check.py.
_UNIONS: dict[tuple[str, ...], tuple[type, ...]] = {
    ("dataset", "names"): (str, list),
    ("dataset", "repeat"): (int, list),
    ("short_edge_length",): (int, list),
}
# A run has one length, so a value for one field clears the other.
_OTHER_LENGTH = {"train.max_epochs": "max_iter", "train.max_iter": "max_epochs"}
_NAME = r"[^.\[\]{}\"'+]+"
_KEY = re.compile(rf"{_NAME}(\.{_NAME}|\[{_NAME}\])*")
# Characters of a plain number, true, false or null.
_WORD = re.compile(r"[-+.:~\w]+")


def apply_overrides(cfg: Any, overrides: Sequence[str]) -> None:
    """Apply `key=value` strings to a config in place, in order.

    A value that starts with a bracket, brace or quote is parsed as YAML, as are numbers, true,
    false and null; None means null; everything else is text. A dict changes the fields that it
    names; a dict with another `_target_` replaces the whole value.

    `+key=value` adds a field that the config does not have, along with its parent sections.
    `+key[N]=value` appends to a list of N items. A value for `train.max_epochs` clears
    `train.max_iter` and vice versa.

    Args:
        cfg: An omegaconf DictConfig.
        overrides: Overrides from the command line.

    Raises:
        UserError: An override is a flag, has no `=`, an unknown key or a value of the wrong type.
    """
    if isinstance(overrides, str):
        raise UserError(f"overrides={overrides!r} is a string; give a list of key=value strings")
    for text in overrides:
        if text == "--":  # separates flags from arguments
            continue
        if text.startswith("-"):
            raise UserError(f"the flag {text!r} must come before the first key=value")
        written, equals, value = text.partition("=")
        if not equals or not written.strip("+ "):
            raise UserError(f"the override {text!r} is not of the form key=value")
        force, key = written.startswith("+"), written.removeprefix("+").strip()
        if not _KEY.fullmatch(key):
            raise UserError(
                f"cannot parse the key {key!r} of the override {text!r}; write keys as a.b[0].c, or"
                " +a.b[N]=... to append to a list of N items"
            )
        if key.startswith("dist_params."):  # MMDetection's name for it
            key = key.replace("dist_params", "train.dist", 1)
        parsed = _parse(written, value)
        if key.endswith("_target_") and isinstance(parsed, str):
            parsed = current_name(parsed)
        _set(cfg, key, parsed, force)


def _set(cfg: Any, key: str, value: Any, force: bool) -> None:
    from omegaconf import DictConfig, ListConfig, OmegaConf
    from omegaconf.errors import GrammarParseError

    node, parts = cfg, _split(key)
    add = force or bool(accepted(".".join(parts)))  # a config may lack a field known to d2ext
    for depth, part in enumerate(parts[:-1]):
        if not _holds(node, part):
            below = parts[depth + 1]
            if below.isdecimal() and below != "0":
                raise UserError(f"unknown key {key!r}; a new list starts at [0]")
            if not add or not _has_room(node, part):
                raise _unknown(cfg, key, node, parts[:depth])
            content: Any = [] if below == "0" else {}
            _put(node, part, OmegaConf.create(content, flags={"allow_objects": True}))
        node = _value(node, part)
        if not isinstance(node, (DictConfig, ListConfig)):
            prefix = ".".join(parts[: depth + 1])
            raise UserError(
                f"{key}: {prefix} is {node!r}, which has no fields; set {prefix}=... as a whole"
            )
    leaf = parts[-1]
    if _holds(node, leaf):
        old = _value(node, leaf)
        _check_type(key, value, old)
        if isinstance(old, DictConfig) and isinstance(value, dict) and _same_target(old, value):
            # Merging the dict checks each of its keys.
            for name, item in value.items():
                _set(cfg, f"{key}.{name}", item, force)
            return
    elif not add or not _has_room(node, leaf):
        parameter = parameters(node).get(leaf) if isinstance(node, DictConfig) else None
        if parameter is None:
            raise _unknown(cfg, key, node, parts[:-1])
        if parameter.default is not inspect.Parameter.empty:
            _check_type(key, value, parameter.default)
    try:
        _put(node, leaf, value)
    except GrammarParseError as e:  # an incomplete interpolation
        raise UserError(f"{key}: cannot parse {value!r}: {str(e).splitlines()[0]}") from e
    other = _OTHER_LENGTH.get(".".join(parts))
    if other and other in node and value is not None:
        node[other] = None


def _has_room(node: Any, part: str) -> bool:
    """Return whether a field can be added: any field of a dict, or the next item of a list."""
    from omegaconf import ListConfig

    return not isinstance(node, ListConfig) or part == str(len(node))


def _put(node: Any, part: str, value: Any) -> None:
    from omegaconf import ListConfig

    if isinstance(node, ListConfig) and part == str(len(node)):
        node.append(value)
    else:
        node[_index(node, part)] = value


def _same_target(old: Any, new: dict[str, Any]) -> bool:
    """Return whether both dicts have the same `_target_`, or the new one has none."""
    return "_target_" not in new or target_name(old.get("_target_")) == target_name(new["_target_"])


def _value(node: Any, part: str) -> Any:
    """Return a field's value; None for `???` and interpolations that do not resolve."""
    from omegaconf.errors import OmegaConfBaseException

    try:
        return node[_index(node, part)]
    except OmegaConfBaseException:
        return None


def _split(key: str) -> list[str]:
    """Split a key into its parts; `a.b[0].c` and `a.b.0.c` name the same field."""
    return key.replace("[", ".").replace("]", "").split(".")


def _index(node: Any, part: str) -> str | int:
    from omegaconf import ListConfig

    return int(part) if isinstance(node, ListConfig) else part


def _holds(node: Any, part: str) -> bool:
    from omegaconf import ListConfig

    if isinstance(node, ListConfig):
        return part.isdecimal() and int(part) < len(node)
    return part in node.keys()


def _parse(key: str, text: str) -> Any:
    import yaml
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    if text.strip() == "None":
        return None
    plain = text[:1] not in tuple("[{'\"")
    if plain and not _WORD.fullmatch(text.strip()):
        return text
    try:
        # omegaconf's YAML reads 1e-4 as a number, which plain YAML 1.1 does not.
        items = OmegaConf.create(f"- {text}")
        rename_targets(items)
        listed: Any = OmegaConf.to_container(items, resolve=False)
        value = listed[0]
        if plain:
            return text if isinstance(value, str | list | dict) else value
        node = yaml.compose(text)
        if node is not None and node.end_mark.index < len(text.rstrip()):
            raise yaml.MarkedYAMLError(problem="there is text after its end")
        return value
    except (yaml.YAMLError, OmegaConfBaseException) as e:
        if plain:
            return text
        reason = str(getattr(e, "problem", None) or e).splitlines()[0]
        as_text = shlex.quote(f"{key}={json.dumps(text, ensure_ascii=False)}")
        raise UserError(
            f"{key}: cannot parse the value {text!r}: {reason}; if the shell split the override,"
            f" quote it; for text, write {as_text}"
        ) from e


def _check_type(key: str, value: Any, old: Any) -> None:
    if isinstance(value, str) and value.startswith("${"):
        return
    parts = tuple(_split(key))
    if parts[-1] == "_target_" and isinstance(value, str):  # the name of a function or class
        return
    if check_field(".".join(parts), value):
        return
    allowed = next((types for end, types in _UNIONS.items() if parts[-len(end) :] == end), None)
    if allowed is None and old is not None:
        allowed = (float, int) if isinstance(old, float) else (_kind(old),)
    if value is None or allowed is None or _kind(value) in allowed:
        return
    names = " or ".join(t.__name__ for t in allowed)
    raise UserError(f"{key} takes {names}, not {_kind(value).__name__} ({value!r})")


def _kind(value: Any) -> type:
    from omegaconf import DictConfig, ListConfig

    if isinstance(value, (DictConfig, dict)):
        return dict
    if isinstance(value, (ListConfig, list, tuple)):
        return list
    return type(value)


def parameters(node: Any) -> dict[str, inspect.Parameter]:
    """Return the parameters of a node's `_target_`; with `**kwargs`, also those of base classes."""
    from detectron2.utils.registry import locate

    target = node.get("_target_")
    if target is None:
        return {}
    if isinstance(target, str):
        try:
            target = locate(target)
        except Exception:  # of any module's import; reported when the target is built
            return {}
    found: dict[str, inspect.Parameter] = {}
    levels = [c.__init__ for c in getattr(target, "__mro__", ())]
    for level in levels or [target]:
        try:
            parameters = inspect.signature(level).parameters.values()
        except (TypeError, ValueError):  # a builtin without a signature
            break
        for p in parameters:
            if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY) and p.name != "self":
                found.setdefault(p.name, p)
        if not any(p.kind is p.VAR_KEYWORD for p in parameters):
            break
    return found


def _unknown(cfg: Any, key: str, node: Any, path: Sequence[str]) -> UserError:
    """Return the error for a key that `node`, the part of the config at `path`, does not have."""
    from omegaconf import ListConfig

    if isinstance(node, ListConfig):
        name, items = ".".join(path), plural(len(node), "item")
        return UserError(
            f"unknown key {key!r}; {name} has {items}; +{name}[{len(node)}]=... appends one"
        )
    known = list(_all_keys(cfg))
    # The same name in another section is a better guess than a similar path.
    last = key.rpartition(".")[2]
    namesakes = [k for k in known if k.rpartition(".")[2] == last]
    hint = did_you_mean(key, namesakes or known, "no known key is similar", cutoff=0.4)
    return UserError(f"unknown key {key!r}; {hint} (+{key}=... adds a new one)")


def _all_keys(node: Any, prefix: str = "") -> Iterator[str]:
    from omegaconf import DictConfig, ListConfig, OmegaConf

    if isinstance(node, DictConfig):
        items = [(k, raw_value(node, k)) for k in node.keys() if k != "_target_"]
    else:
        items = [(str(i), raw_value(node, i)) for i in range(len(node))]
    for name, child in items:
        yield f"{prefix}{name}"
        if isinstance(child, (DictConfig, ListConfig)) and not OmegaConf.is_interpolation(child):
            if not is_none(child):
                yield from _all_keys(child, f"{prefix}{name}.")
