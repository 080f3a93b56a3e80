"""Mask R-CNN with a ResNet-50 FPN, pytorch style, for torchvision's ImageNet weights.

Anchors and proposals are matched with objects by Detectron2's rules. Configs that are imported from
MMDetection use MMDetection's instead: `d2ext.modeling.matcher` and `d2ext.modeling.rpn`.
"""

from .mask_rcnn_fpn import model
from .pytorch_style import to_pytorch_style

to_pytorch_style(model)
