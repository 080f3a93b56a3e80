"""Use timm feature extractors as Detectron2 backbones."""

from typing import Any

from detectron2.modeling import Backbone, ShapeSpec
from torch import Tensor


class TimmBackbone(Backbone):
    """A timm model with frozen BatchNorm as the bottom-up backbone of an FPN.

    Args:
        name: Name of a timm model that supports `features_only`, such as `tf_efficientnet_lite0`.
        out_features: Names of the features with strides 4, 8, 16 and 32, finest first.
        freeze_at: 0 trains everything, 1 freezes the stem, and n > 1 also the first n - 1 stages.
            Values above 0 require a model that keeps its stages in `blocks`, like EfficientNets.
    """

    in_channels = 3  # of the input image

    def __init__(self, name: str, out_features: list[str], freeze_at: int = 0):
        # Here, because other models start without timm, whose import takes half a second.
        import timm
        from timm.layers import freeze_batch_norm_2d

        super().__init__()
        # Index 0 has stride 2, which FPNs do not use.
        indices = tuple(range(1, 1 + len(out_features)))
        net = timm.create_model(name, features_only=True, out_indices=indices, pretrained=False)
        self._out_features = list(out_features)
        info = net.feature_info
        self._out_feature_channels = dict(zip(out_features, info.channels(), strict=True))
        self._out_feature_strides = dict(zip(out_features, info.reduction(), strict=True))
        # With small batches, running statistics would be worse than ImageNet's. timm's BatchNorm
        # includes the activation, which Detectron2's FrozenBatchNorm2d would lose.
        self.net = freeze_batch_norm_2d(net)
        if freeze_at >= 1:
            stem = [m for n, m in self.net.named_children() if n != "blocks"]
            for module in [*stem, *self.net.blocks[: freeze_at - 1]]:
                module.requires_grad_(False)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Compute features (N, C_i, H / s_i, W / s_i) by name from images (N, 3, H, W)."""
        return dict(zip(self._out_features, self.net(x), strict=True))

    def output_shape(self) -> dict[str, ShapeSpec]:
        """Return the channels and the stride of each output feature."""
        return {
            name: ShapeSpec(
                channels=self._out_feature_channels[name], stride=self._out_feature_strides[name]
            )
            for name in self._out_features
        }

    @property
    def expected_input(self) -> dict[str, Any]:
        """Return the input format that timm's weights for this model were trained with."""
        known = self.net.default_cfg
        return {
            "input_format": "RGB",
            "pixel_mean": [255 * value for value in known["mean"]],
            "pixel_std": [255 * value for value in known["std"]],
        }
