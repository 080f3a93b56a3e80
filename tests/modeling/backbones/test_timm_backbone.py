"""The EfficientNet-Lite backbones compute what timm's networks do with ImageNet weights."""

import numpy as np
import pytest
import timm
import torch
from PIL import Image, ImageOps

import d2ext
from d2ext.checkpoint.weights.initial import load_weights, local_weights
from d2ext.modeling.backbones.timm_backbone import TimmBackbone

NAMES = ["res2", "res3", "res4", "res5"]
CHANNELS = {"lite0": (24, 40, 112, 320), "lite1": (24, 40, 112, 320), "lite2": (24, 48, 120, 352)}
BALLOON = 417  # class of ImageNet


@pytest.fixture(params=sorted(CHANNELS))
def lite(request):
    """Return the variant, and the backbone's name and weights in its recipe."""
    cfg = d2ext.get_config(f"custom/mask_rcnn_{request.param}_fpn.py")
    name = cfg.model.backbone.bottom_up.name
    return request.param, name, local_weights(cfg.train.init_checkpoint)


def test_shapes_and_frozen_parts(lite):
    variant, name, _ = lite
    model = TimmBackbone(name, NAMES, freeze_at=2)
    features = model(torch.zeros(1, 3, 64, 96))
    for name, shape in model.output_shape().items():
        assert features[name].shape == (1, shape.channels, 64 // shape.stride, 96 // shape.stride)
    assert [model.output_shape()[n].stride for n in NAMES] == [4, 8, 16, 32]
    assert tuple(model.output_shape()[n].channels for n in NAMES) == CHANNELS[variant]
    trained = {n.split(".")[2] for n, p in model.named_parameters() if p.requires_grad}
    assert trained == {"1", "2", "3", "4", "5", "6"}
    assert not [n for n, p in model.named_parameters() if "bn" in n]  # BatchNorm is frozen


def test_features_match_timm_with_the_packaged_weights(lite):
    """All weights of the file except its classifier are loaded into the right layers.

    The reference is timm's whole network, with weights loaded by position from the same file.
    """
    _, name, weights = lite
    backbone = TimmBackbone(name, NAMES)
    load_weights(backbone, weights)
    whole = timm.create_model(name, pretrained=False).eval()
    stored = torch.load(weights, weights_only=True)
    whole.load_state_dict(dict(zip(whole.state_dict(), stored.values(), strict=True)))
    image = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1
    with torch.no_grad():
        deepest = backbone(image)["res5"]
        # timm's forward pass up to the last stage.
        expected = whole.blocks(whole.bn1(whole.conv_stem(image)))
    assert torch.allclose(deepest, expected, atol=1e-4)
    assert deepest.std() > 0.1


def test_the_packaged_weights_recognize_balloons(repo, lite):
    """At least half of the photos have the class among their five most likely ones.

    Lite0 recognizes 7 of the 13 photos, the others 10; some balloons are tiny.
    """
    _, name, weights = lite
    net = timm.create_model(name, pretrained=False).eval()
    load_weights(net, weights)
    size = net.default_cfg["input_size"][1:]
    photos = sorted((repo / "examples/balloon/val").glob("*.jpg"))
    pixels = [ImageOps.fit(Image.open(p).convert("RGB"), size, Image.BICUBIC) for p in photos]
    images = torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2) / 127.5 - 1
    with torch.no_grad():
        best = net(images).topk(5).indices
    assert len(photos) == 13
    assert (best == BALLOON).any(dim=1).sum() >= 7


def test_unknown_timm_model_is_an_error():
    with pytest.raises(RuntimeError, match="no_such_model"):
        TimmBackbone("no_such_model", NAMES)
