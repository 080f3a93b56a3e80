"""Save a config as YAML, and read it again without running any code.

Detectron2 writes the same format, but its loader creates any Python object that a tag names.
"""

import itertools
import sys
from typing import Any

_SHAPE = "tag:yaml.org,2002:python/object:detectron2.layers.shape_spec.ShapeSpec"
_TUPLE = "tag:yaml.org,2002:python/tuple"


def saved_text(cfg: Any) -> tuple[str, str | None]:
    """Return a config as YAML, and the reason why it cannot be read again, or None.

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
        problem = getattr(e, "problem", None) or str(e)
        return text, problem.splitlines()[0]
    return text, None


def _with_names(value: Any) -> Any:
    """Replace functions and classes that are targets by their names."""
    if isinstance(value, dict):
        return {k: _named(v) if k == "_target_" else _with_names(v) for k, v in value.items()}
    return [_with_names(v) for v in value] if isinstance(value, list) else value


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
