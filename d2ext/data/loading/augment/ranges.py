"""Check the ranges that random strengths are drawn from."""

import math
from collections.abc import Iterable
from numbers import Real
from typing import Any


def checked_range(
    name: str,
    value: Any,
    what: str,
    *,
    least: float = -math.inf,
    most: float = math.inf,
    above: float = -math.inf,
    below: float = math.inf,
) -> tuple[Any, Any]:
    """Return the smallest and the largest number of a range.

    Args:
        name: Argument, for the message.
        value: Its value.
        what: Numbers that it takes, for the message, such as `positive factors`.
        least: Smallest number, inclusive.
        most: Largest number, inclusive.
        above: Exclusive lower bound.
        below: Exclusive upper bound.

    Raises:
        ValueError: The value is not two numbers within the bounds, the smaller one first.
    """
    numbers = tuple(value) if isinstance(value, Iterable) and not isinstance(value, str) else ()
    if len(numbers) == 2 and all(isinstance(number, Real) for number in numbers):
        low, high = numbers
        if least <= low <= high <= most and above < low and high < below:
            return low, high
    shown = list(numbers) or value
    raise ValueError(f"{name}={shown!r}: give {what}: two numbers, the smaller one first")
