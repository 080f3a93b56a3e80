"""Expected results, such as `balloon_val/coco/segm/AP>=40`."""

import math
import operator
import re
from collections.abc import Mapping
from dataclasses import dataclass

from d2ext.errors import UserError

_OPERATORS = {">=": operator.ge, "<=": operator.le, ">": operator.gt, "<": operator.lt}


@dataclass(frozen=True)
class Expectation:
    """A bound on a result.

    Attributes:
        key: Key of the result.
        sign: `>=`, `<=`, `>` or `<`.
        bound: Bound in the unit of the result.
    """

    key: str
    sign: str
    bound: float

    def failure(self, results: Mapping[str, float | None]) -> str | None:
        """Return why the expectation is not met, or None; an undefined number never meets it."""
        value = results.get(self.key)
        if value is not None and _OPERATORS[self.sign](value, self.bound):
            return None
        got = "undefined" if value is None or math.isnan(value) else f"{value:.4g}"
        return f"expected {self.key}{self.sign}{self.bound:g}, got {got}"


def parse_expectation(text: str) -> Expectation:
    """Parse `<dataset>/<metric>/<task>/<name><sign><number>`; raise UserError if it is invalid."""
    match = re.fullmatch(r"\s*(.*?[^<>=\s])\s*(>=|<=|>|<)\s*([^<>=]+)", text)
    try:
        key, sign, bound = match.groups() if match else ()
        return Expectation(key, sign, float(bound))
    except ValueError as e:
        raise UserError(
            f"--expect {text!r}: give a result and its bound, such as"
            ' "balloon_val/coco/segm/AP>=40"'
        ) from e
