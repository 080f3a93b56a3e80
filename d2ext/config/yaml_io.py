"""Save a config as YAML, and read it again without running any code.

Detectron2 writes the same, and reads it with a loader that makes whatever Python object a tag
names.
"""

import itertools
import sys
from typing import Any

_SHAPE = "tag:yaml.org,2002:python/object:detectron2.layers.shape_spec.ShapeSpec"
_TUPLE = "tag:yaml.org,2002:python/tuple"


def saved_text(cfg: Any) -> tuple[str, str | None]:
    """Return a config as YAML, and why it cannot be read again, or None.

    Args:
        cfg: an omegaconf DictConfig; interpolations stay as they are.
    """
    import yaml
    from omegaconf import OmegaConf, SCMode

    class Dumper(yaml.Dumper):
        pass

    def other(dumper: yaml.Dumper, value: Any) -> yaml.Node:
        try:
            return dumper.represent_object(value)
        except Exception:  # of the object's own, such as a lock's, which cannot be pickled
            return dumper.represent_scalar("!object", type(value).__qualname__)

    Dumper.add_multi_representer(object, other)
    plain = OmegaConf.to_container(cfg, resolve=False, structured_config_mode=SCMode.INSTANTIATE)
    text = yaml.dump(
        _with_names(plain), Dumper=Dumper, default_flow_style=None, allow_unicode=True, width=9999
    )
    try:
        parse_saved(text)
    except Exception as e:  # of YAML, or of omegaconf
        problem = getattr(e, "problem", None) or str(e)
        return text, problem.splitlines()[0]
    return text, None


def _with_names(value: Any) -> Any:
    """Return a value with names for the functions and classes that are targets."""
    if isinstance(value, dict):
        return {k: _named(v) if k == "_target_" else _with_names(v) for k, v in value.items()}
    return [_with_names(v) for v in value] if isinstance(value, list) else value


def _named(target: Any) -> Any:
    """Return `package.name` by the outermost package that has it, where Detectron2 finds it.

    Its own search tries to import each candidate and, for lack of it, Hydra: 0.05 s at each start.
    Objects without such a name stay, such as a config file's own functions.
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
        text: of the file.
        name: of the file, for messages.

    Raises:
        yaml.YAMLError: it holds something else, or is no YAML.
    """
    import yaml
    from omegaconf import OmegaConf

    class Loader(yaml.SafeLoader):
        pass

    def shape(loader: yaml.SafeLoader, node: yaml.MappingNode) -> Any:
        from detectron2.layers import ShapeSpec

        return ShapeSpec(**loader.construct_mapping(node))

    def values(loader: yaml.SafeLoader, node: yaml.SequenceNode) -> tuple:
        return tuple(loader.construct_sequence(node, deep=True))

    Loader.add_constructor(_SHAPE, shape)
    Loader.add_constructor(_TUPLE, values)
    loader = Loader(text)
    loader.name = name
    return OmegaConf.create(loader.get_single_data(), flags={"allow_objects": True})
