"""config.yaml of a run directory: what its keys hold, and whether it can be trained with."""

from collections.abc import Iterator
from typing import Any

import yaml

# What d2ext/config/saved.py reads beside plain YAML.
_KNOWN = (
    "tag:yaml.org,2002:python/tuple",
    "tag:yaml.org,2002:python/object:detectron2.layers.shape_spec.ShapeSpec",
)


def can_be_loaded(text: str) -> bool:
    """Whether d2ext reads the config again, not only a person."""

    class Loader(yaml.SafeLoader):
        """Takes what d2ext takes."""

    for tag in _KNOWN:
        Loader.add_constructor(tag, _plain)
    return isinstance(_loaded(text, Loader), dict)


def leaves(text: str) -> dict[str, Any]:
    """The values by their keys, such as `train.seed`; {} for what is no YAML."""

    class Loader(yaml.SafeLoader):
        """Takes what it does not know, tuples and Detectron2's shapes, as plain values."""

    Loader.add_multi_constructor("", lambda loader, _, node: _plain(loader, node))
    return dict(_leaves(_loaded(text, Loader), ""))


def _loaded(text: str, loader: type[yaml.SafeLoader]) -> Any:
    try:
        return yaml.load(text, loader)
    except (yaml.YAMLError, ValueError, RecursionError):  # ValueError: a date that does not exist
        return None


def _plain(loader: yaml.SafeLoader, node: yaml.Node) -> Any:
    if isinstance(node, yaml.SequenceNode):
        return loader.construct_sequence(node, deep=True)
    if isinstance(node, yaml.MappingNode):
        return loader.construct_mapping(node, deep=True)
    return loader.construct_scalar(node)


def _leaves(node: Any, prefix: str) -> Iterator[tuple[str, Any]]:
    if isinstance(node, dict) and node:
        for key, value in node.items():
            yield from _leaves(value, f"{prefix}.{key}" if prefix else str(key))
    elif prefix:
        yield prefix, node
