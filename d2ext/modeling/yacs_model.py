"""Build what a yacs config describes; `d2ext/config/adapters/yacs.py` writes these calls."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from detectron2.config import CfgNode, get_cfg
from detectron2.modeling import build_model
from detectron2.solver.build import maybe_add_gradient_clipping
from omegaconf import DictConfig, OmegaConf
from torch import nn

from d2ext.config.adapters.yacs import NOT_OF_MODEL, coerced, yacs_defaults


def build_yacs_model(config: Any, yacs_setup: Sequence[str] = (), device: str = "cpu") -> nn.Module:
    """Build a model with `detectron2.modeling.build_model`.

    Args:
        config: Values of a yacs config, as nested dicts; Detectron2's defaults for missing keys.
        yacs_setup: Functions that add a project's keys and classes; see `yacs_defaults`.
        device: `MODEL.DEVICE`, to which some models move their inputs.

    Raises:
        UserError: A value has another type than the default.
    """
    if isinstance(config, DictConfig):
        config = OmegaConf.to_container(config, resolve=True)
    cfg = yacs_defaults(yacs_setup)
    # Without them, a model that reads one fails, instead of getting a default by mistake.
    for key in NOT_OF_MODEL:
        *parents, last = key.split(".")
        node = cfg
        for name in parents:
            node = node[name]
        del node[last]
    _update(cfg, config)
    cfg.MODEL.DEVICE = device
    return build_model(cfg)


def _update(node: CfgNode, values: Mapping[str, Any], prefix: str = "") -> None:
    for name, value in values.items():
        key = f"{prefix}{name}"
        if isinstance(value, dict) and isinstance(node.get(name), CfgNode):
            _update(node[name], value, f"{key}.")
        elif isinstance(value, dict):
            node[name] = CfgNode(value)
        else:
            names = key.startswith("DATASETS.") and isinstance(value, str)
            node[name] = coerced(key, [value] if names else value, node.get(name))


def clipped_sgd(
    params: Any, clip_type: str, clip_value: float, norm_type: float = 2.0, **settings: Any
) -> torch.optim.Optimizer:
    """Build an SGD that clips the gradient of each parameter before a step, as Detectron2 does.

    Args:
        params: Parameters or groups of parameters.
        clip_type: `value` clips each element, `norm` the norm of each parameter.
        clip_value: Upper bound of the absolute values or norms.
        norm_type: Order of the norm.
        settings: Other arguments of `torch.optim.SGD`.
    """
    cfg = get_cfg()
    clipping = dict(ENABLED=True, CLIP_TYPE=clip_type, CLIP_VALUE=clip_value, NORM_TYPE=norm_type)
    cfg.SOLVER.CLIP_GRADIENTS.update(clipping)
    return maybe_add_gradient_clipping(cfg, torch.optim.SGD(params, **settings))
