"""Set the class count of a model's heads from the data, or check it."""

import copy
from collections.abc import Iterator, Sequence
from typing import Any

from omegaconf import DictConfig, ListConfig

from d2ext.errors import UserError
from d2ext.text import plural, shortened


def check_num_classes(model: Any, classes: list[str]) -> None:
    """Check the data's class count against each head that states one.

    A mask head with one class is class-agnostic.

    Raises:
        UserError: A head has another number of classes.
    """
    for field, value in class_fields(model, "model"):
        agnostic = value == 1 and field.endswith("mask_head.num_classes")
        if value is not None and value != len(classes) and not agnostic:
            raise UserError(
                f"{field}={value}, but the data has {plural(len(classes), 'class')}"
                f" ({shortened(classes, 8)}); set {field}="
                f"{len(classes)}, or null to take it from the data"
            )


def with_num_classes(model: Any, num_classes: int) -> Any:
    """Return a copy of a model's config in which each head has the data's class count."""
    model = copy.deepcopy(model)  # keeps its parent, which interpolations need
    for field, value in list(class_fields(model, "")):
        if value is None:
            *parents, last = field.removeprefix(".").split(".")
            _node(model, parents)[last] = num_classes
    return model


def class_fields(node: Any, prefix: str) -> Iterator[tuple[str, int | None]]:
    """Yield each class count in a model's config: its field, and its value or None."""
    items = node.items() if isinstance(node, DictConfig) else enumerate(node)
    for key, child in items:
        if key == "num_classes":
            yield f"{prefix}.{key}", child
        # Semantic heads count stuff, not the dataset's things.
        elif isinstance(child, (DictConfig, ListConfig)) and key != "sem_seg_head":
            yield from class_fields(child, f"{prefix}.{key}")


def follow_classes(model: Any, old: int | None) -> list[str]:
    """Set each class count of `old` in a model's config to None, so that it follows the data.

    Returns:
        A line for each field that changed.
    """
    fields = [field for field, n in class_fields(model, "model") if n is not None and n == old]
    for field in fields:
        *parents, last = field.split(".")[1:]
        _node(model, parents)[last] = None
    return [f"{field}={old} follows the classes of the data" for field in fields]


def _node(root: Any, parts: Sequence[str]) -> Any:
    for part in parts:
        root = root[int(part) if isinstance(root, ListConfig) else part]
    return root
