"""Bounds on results (--expect)."""

import math

import pytest

from d2ext.errors import UserError
from d2ext.evaluation.expect import parse_expectation


@pytest.mark.parametrize(
    ("text", "value", "holds"),
    [
        ("v/coco/segm/AP>=40", 40.0, True),
        ("v/coco/segm/AP>=40", 39.9, False),
        ("v/coco/segm/AP > 40", 40.0, False),
        ("v/coco/segm/AP<=4e1", 40.0, True),
        ("v/coco/segm/AP<-1", -2.0, True),
        ("v/coco/segm/AP>=0", None, False),
        ("v/coco/segm/AP<=0", math.nan, False),
    ],
)
def test_bounds(text, value, holds):
    expectation = parse_expectation(text)
    assert expectation.key == "v/coco/segm/AP"
    assert (expectation.failure({"v/coco/segm/AP": value}) is None) == holds


def test_a_failure_names_both_numbers():
    failure = parse_expectation("v/coco/segm/AP>=40").failure({"v/coco/segm/AP": 12.345678})
    assert failure == "expected v/coco/segm/AP>=40, got 12.35"
    assert "got undefined" in parse_expectation("v/x>=1").failure({})


@pytest.mark.parametrize("text", ["", "AP", "AP=40", "AP>=", "AP>=x", ">=4", "AP=>4"])
def test_invalid_expectations_are_refused(text):
    with pytest.raises(UserError, match="--expect .*balloon_val/coco/segm/AP>=40"):
        parse_expectation(text)
