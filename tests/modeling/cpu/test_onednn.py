"""Convolutions for which oneDNN's gradient is wrong are computed in another way."""

import copy
import os
import subprocess
import sys

import pytest
import torch
from detectron2.layers import Conv2d, FrozenBatchNorm2d
from timm.layers import Conv2dSame
from torch import nn

from d2ext.engine.techniques import use_channels_last
from d2ext.modeling.cpu.folded_norm import fold_norms
from tests.conftest import REPO

# oneDNN's fault would end the process of the tests.
TRAINING = """
import torch
from d2ext.engine.techniques import use_channels_last
torch.manual_seed(0)
net = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3, padding=1), torch.nn.Conv2d(8, 16, 1, stride=2))
use_channels_last(net)
for _ in range(20):
    net(torch.rand(2, 3, 96, 96)).square().mean().backward()
"""


@pytest.mark.parametrize("threads", [1, 2])
def test_narrow_strided_convolutions_train_with_channels_last(threads):
    environment = {**os.environ, "PYTHONPATH": str(REPO), "OMP_NUM_THREADS": str(threads)}
    command = [sys.executable, "-W", "ignore", "-c", TRAINING]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("size", [(7, 8), (10, 11)])
@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(4, 6, 1, stride=2),
        nn.Conv2d(4, 6, 1, stride=2, padding="valid"),
        nn.Conv2d(4, 6, 1, stride=(1, 3), groups=2),
        Conv2d(4, 6, 1, stride=2, bias=False, norm=FrozenBatchNorm2d(6)),
        Conv2dSame(4, 6, 1, stride=2),
    ],
    ids=["plain", "valid", "groups", "frozen norm", "same"],
)
def test_their_outputs_and_gradients_are_those_of_the_stride(layer, size):
    layer, narrow = copy.deepcopy(layer), copy.deepcopy(layer)
    fold_norms(narrow)
    use_channels_last(narrow)
    assert narrow.stride == (1, 1)
    x = torch.rand(2, 4, *size)
    images = [x.clone().requires_grad_() for _ in range(2)]
    outputs = [module(image) for module, image in zip((layer, narrow), images, strict=True)]
    assert outputs[0].shape == outputs[1].shape
    torch.testing.assert_close(outputs[1], outputs[0])
    for output in outputs:
        (output * torch.linspace(0, 1, output.numel()).view_as(output)).sum().backward()
    torch.testing.assert_close(images[1].grad, images[0].grad, rtol=1e-4, atol=1e-4)
    for a, b in zip(narrow.parameters(), layer.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-4, atol=1e-4)
