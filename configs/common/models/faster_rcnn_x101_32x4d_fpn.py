"""Faster R-CNN with a ResNeXt-101 32x4d FPN, pytorch style: Mask R-CNN without its mask head."""

from .mask_rcnn_x101_32x4d_fpn import model

for _part in ("mask_in_features", "mask_pooler", "mask_head"):
    model.roi_heads.pop(_part)
