"""RetinaNet."""

from detectron2 import model_zoo

from tests.detectron2_style.tiny_models import CHANNELS, shrink_resnet

from .common import dataloader, lr_multiplier, optimizer, train

model = model_zoo.get_config("common/models/retinanet.py").model
shrink_resnet(model.backbone.bottom_up)
model.backbone.out_channels = CHANNELS
model.backbone.top_block.in_channels = 64
for shape in model.head.input_shape:
    shape.channels = CHANNELS
model.head.conv_dims = [CHANNELS]
model.anchor_generator.sizes = [[size, size * 1.26, size * 1.59] for size in (8, 16, 24, 32, 48)]
model.pixel_std = [57.375, 57.120, 58.395]
model.num_classes = 2
model.test_score_thresh = 0.0
dataloader.train.mapper.use_instance_mask = False
