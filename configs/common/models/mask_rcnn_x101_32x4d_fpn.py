"""Mask R-CNN with a ResNeXt-101 32x4d FPN, pytorch style: the R50 model with another backbone.

For 64x4d, set `model.backbone.bottom_up.groups` to 64.
"""

from detectron2.config import LazyCall as L

from d2ext.modeling.backbones.resnext import build_resnext

from .mask_rcnn_fpn_pytorch import model

model.backbone.bottom_up = L(build_resnext)(
    depth=101,
    groups=32,
    width_per_group=4,
    freeze_at=2,
    norm="FrozenBN",
    out_features=["res2", "res3", "res4", "res5"],
)
