"""Read the values of a run's config.yaml."""

from typing import Any

import yaml

from d2ext.config.flatten import flatten
from d2ext.config.renamed import current_name


class _Loader(yaml.SafeLoader):
    """Read unknown tags, such as tuples and Detectron2's shapes, as plain values."""


def _plain(loader: yaml.SafeLoader, _: str, node: yaml.Node) -> Any:
    if isinstance(node, yaml.SequenceNode):
        return loader.construct_sequence(node, deep=True)
    if isinstance(node, yaml.MappingNode):
        return loader.construct_mapping(node, deep=True)
    return loader.construct_scalar(node)


_Loader.add_multi_constructor("", _plain)


def leaves(text: str) -> dict[str, Any]:
    """Return the values by their dotted keys, such as `train.seed`; {} for invalid YAML."""
    try:
        values = yaml.load(text, _Loader)
        found = dict(flatten(values)) if isinstance(values, dict) and values else {}
    except (yaml.YAMLError, ValueError, RecursionError):  # ValueError: a date that does not exist
        return {}
    for key, value in found.items():
        if key.endswith("_target_") and isinstance(value, str):
            found[key] = current_name(value)
    return found
