"""Strict overrides: `a.b=c` changes a known field to a value of its type, or is an error.

Detectron2's own `LazyConfig.apply_overrides` adds a misspelt key silently, and its grammar refuses
`=`, `(`, commas and letters outside ASCII in values.
"""

import difflib
import inspect
import re
from collections.abc import Iterator, Sequence
from typing import Any

from d2ext.config.check import check_field
from d2ext.errors import UserError

# Fields that take more than the type of their present value, beside those that check.py knows. The
# last parts of the key decide.
_UNIONS: dict[tuple[str, ...], tuple[type, ...]] = {
    ("dataset", "names"): (str, list),
    ("dataset", "repeat"): (int, list),
    ("short_edge_length",): (int, list),
}
# A run has one length: a value for one clears the other.
_OTHER_LENGTH = {"train.max_epochs": "max_iter", "train.max_iter": "max_epochs"}
# What a plain number, true, false or null is made of.
_WORD = re.compile(r"[-+.:~\w]+")


def apply_overrides(cfg: Any, overrides: Sequence[str]) -> None:
    """Applies `key=value` strings to a config in place, in their order.

    A value that starts with a bracket, brace or quote is YAML; a number, true, false or null is
    what YAML takes it for; everything else is text, to its end. `+key=value` adds a field that the
    config does not know. A value for `train.max_epochs` clears `train.max_iter` and vice versa.

    Args:
        cfg: an omegaconf DictConfig.
        overrides: as typed behind the command.

    Raises:
        UserError: a flag among them, no `=`, an unknown key, a wrong type.
    """
    for text in overrides:
        if text == "--":  # the shell's end of the flags
            continue
        if text.startswith("-"):
            raise UserError(
                f"the flag {text!r} stands behind the overrides; put it before the first key=value"
            )
        key, equals, value = text.partition("=")
        if not equals or not key.strip("+ "):
            raise UserError(f"the override {text!r} is not of the form key=value")
        force, key = key.startswith("+"), key.removeprefix("+").strip()
        if key.startswith("dist_params."):  # the guide's name for it
            key = key.replace("dist_params", "train.dist", 1)
        _set(cfg, key, _parse(key, value), force)


def _set(cfg: Any, key: str, value: Any, force: bool) -> None:
    from omegaconf import DictConfig, ListConfig, OmegaConf
    from omegaconf.errors import GrammarParseError

    node, parts = cfg, _split(key)
    for depth, part in enumerate(parts[:-1]):
        if not _holds(node, part):
            if not (force and isinstance(node, DictConfig)):
                raise _unknown(cfg, key)
            node[part] = OmegaConf.create({}, flags={"allow_objects": True})
        node = _value(node, part)
        if not isinstance(node, (DictConfig, ListConfig)):
            prefix = ".".join(parts[: depth + 1])
            raise UserError(f"{key}: {prefix} is {node!r}, which has no fields")
    leaf = parts[-1]
    if _holds(node, leaf):
        old = _value(node, leaf)
        _check_type(key, value, old)
        if isinstance(old, DictConfig) and isinstance(value, dict):
            # A dict merges into the one there, so that each of its keys is checked as well.
            for name, item in value.items():
                _set(cfg, f"{key}.{name}", item, force)
            return
    elif not isinstance(node, DictConfig) or not (force or leaf in parameters(node)):
        raise _unknown(cfg, key)
    elif not force and (default := parameters(node)[leaf].default) is not inspect.Parameter.empty:
        _check_type(key, value, default)
    try:
        node[_index(node, leaf)] = value
    except GrammarParseError as e:  # half an interpolation
        raise UserError(f"{key}: cannot read {value!r}: {str(e).splitlines()[0]}") from e
    other = _OTHER_LENGTH.get(".".join(parts))
    if other and other in node and value is not None:
        node[other] = None


def _value(node: Any, part: str) -> Any:
    """What a field holds; None if that is an interpolation that does not resolve, or `???`."""
    from omegaconf.errors import OmegaConfBaseException

    try:
        return node[_index(node, part)]
    except OmegaConfBaseException:
        return None


def _split(key: str) -> list[str]:
    """`a.b[0].c` and `a.b.0.c` name the same field."""
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

    plain = text[:1] not in tuple("[{'\"")
    if plain and not _WORD.fullmatch(text.strip()):
        return text
    try:
        # omegaconf's YAML reads 1e-4 as a number, which plain YAML 1.1 does not.
        value = OmegaConf.to_container(OmegaConf.create(f"- {text}"), resolve=False)[0]
        if plain:
            return text if isinstance(value, str | list | dict) else value
        if yaml.compose(text).end_mark.index < len(text.rstrip()):
            raise yaml.MarkedYAMLError(problem="it ends before the text does")
        return value
    except (yaml.YAMLError, OmegaConfBaseException) as e:
        if plain:
            return text
        reason = str(getattr(e, "problem", None) or e).splitlines()[0]
        raise UserError(f"{key}: cannot read the value {text!r}: {reason}; quote it") from e


def _check_type(key: str, value: Any, old: Any) -> None:
    if isinstance(value, str) and value.startswith("${"):
        return
    parts = tuple(_split(key))
    if parts[-1] == "_target_" and isinstance(value, str):  # a function by its name
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
    """What the node's `_target_` can be given by name; `**kwargs` passes to the base class only."""
    from detectron2.utils.registry import locate

    target = node.get("_target_")
    if target is None:
        return {}
    if isinstance(target, str):
        target = locate(target)
    found: dict[str, inspect.Parameter] = {}
    levels = [c.__init__ for c in target.__mro__] if inspect.isclass(target) else [target]
    for level in levels:
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


def _unknown(cfg: Any, key: str) -> UserError:
    known = list(_all_keys(cfg))
    # The same name in another section is a better guess than a similar path.
    last = key.rpartition(".")[2]
    namesakes = [k for k in known if k.rpartition(".")[2] == last]
    near = difflib.get_close_matches(key, namesakes or known, n=1, cutoff=0.4)
    hint = f"did you mean {near[0]!r}?" if near else "no known key is near."
    return UserError(f"unknown key {key!r}; {hint} (+{key}=... adds a new one)")


def _all_keys(node: Any, prefix: str = "") -> Iterator[str]:
    from omegaconf import DictConfig, ListConfig

    if isinstance(node, DictConfig):
        items = [(k, node._get_node(k)) for k in node.keys() if k != "_target_"]
    else:
        items = [(str(i), node._get_node(i)) for i in range(len(node))]
    for name, child in items:
        yield f"{prefix}{name}"
        if isinstance(child, (DictConfig, ListConfig)) and not child._is_interpolation():
            if not child._is_none():
                yield from _all_keys(child, f"{prefix}{name}.")
