"""Random weights for R50-FPN whose features keep their scale, without trained weights.

With random weights, frozen norms change nothing, and features grow a thousandfold from layer to
layer. Here the norms are frozen with the statistics of two batches.
"""

from pathlib import Path

import torch
from detectron2.config import LazyConfig, instantiate
from torch import nn

from d2ext.data.datasets.register import register_datasets


def save_calibrated(cfg: LazyConfig, file: Path) -> None:
    """Write a checkpoint for a recipe of Detectron2's ResNet with frozen norms."""
    register_datasets(cfg.datasets)
    torch.manual_seed(0)
    for part in (cfg.model.backbone.bottom_up.stem, cfg.model.backbone.bottom_up.stages):
        part.norm = "BN"
    model = instantiate(cfg.model)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None  # the mean of all batches
    loader = iter(instantiate(cfg.dataloader.train))
    with torch.no_grad():
        for _ in range(2):
            model.backbone(model.preprocess_image(next(loader)).tensor)
    loader.close()
    weights = {k: v for k, v in model.state_dict().items() if "num_batches" not in k}
    torch.save({"model": weights}, file)
