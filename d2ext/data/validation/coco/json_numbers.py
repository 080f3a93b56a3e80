"""Numbers that a file holds as something else."""

import math
from typing import Any


def integer(value: Any) -> int | None:
    """Return the integer that 7, 7.0 and "7" mean; None for anything else, and beyond 2**53."""
    value = number(value)
    if value is None or value != int(value) or abs(value) > 2**53:
        return None
    return int(value)


def number(value: Any) -> float | None:
    """Return the finite number that 7, 7.5 and "7.5" mean; None for anything else."""
    if isinstance(value, bool):
        return None
    if isinstance(value, str):
        try:
            value = float(value) if len(value) < 64 else None
        except ValueError:
            return None
    if not isinstance(value, int | float):
        return None
    try:
        return value if math.isfinite(value) else None
    except OverflowError:  # an integer that is not a float
        return None


def numbers(values: Any) -> list[float] | None:
    """Return a list of finite numbers; None for anything else."""
    if not isinstance(values, list):
        return None
    made = [number(v) for v in values]
    return None if None in made else made
