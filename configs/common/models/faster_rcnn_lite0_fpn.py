"""Faster R-CNN for a laptop CPU: Mask R-CNN with EfficientNet-Lite0, without its mask head."""

from .mask_rcnn_lite0_fpn import model

for _part in ("mask_in_features", "mask_pooler", "mask_head"):
    model.roi_heads.pop(_part)
