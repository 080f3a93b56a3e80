"""Faster R-CNN with an FPN and SyncBN."""

from detectron2 import model_zoo

from tests.detectron2_style.tiny_models import shrink_rcnn

from .common import dataloader, lr_multiplier, optimizer, train

model = model_zoo.get_config("common/models/mask_rcnn_fpn.py").model
[model.roi_heads.pop(key) for key in ("mask_in_features", "mask_pooler", "mask_head")]
shrink_rcnn(model, norm="SyncBN")
model.backbone.norm = "SyncBN"
dataloader.train.mapper.use_instance_mask = False
