"""Expectations of results, such as `balloon_val/coco/segm/AP>=40`."""

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
        key: of the result.
        sign: `>=`, `<=`, `>` or `<`.
        bound: in the unit of the result.
    """

    key: str
    sign: str
    bound: float

    def failure(self, results: Mapping[str, float | None]) -> str | None:
        """Why it does not hold; None if it does. An undefined number holds no bound."""
        value = results.get(self.key)
        if value is not None and _OPERATORS[self.sign](value, self.bound):
            return None
        got = "undefined" if value is None or math.isnan(value) else f"{value:.4g}"
        return f"expected {self.key}{self.sign}{self.bound:g}, got {got}"


def parse_expectation(text: str) -> Expectation:
    """Read `<dataset>/<metric>/<task>/<name><sign><number>`; raises UserError if it is not so."""
    match = re.fullmatch(r"\s*(.*?[^<>=\s])\s*(>=|<=|>|<)\s*([^<>=]+)", text)
    try:
        return Expectation(match[1], match[2], float(match[3]))
    except (TypeError, ValueError) as e:
        raise UserError(
            f"--expect {text!r}: give a result and its bound, such as"
            ' "balloon_val/coco/segm/AP>=40"'
        ) from e
