"""Read numbers that a file stores as another type."""

import math
from typing import Any


def integer(value: Any) -> int | None:
    """Convert 7, 7.0 or "7" to an integer; return None for anything else or beyond 2**53."""
    value = number(value)
    if value is None or value != int(value) or abs(value) > 2**53:
        return None
    return int(value)


def number(value: Any) -> float | None:
    """Convert 7, 7.5 or "7.5" to a finite number; return None for anything else."""
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
    except OverflowError:  # an integer too large for a float
        return None


def numbers(values: Any) -> list[float] | None:
    """Convert a list of finite numbers; return None for anything else."""
    if not isinstance(values, list):
        return None
    made = [n for value in values if (n := number(value)) is not None]
    return made if len(made) == len(values) else None
