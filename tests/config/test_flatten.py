"""Nested dicts as dotted keys."""

from d2ext.config.flatten import flatten

NESTED = {"a": {"b": 1, "c": {}}, "d": [{"e": 2}, 3], "f": []}


def test_lists_are_values_by_default():
    assert dict(flatten(NESTED)) == {"a.b": 1, "a.c": {}, "d": [{"e": 2}, 3], "f": []}


def test_items_of_lists_have_keys():
    found = dict(flatten(NESTED, "x", lists=True))
    assert found == {"x.a.b": 1, "x.a.c": {}, "x.d.0.e": 2, "x.d.1": 3, "x.f": []}
