"""Cascade Mask R-CNN with an FPN, by MMDetection's rules."""

import d2ext
from d2ext.modeling.norms import FixedStatisticsBatchNorm
from tests.detectron2_style.tiny_models import shrink_rcnn

from .common import dataloader, lr_multiplier, optimizer, train

model = d2ext.get_config("common/models/cascade_mask_rcnn_fpn_pytorch.py").model
shrink_rcnn(model, norm=FixedStatisticsBatchNorm)
