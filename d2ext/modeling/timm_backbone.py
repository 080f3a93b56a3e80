"""timm feature extractors as Detectron2 backbones."""

import re

import timm
from detectron2.modeling import Backbone, ShapeSpec
from timm.layers import freeze_batch_norm_2d
from torch import Tensor, nn


class TimmBackbone(Backbone):
    """A timm model's feature pyramid, with frozen BatchNorm, as an FPN's bottom-up backbone.

    Args:
        name: a timm model that supports `features_only`, for example `tf_efficientnet_lite0`.
        out_features: names for the features of strides 4, 8, 16 and 32, finest first.
        freeze_at: 0 trains everything; 1 freezes the stem; n also the first n - 1 stages. Above 0
            the model must keep its stages in `blocks`, as the EfficientNets do.
    """

    in_channels = 3  # of the images

    def __init__(self, name: str, out_features: list[str], freeze_at: int = 0):
        super().__init__()
        # Index 0 is stride 2, which no FPN uses.
        indices = tuple(range(1, 1 + len(out_features)))
        net = timm.create_model(name, features_only=True, out_indices=indices, pretrained=False)
        self._out_features = list(out_features)
        info = net.feature_info
        self._out_feature_channels = dict(zip(out_features, info.channels(), strict=True))
        self._out_feature_strides = dict(zip(out_features, info.reduction(), strict=True))
        # Small batches make running statistics worse than ImageNet's. timm's BatchNorm carries the
        # activation, which Detectron2's own FrozenBatchNorm2d would lose.
        self.net = freeze_batch_norm_2d(net)
        if freeze_at >= 1:
            stem = [m for n, m in self.net.named_children() if n != "blocks"]
            for module in [*stem, *self.net.blocks[: freeze_at - 1]]:
                module.requires_grad_(False)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Images (N, 3, H, W) to features (N, C_i, H / s_i, W / s_i) by name."""
        return dict(zip(self._out_features, self.net(x), strict=True))

    def output_shape(self) -> dict[str, ShapeSpec]:
        """Channels and stride of each output feature."""
        return {
            name: ShapeSpec(
                channels=self._out_feature_channels[name], stride=self._out_feature_strides[name]
            )
            for name in self._out_features
        }


def rename_efficientnet_lite0(state: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """Keys of lukemelas' EfficientNet-PyTorch to those of timm's inside `model`.

    The old names number blocks through the whole network and BatchNorms from 0; timm numbers
    blocks per stage and names convolutions by their part (pw: expand, dw: depthwise, pwl: project).
    """
    path, net = next((n, m.net) for n, m in model.named_modules() if isinstance(m, TimmBackbone))
    prefix = f"{path}." if path else ""
    flat = [f"blocks.{s}.{b}" for s, stage in enumerate(net.blocks) for b in range(len(stage))]
    top = {"_conv_stem": "conv_stem", "_bn0": "bn1"}
    parts = {"_expand_conv": "conv_pw", "_depthwise_conv": "conv_dw", "_project_conv": "conv_pwl"}
    parts |= {"_bn0": "bn1", "_bn1": "bn2", "_bn2": "bn3"}
    # The first block has no expansion, so its parts count from one lower.
    first = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}
    renamed = {}
    for key, value in state.items():
        block = re.fullmatch(r"_blocks\.(\d+)\.(\w+)\.(\w+)", key)
        if block:
            number, part, leaf = int(block[1]), block[2], block[3]
            name = f"{flat[number]}.{(parts if number else first)[part]}.{leaf}"
        else:
            part, _, leaf = key.partition(".")
            if part not in top:
                continue  # the classifier
            name = f"{top[part]}.{leaf}"
        if leaf != "num_batches_tracked":
            renamed[f"{prefix}net.{name}"] = value
    return renamed
