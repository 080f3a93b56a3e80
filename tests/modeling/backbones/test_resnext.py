"""ResNeXt backbones: timm's and torchvision's networks give the same features."""

import pytest
import timm
import torch
import torchvision
from detectron2.modeling.backbone.fpn import FPN
from torch import nn

from d2ext.checkpoint.weights.initial import load_weights
from d2ext.modeling.backbones.resnext import build_resnext

STAGES = ["res2", "res3", "res4", "res5"]


def _detector(depth, groups, width):
    model = nn.Module()
    model.backbone = FPN(build_resnext(depth, groups, width), STAGES, 8)
    return model.eval()


def _varied(net):
    """Change the statistics of a network's norms, which start as 0 and 1."""
    torch.manual_seed(0)
    for name, tensor in net.state_dict().items():
        if "running" in name:
            tensor.uniform_(0.5, 1.5)
    return net.eval()


@pytest.mark.parametrize(
    ("depth", "groups", "width"),
    [
        (50, 32, 4),
        pytest.param(101, 32, 4, marks=pytest.mark.slow),
        pytest.param(101, 64, 4, marks=pytest.mark.slow),
        pytest.param(101, 32, 8, marks=pytest.mark.slow),
    ],
)
@torch.no_grad()
def test_a_timm_network_has_the_same_features(tmp_path, depth, groups, width):
    name = f"resnext{depth}_{groups}x{width}d"
    theirs = _varied(timm.create_model(name))
    torch.save(theirs.state_dict(), tmp_path / "w.pth")
    mine = _detector(depth, groups, width)
    load_weights(mine, str(tmp_path / "w.pth"))
    image = torch.randn(1, 3, 64, 64)
    features = mine.backbone.bottom_up(image)
    for stage, other in zip(STAGES, theirs.forward_intermediates(image)[1][1:], strict=True):
        assert (features[stage] - other).abs().max() <= 1e-5 * other.abs().max()


@torch.no_grad()
def test_a_torchvision_network_has_the_same_features(tmp_path):
    theirs = _varied(torchvision.models.resnext50_32x4d(weights=None))
    # As in the files of MMDetection's authors.
    content = {"meta": {"env_info": ""}, "state_dict": theirs.state_dict()}
    torch.save(content, tmp_path / "w.pth")
    mine = _detector(50, 32, 4)
    load_weights(mine, str(tmp_path / "w.pth"))
    image = torch.randn(1, 3, 64, 64)
    net = nn.Sequential(*list(theirs.children())[:-2])  # without pooling and classifier
    mine, other = mine.backbone.bottom_up(image)["res5"], net(image)
    assert (mine - other).abs().max() <= 1e-5 * other.abs().max()


def test_stages_freeze_from_the_stem_on():
    net = build_resnext(50, 32, 4, freeze_at=2, norm="BN", out_features=["res3"])
    trained = {name.partition(".")[0] for name, p in net.named_parameters() if p.requires_grad}
    assert trained == {"res3"}


def test_other_depths_are_refused():
    with pytest.raises(ValueError, match="depth=34: a ResNeXt has depth 50, 101, 152"):
        build_resnext(34, 32, 4)
