"""Mask R-CNN with an FPN, and a lambda in its config, as in Detectron2's new baselines."""

from detectron2 import model_zoo
from torch import nn

from tests.detectron2_style.tiny_models import shrink_rcnn

from .common import dataloader, lr_multiplier, optimizer, train

model = model_zoo.get_config("common/models/mask_rcnn_fpn.py").model
shrink_rcnn(model)
model.roi_heads.mask_head.conv_norm = lambda channels: nn.GroupNorm(4, channels)
