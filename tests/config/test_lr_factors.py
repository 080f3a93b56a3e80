"""Fractions of the learning rate for parts of a model."""

import pytest
from detectron2.solver.build import get_default_optimizer_params
from torch import nn

from d2ext.config.lr_factors import LrFactors


def test_the_longest_name_that_fits_counts():
    factor = LrFactors({"backbone": 0.5, "backbone.bottom_up": 0.1, "head.bias": 0})
    assert factor("backbone.fpn.weight") == 0.5
    assert factor("backbone.bottom_up.stem.weight") == factor("backbone.bottom_up") == 0.1
    assert factor("backbone2.weight") == factor("head.weight") == 1
    assert factor("head.bias") == 0


def test_detectron2_applies_the_factors():
    model = nn.ModuleDict(dict(backbone=nn.Linear(2, 2), head=nn.Linear(2, 1)))
    groups = get_default_optimizer_params(
        model, base_lr=2.0, lr_factor_func=LrFactors({"backbone": 0.25})
    )
    rates = {id(p): group["lr"] for group in groups for p in group["params"]}
    assert [rates[id(p)] for p in model.parameters()] == [0.5, 0.5, 2, 2]


def test_negative_factors_are_refused():
    with pytest.raises(ValueError, match=r"factors\.head=-1"):
        LrFactors({"head": -1})
