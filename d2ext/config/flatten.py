"""Nested dicts as dotted keys."""

from collections.abc import Iterable, Iterator
from typing import Any


def flatten(node: Any, prefix: str = "", lists: bool = False) -> Iterator[tuple[str, Any]]:
    """Yield the dotted key and value of each leaf of nested dicts.

    Empty dicts and lists are leaves.

    Args:
        node: Nested dicts and lists of plain values.
        prefix: Key of `node`.
        lists: Whether to descend into lists (`a.0`); otherwise a list is a leaf.
    """
    items: Iterable[tuple[Any, Any]]
    if isinstance(node, dict) and node:
        items = node.items()
    elif lists and isinstance(node, list) and node:
        items = enumerate(node)
    else:
        yield prefix, node
        return
    for name, value in items:
        yield from flatten(value, f"{prefix}.{name}" if prefix else str(name), lists)
