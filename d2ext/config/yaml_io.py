"""Save a config as YAML, and read it again without running any code.

Detectron2 writes the same format, but its loader creates any Python object that a tag names.
"""

import functools
import itertools
import sys
from collections.abc import Iterator
from typing import Any

from d2ext.config.flatten import flatten

_SHAPE = "tag:yaml.org,2002:python/object:detectron2.layers.shape_spec.ShapeSpec"
_TUPLE = "tag:yaml.org,2002:python/tuple"
_LOCATE = "detectron2.utils.registry.locate"
_PARTIAL = "d2ext.config.calls.partial_of"


def saved_text(cfg: Any) -> tuple[str, str | None]:
    """Return a config as YAML, and the fields that the text does not hold, or None.

    Args:
        cfg: An omegaconf DictConfig; interpolations are kept.
    """
    import yaml
    from omegaconf import OmegaConf, SCMode

    class Dumper(yaml.Dumper):
        pass

    def other(dumper: yaml.Dumper, value: Any) -> yaml.Node:
        try:
            return dumper.represent_object(value)
        except Exception:  # raised by the object, such as a lock, which cannot be pickled
            return dumper.represent_scalar("!object", type(value).__qualname__)

    Dumper.add_multi_representer(object, other)
    plain = OmegaConf.to_container(cfg, resolve=False, structured_config_mode=SCMode.INSTANTIATE)
    text = yaml.dump(
        _with_names(plain), Dumper=Dumper, default_flow_style=None, allow_unicode=True, width=9999
    )
    try:
        parse_saved(text)
    except Exception as e:  # from YAML or omegaconf
        lost = ", ".join(_lost(_with_names(plain), Dumper))
        return text, lost or str(e).splitlines()[0]
    return text, None


def _lost(values: Any, dumper: Any) -> Iterator[str]:
    """Yield each field that cannot be read again, with the name of its value."""
    import yaml

    for key, value in flatten(values, lists=True):
        try:
            parse_saved(yaml.dump({"value": value}, Dumper=dumper))
        except Exception:  # from YAML or omegaconf
            named = value if hasattr(value, "__qualname__") else type(value)
            yield f"{key} ({named.__qualname__})"


def _with_names(value: Any, in_call: bool = False) -> Any:
    """Replace functions, classes and partial functions by names and lazy calls.

    Args:
        value: Content of a config, as plain dicts and lists.
        in_call: Whether Detectron2 instantiates the value, as it does for arguments of lazy calls.
    """
    if isinstance(value, dict):
        is_call = "_target_" in value
        return {
            k: _named(v) if k == "_target_" else _with_names(v, is_call) for k, v in value.items()
        }
    if isinstance(value, list):
        return [_with_names(v, in_call) for v in value]
    return _call_of(value) if in_call else value


def _call_of(value: Any) -> Any:
    """Return the lazy call that makes a function, class or partial function; else the value.

    Its name is looked up when the config is instantiated: to import a module is to run its code.
    """
    if isinstance(value, functools.partial):
        function = _call_of(value.func)
        if function is value.func or value.args or "function" in value.keywords:
            return value
        arguments = _with_names(value.keywords | {"_target_": _PARTIAL})
        return {**arguments, "function": function}
    name = _named(value) if callable(value) else value
    return {"_target_": _LOCATE, "name": name} if name is not value else value


def _named(target: Any) -> Any:
    """Return `package.name` of the outermost package that exports the target.

    Detectron2 can find the target by that name. Its own search for such a name tries to import each
    candidate and then Hydra, which takes 0.05 s at each start. Objects without such a name, such as
    functions defined in a config file, are returned unchanged.
    """
    module, name = getattr(target, "__module__", None), getattr(target, "__qualname__", None)
    for package in itertools.accumulate((module or "").split("."), "{}.{}".format):
        found = sys.modules.get(package)
        for part in (name or "").split("."):
            found = getattr(found, part, None)
        if found is target is not None:
            return f"{package}.{name}"
    return target


def parse_saved(text: str, name: str = "config.yaml") -> Any:
    """Return the config in a YAML text: plain values, tuples and Detectron2's ShapeSpec.

    Args:
        text: Content of the file.
        name: Name of the file, for messages.

    Raises:
        yaml.YAMLError: The text holds other objects, or is not valid YAML.
    """
    import yaml
    from omegaconf import OmegaConf

    class Loader(yaml.SafeLoader):
        pass

    def shape(loader: yaml.SafeLoader, node: yaml.MappingNode) -> Any:
        from detectron2.layers import ShapeSpec

        fields: dict[Any, Any] = loader.construct_mapping(node)
        return ShapeSpec(**fields)

    def values(loader: yaml.SafeLoader, node: yaml.SequenceNode) -> tuple:
        return tuple(loader.construct_sequence(node, deep=True))

    Loader.add_constructor(_SHAPE, shape)
    Loader.add_constructor(_TUPLE, values)
    loader = Loader(text)
    loader.name = name
    return OmegaConf.create(loader.get_single_data(), flags={"allow_objects": True})
