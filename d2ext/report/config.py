"""config.yaml of a run directory: what its keys hold."""

from collections.abc import Iterator
from typing import Any

import yaml

from d2ext.config.renamed import current_name


class _Loader(yaml.SafeLoader):
    """Takes what it does not know, tuples and Detectron2's shapes, as plain values."""


def _plain(loader: yaml.SafeLoader, _: str, node: yaml.Node) -> Any:
    if isinstance(node, yaml.SequenceNode):
        return loader.construct_sequence(node, deep=True)
    if isinstance(node, yaml.MappingNode):
        return loader.construct_mapping(node, deep=True)
    return loader.construct_scalar(node)


_Loader.add_multi_constructor("", _plain)


def leaves(text: str) -> dict[str, Any]:
    """The values by their keys, such as `train.seed`; {} for what is no YAML."""
    try:
        return dict(_leaves(yaml.load(text, _Loader), ""))
    except (yaml.YAMLError, ValueError, RecursionError):  # ValueError: a date that does not exist
        return {}


def _leaves(node: Any, prefix: str) -> Iterator[tuple[str, Any]]:
    if isinstance(node, dict) and node:
        for key, value in node.items():
            yield from _leaves(value, f"{prefix}.{key}" if prefix else str(key))
    elif prefix:
        is_target = prefix.endswith("_target_") and isinstance(node, str)
        yield prefix, current_name(node) if is_target else node
