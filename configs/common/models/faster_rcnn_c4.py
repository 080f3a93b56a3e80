"""Faster R-CNN with a ResNet-50 C4, caffe style: Mask R-CNN without its mask head."""

from .mask_rcnn_c4 import model

model.roi_heads.pop("mask_head")
