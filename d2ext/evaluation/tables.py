"""Helpers of all metrics: check flags, name results by class, print tables."""

import math
from collections.abc import Sequence

import numpy as np
from tabulate import tabulate

from d2ext.errors import UserError


def check_flags(metric: str, **flags: object) -> None:
    """Raise UserError for an argument of a metric that is neither True nor False."""
    for name, value in flags.items():
        if not isinstance(value, bool):
            raise UserError(f"{metric}: {name}={value!r}; give true or false")


def named(
    task: str, names: Sequence[str], values: np.ndarray, classes: Sequence[str], per_class: bool
) -> tuple[dict[str, float], str]:
    """Return the means over the classes, and the classes' own.

    Args:
        task: for example `bbox`.
        names: K names of numbers, such as `AP50`.
        values: (K, C) fractions; NaN where undefined, which means leave out.
        classes: C names.
        per_class: adds the classes' own.

    Returns:
        `<task>/<name>` and `<task>/<name>-<class>` to percent, and a table of both.
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
    # Classes are texts, whatever they look like.
    return numbers, tabulate(rows, ("class", *names), floatfmt=".3f", disable_numparse=[0])


def table_text(rows: Sequence[dict]) -> str:
    """Rows with the same keys as a table of plain text; floats have two digits."""
    # Classes, in the first column, are texts, whatever they look like.
    return tabulate(rows, headers="keys", floatfmt=".2f", disable_numparse=[0] if rows else False)


def mean(values: np.ndarray) -> float:
    """Return the mean of what is no NaN; NaN of nothing."""
    known = values[~np.isnan(values)]
    return float(known.mean()) if known.size else math.nan
