"""RetinaNet."""

from detectron2 import model_zoo

from tests.detectron2_style.tiny_models import shrink_retinanet

from .common import dataloader, lr_multiplier, optimizer, train

model = model_zoo.get_config("common/models/retinanet.py").model
shrink_retinanet(model)
dataloader.train.mapper.use_instance_mask = False
