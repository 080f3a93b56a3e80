"""Nested dicts as dotted keys."""

from collections.abc import Iterator
from typing import Any


def flatten(node: Any, prefix: str = "", lists: bool = False) -> Iterator[tuple[str, Any]]:
    """Yield dotted key and value of everything in nested dicts that is not a dict itself.

    Args:
        node: Plain values.
        prefix: Key of `node`.
        lists: Whether the items of a list have keys (`a.0`); otherwise the list is a value. Empty
            dicts and lists are values.
    """
    if isinstance(node, dict) and node:
        items = node.items()
    elif lists and isinstance(node, list) and node:
        items = enumerate(node)
    else:
        yield prefix, node
        return
    for name, value in items:
        yield from flatten(value, f"{prefix}.{name}" if prefix else str(name), lists)
