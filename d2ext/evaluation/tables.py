"""Helpers for metrics: check flags, name results by class, format tables."""

import math
from collections.abc import Sequence

import numpy as np
from tabulate import tabulate

from d2ext.errors import UserError


def check_flags(metric: str, **flags: object) -> None:
    """Raise UserError if an argument of a metric is not True or False."""
    for name, value in flags.items():
        if not isinstance(value, bool):
            raise UserError(f"{metric}: {name}={value!r}; give true or false")


def named(
    task: str, names: Sequence[str], values: np.ndarray, classes: Sequence[str], per_class: bool
) -> tuple[dict[str, float], str]:
    """Return the means over the classes, and the values of each class.

    Args:
        task: Name of the task, such as `bbox`.
        names: K names of numbers, such as `AP50`.
        values: (K, C) fractions; NaN if undefined, which the means leave out.
        classes: C class names.
        per_class: Include the values of each class.

    Returns:
        Percent by `<task>/<name>` and `<task>/<name>-<class>`, and a table of both.
    """
    values = 100 * values
    means = [mean(row) for row in values]
    numbers = {f"{task}/{name}": value for name, value in zip(names, means, strict=True)}
    rows = [["all", *means]]
    if per_class:
        rows = [[c, *values[:, i]] for i, c in enumerate(classes)] + rows
        numbers |= {
            f"{task}/{name}-{c}": float(value)
            for name, row in zip(names, values, strict=True)
            for c, value in zip(classes, row, strict=True)
        }
    # Class names are text, even if they look like numbers.
    return numbers, tabulate(rows, ("class", *names), floatfmt=".3f", disable_numparse=[0])


def table_text(rows: Sequence[dict]) -> str:
    """Return a plain-text table of rows with the same keys; floats have two decimal places."""
    # The first column holds class names: text, even if they look like numbers.
    return tabulate(rows, headers="keys", floatfmt=".2f", disable_numparse=[0] if rows else False)


def mean(values: np.ndarray) -> float:
    """Return the mean of the values that are not NaN; NaN if there are none."""
    known = values[~np.isnan(values)]
    return float(known.mean()) if known.size else math.nan
