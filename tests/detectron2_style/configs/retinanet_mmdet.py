"""RetinaNet by MMDetection's rules."""

import d2ext
from tests.detectron2_style.tiny_models import shrink_retinanet

from .common import dataloader, lr_multiplier, optimizer, train

model = d2ext.get_config("common/models/retinanet_fpn_pytorch.py").model
shrink_retinanet(model)
dataloader.train.mapper.use_instance_mask = False
