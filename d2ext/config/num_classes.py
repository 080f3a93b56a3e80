"""Set the class count of a model's heads from the data, or check it.

A model may keep its class count in several places: heads, criterion, matcher, or yacs' NUM_CLASSES.
"""

import copy
import re
from collections.abc import Collection, Iterator
from typing import Any

from omegaconf import DictConfig, ListConfig, OmegaConf

from d2ext.config.model_kind import meta_architecture, yacs_model
from d2ext.errors import UserError
from d2ext.text import plural, shortened

_MASK_HEAD = re.compile(r"mask_head(\.\d+)?\.num_classes$")  # of one stage, or of each stage
_STUFF_ONLY = {"SemanticSegmentor", "PanopticDeepLab"}  # their counts are not those of objects


def check_num_classes(model: Any, classes: list[str]) -> None:
    """Check the data's class count against each head that states one.

    A mask head with one class is class-agnostic. DETR-like models may also count "no object" or
    stuff.

    Raises:
        UserError: A head has another number of classes.
    """
    counts = dict(class_fields(model, "model"))
    if yacs_model(model) is not None and len(classes) in counts.values():
        return  # sections that a project's model does not read have their default, 80
    for field, value in counts.items():
        agnostic = value == 1 and _MASK_HEAD.search(field) is not None
        more = value is not None and value > len(classes) and "criterion" in model
        if value not in (None, len(classes)) and not agnostic and not more:
            raise UserError(
                f"{field}={value}, but the data has {plural(len(classes), 'class')}"
                f" ({shortened(classes, 8)}); set {field}="
                f"{len(classes)}, or null to take it from the data"
            )


def class_counts_to_follow(model: Any, old_count: int) -> list[tuple[str, int]]:
    """Return the fields and values of a model's class counts that equal a dataset's.

    Args:
        model: Section `model` of a config.
        old_count: Class count of the dataset that the config was made for.
    """
    return [(f, n) for f, n in class_fields(model, "model") if n is not None and n == old_count]


def follow_classes(model: Any, old_count: int) -> list[str]:
    """Let class counts that equal the old dataset's follow the data: set them to null, in place.

    Args:
        model: Section `model` of a config.
        old_count: Class count of the dataset that the config was made for.

    Returns:
        A line for each field.
    """
    lines = []
    # Interpolations follow the field that they refer to, unless it is outside of the model.
    for interpolated in (False, True):
        for field, value in class_counts_to_follow(model, old_count):
            node, key = _place(model, field.removeprefix("model."))
            if interpolated or not OmegaConf.is_interpolation(node, key):
                node[key] = None
                lines.append(f"{field}={value} now follows the data")
    return lines


def with_num_classes(model: Any, num_classes: int) -> Any:
    """Return a copy of a model's config in which each head has the data's class count."""
    model = copy.deepcopy(model)  # keeps its parent, which interpolations need
    for field, value in list(class_fields(model, "")):
        if value is None:
            node, key = _place(model, field.removeprefix("."))
            node[key] = num_classes
    return model


def class_fields(model: Any, prefix: str) -> Iterator[tuple[str, int | None]]:
    """Yield each class count in a model's config: its field, and its value or None.

    Counts of stuff, and those of a backbone's classifier, are skipped.
    """
    kind, skipped = meta_architecture(model), {"backbone"}
    if kind in _STUFF_ONLY:
        return
    if kind == "PanopticFPN" or "roi_heads" in model:
        skipped.add("sem_seg_head")
    if yacs_model(model) is not None:
        skipped.add("roi_heads" if kind == "RetinaNet" else "retinanet")
    yield from _counts(model, prefix, skipped)


def _counts(node: Any, prefix: str, skipped: Collection[str]) -> Iterator[tuple[str, int | None]]:
    items = node.items() if isinstance(node, DictConfig) else enumerate(node)
    for key, child in items:
        name = str(key).lower()  # in upper case in yacs
        if name == "num_classes":
            yield f"{prefix}.{key}", child
        elif isinstance(child, DictConfig | ListConfig) and name not in skipped:
            yield from _counts(child, f"{prefix}.{key}", skipped)


def _place(model: Any, field: str) -> tuple[Any, str]:
    """Return the node that holds a field, and the field's key in it."""
    *parents, key = field.split(".")
    node = model
    for part in parents:
        node = node[int(part) if isinstance(node, ListConfig) else part]
    return node, key
