"""Mask R-CNN with a ResNet-50 FPN, pytorch style, for torchvision's ImageNet weights."""

from .mask_rcnn_fpn import model
from .pytorch_style import to_pytorch_style

to_pytorch_style(model)
