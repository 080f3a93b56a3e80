"""Fractions of the learning rate for parts of a model."""

import pytest
from detectron2.solver.build import get_default_optimizer_params
from torch import nn

from d2ext.config.load import load_config
from d2ext.config.lr_factors import LrFactors
from d2ext.engine.builders import build_optimizer
from d2ext.errors import UserError


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


def test_factors_without_parameters_are_reported():
    names = ["backbone.bottom_up.stem.weight", "head.bias"]
    LrFactors({"backbone": 0.5, "backbone.bottom_up": 0.1, "head.bias": 0}).check(names)
    for part, words in (
        ("backbone.bottomup", "in backbone.bottomup; did you mean 'backbone.bottom_up'"),
        ("zzz", "in zzz; give the name of a module"),
        ("hea", "in hea; did you mean 'head'"),
    ):
        with pytest.raises(UserError, match=f"lr_factor_func.factors: .*{words}"):
            LrFactors({"head": 1, part: 0.3}).check(names)


def test_the_optimizer_reports_factors_without_parameters(repo):
    cfg = load_config(repo / "configs/balloon/mask_rcnn_lite1_fpn_balloon.py")
    model = nn.ModuleDict(dict(backbone=nn.ModuleDict(dict(bottom_up=nn.Linear(2, 2)))))
    model.requires_grad_(False)["head"] = nn.Linear(2, 2)  # frozen parameters count
    assert len(build_optimizer(cfg, model).param_groups)
    cfg.optimizer.params.lr_factor_func.factors = {"backbone.bottomup": 0.3}
    with pytest.raises(UserError, match="did you mean 'backbone.bottom_up'"):
        build_optimizer(cfg, model)


def test_negative_factors_are_refused():
    with pytest.raises(ValueError, match=r"factors\.head=-1"):
        LrFactors({"head": -1})
