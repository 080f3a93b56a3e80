"""Cascade Mask R-CNN with an FPN."""

from detectron2 import model_zoo

from tests.detectron2_style.tiny_models import shrink_rcnn

from .common import dataloader, lr_multiplier, optimizer, train

model = model_zoo.get_config("common/models/cascade_rcnn.py").model
shrink_rcnn(model)
