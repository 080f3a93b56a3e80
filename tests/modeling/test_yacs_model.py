"""Models that yacs configs describe."""

import pytest
import torch
from detectron2.modeling import META_ARCH_REGISTRY
from omegaconf import OmegaConf
from torch import nn

from d2ext.errors import UserError
from d2ext.modeling.yacs_model import build_yacs_model


@META_ARCH_REGISTRY.register()
class YacsProbe(nn.Module):
    """A model that keeps its config and reads the keys in `MODEL.READS`."""

    def __init__(self, cfg):
        super().__init__()
        self.cfg = cfg
        for section in cfg.MODEL.READS:
            cfg[section]


def _built(device="cpu", **sections):
    model = {"META_ARCHITECTURE": "YacsProbe", "READS": [], **sections.pop("MODEL", {})}
    config = OmegaConf.create({"MODEL": model, **sections})
    return build_yacs_model(config, device=device)


def test_the_model_gets_values_in_the_types_of_detectron2s():
    cfg = _built(
        MODEL={"RPN": {"LOSS_WEIGHT": 2, "BBOX_REG_WEIGHTS": [1, 2, 3, 4]}},
        DATASETS={"TRAIN": "mine", "TEST": ["a", "b"]},
        PROJECT={"KEY": [1, 2]},
    ).cfg
    assert type(cfg.MODEL.RPN.LOSS_WEIGHT) is float
    assert cfg.MODEL.RPN.BBOX_REG_WEIGHTS == (1, 2, 3, 4)
    assert cfg.MODEL.RPN.NMS_THRESH == 0.7  # the default
    assert (cfg.DATASETS.TRAIN, cfg.DATASETS.TEST) == (("mine",), ("a", "b"))
    assert cfg.PROJECT.KEY == [1, 2]
    assert cfg.MODEL.DEVICE == "cpu"
    assert _built(device="meta").cfg.MODEL.DEVICE == "meta"


def test_a_wrong_type_is_one_line():
    with pytest.raises(UserError, match=r"^MODEL.RPN.NMS_THRESH takes float, not str \('high'\)"):
        _built(MODEL={"RPN": {"NMS_THRESH": "high"}})


def test_a_model_that_reads_keys_of_other_sections_fails():
    """Detectron2's defaults of such keys may differ from the values of the run."""
    with pytest.raises(KeyError, match="SOLVER"):
        _built(MODEL={"READS": ["SOLVER"]})


def test_models_of_the_same_seed_are_equal():
    config = {"MODEL": {"META_ARCHITECTURE": "RetinaNet"}}
    for section, values in {
        "BACKBONE": {"NAME": "build_retinanet_resnet_fpn_backbone"},
        "RESNETS": {"OUT_FEATURES": ["res3", "res4", "res5"], "RES2_OUT_CHANNELS": 16},
        "FPN": {"IN_FEATURES": ["res3", "res4", "res5"], "OUT_CHANNELS": 8},
        "ANCHOR_GENERATOR": {"SIZES": [[32]] * 5},
    }.items():
        config["MODEL"][section] = values
    states = []
    for _ in range(2):
        torch.manual_seed(1)
        states.append(build_yacs_model(config).state_dict())
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])
