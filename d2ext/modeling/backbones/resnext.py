"""Build ResNeXt backbones from Detectron2's ResNet."""

from collections.abc import Sequence

from detectron2.modeling.backbone.resnet import BasicStem, BottleneckBlock, ResNet

_BLOCKS = {50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}
_STEM = 64  # channels


def build_resnext(
    depth: int,
    groups: int,
    width_per_group: int,
    freeze_at: int = 0,
    norm: str = "FrozenBN",
    out_features: Sequence[str] = ("res2", "res3", "res4", "res5"),
) -> ResNet:
    """Build a ResNeXt, pytorch style: the stride is in the grouped 3x3 convolutions.

    Detectron2's `ResNet.make_default_stages` makes the 3x3 convolutions a quarter as wide as the
    output of their block, whereas those of a ResNeXt have `groups * width_per_group` channels in
    the first stage, twice as many in the second, and so on.

    Args:
        depth: 50, 101 or 152.
        groups: Number of groups, such as 32 for 32x4d.
        width_per_group: Channels of a group in the first stage, such as 4 for 32x4d.
        freeze_at: Number of stages to freeze; the stem is the first.
        norm: Type of the norm layers.
        out_features: Names of the outputs.

    Raises:
        ValueError: There is no ResNeXt of this depth.

    Examples:
        >>> from d2ext.modeling.backbones.resnext import build_resnext
        >>> net = build_resnext(depth=50, groups=32, width_per_group=4)
        >>> net.res2[0].conv2.weight.shape
        torch.Size([128, 4, 3, 3])
    """
    if depth not in _BLOCKS:
        raise ValueError(f"depth={depth}: a ResNeXt has depth {', '.join(map(str, _BLOCKS))}")
    stages = []
    in_channels, out_channels, bottleneck_channels = _STEM, 256, groups * width_per_group
    for i, count in enumerate(_BLOCKS[depth]):
        stage = ResNet.make_stage(
            BottleneckBlock,
            count,
            in_channels=in_channels,
            out_channels=out_channels,
            bottleneck_channels=bottleneck_channels,
            stride_per_block=[2 if i else 1] + [1] * (count - 1),
            num_groups=groups,
            norm=norm,
        )
        stages.append(stage)
        in_channels = out_channels
        out_channels, bottleneck_channels = 2 * out_channels, 2 * bottleneck_channels
    stem = BasicStem(in_channels=3, out_channels=_STEM, norm=norm)
    return ResNet(stem, stages, out_features=list(out_features), freeze_at=freeze_at)
