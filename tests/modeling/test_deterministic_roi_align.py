"""`train.deterministic` on a GPU: RoIAlign by embedding_bag, also for boxes of any length."""

from types import SimpleNamespace

import pytest
import torch
from detectron2.config import LazyCall as L
from detectron2.layers import ROIAlign
from omegaconf import OmegaConf
from torch import nn
from torchvision.ops import roi_align

from d2ext.engine.builders import build_model


def _built(device, **options):
    pooler = L(ROIAlign)(output_size=(7, 7), spatial_scale=0.25, sampling_ratio=0)
    cfg = OmegaConf.create({"model": L(nn.ModuleList)(modules=[pooler]), "train": options})
    return build_model(cfg, SimpleNamespace(device=device, classes=["a"]))[0]


@pytest.mark.parametrize(
    ("device", "options"),
    [("cpu", {"deterministic": True, "fast_layers": False}), ("meta", {"deterministic": False})],
)
def test_other_runs_keep_detectron2s_layer(device, options):
    """A CPU is deterministic with it; "meta" stands for a GPU."""
    assert type(_built(device, **options)) is ROIAlign


def test_long_boxes_are_pooled_without_torchvision(monkeypatch):
    """Torchvision's deterministic RoIAlign needs terabytes of memory."""
    layer = _built("meta", deterministic=True)
    features = torch.randn(1, 2, 256, 256, requires_grad=True)
    long = torch.tensor([[0.0, 0, 0, 1000, 8], [0, 0, 0, 8, 1000]]).repeat(200, 1)
    expected = roi_align(features, long, (7, 7), 0.25, 0, True)
    (gradient,) = torch.autograd.grad(expected.square().sum(), features)

    def refuse(*args):
        raise AssertionError("torchvision was called")

    monkeypatch.setattr(ROIAlign, "forward", refuse)
    found = layer(features, long)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
    found.square().sum().backward()
    torch.testing.assert_close(features.grad, gradient, atol=1e-3, rtol=1e-4)
