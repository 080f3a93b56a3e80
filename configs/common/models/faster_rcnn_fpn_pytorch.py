"""Faster R-CNN with a ResNet-50 FPN, pytorch style: Mask R-CNN without its mask head."""

from .mask_rcnn_fpn_pytorch import model

for _part in ("mask_in_features", "mask_pooler", "mask_head"):
    model.roi_heads.pop(_part)
