"""BatchNorm with fixed statistics."""

import torch
from detectron2.layers import FrozenBatchNorm2d
from detectron2.modeling.backbone.resnet import BasicStem, BottleneckBlock, ResNet

from d2ext.modeling.norms import FixedStatisticsBatchNorm


def test_scale_and_shift_are_trained_and_statistics_are_not():
    norm, frozen = FixedStatisticsBatchNorm(3).train(), FrozenBatchNorm2d(3)
    state = {name: torch.rand(3) + 0.5 for name in frozen.state_dict()}
    norm.load_state_dict(state)
    frozen.load_state_dict(state)
    x = torch.randn(2, 3, 4, 4)
    out = norm(x)
    assert torch.allclose(out, frozen(x), atol=1e-6)
    out.sum().backward()
    assert (norm.weight.grad != 0).any() and (norm.bias.grad != 0).any()
    assert torch.equal(norm.running_mean, state["running_mean"])


def test_frozen_stages_have_frozen_norms():
    norm = FixedStatisticsBatchNorm
    stages = [
        ResNet.make_stage(
            BottleneckBlock, 1, in_channels=i, out_channels=8, bottleneck_channels=4, norm=norm
        )
        for i in (4, 8)
    ]
    net = ResNet(BasicStem(out_channels=4, norm=norm), stages, freeze_at=2)
    kinds = [type(stage[0].conv1.norm) for stage in (net.res2, net.res3)]
    assert kinds == [FrozenBatchNorm2d, norm]
