"""ViTDet with mixed precision, AdamW, layer-wise learning rates and large-scale jittering."""

from functools import partial

import detectron2.data.transforms as T
from detectron2 import model_zoo
from detectron2.config import LazyCall as L
from detectron2.modeling.backbone.vit import get_vit_lr_decay_rate

from tests.detectron2_style.tiny_models import CHANNELS, shrink_rcnn

from .common import dataloader, lr_multiplier, train

model = model_zoo.get_config("common/models/mask_rcnn_vitdet.py").model
shrink_rcnn(model)
vit = model.backbone.net
vit.update(img_size=96, embed_dim=32, depth=2, num_heads=2, window_size=3)
vit.window_block_indexes = [0]
model.backbone.square_pad = 96
model.roi_heads.box_head.conv_dims = [CHANNELS]
model.proposal_generator.head.conv_dims = [-1]

optimizer = model_zoo.get_config("common/optim.py").AdamW
optimizer.params.lr_factor_func = partial(get_vit_lr_decay_rate, num_layers=2, lr_decay_rate=0.7)
optimizer.params.overrides = {"pos_embed": {"weight_decay": 0.0}}

dataloader.train.mapper.image_format = "RGB"
dataloader.train.mapper.augmentations = [
    L(T.RandomFlip)(horizontal=True),
    L(T.ResizeScale)(min_scale=0.5, max_scale=2.0, target_height=96, target_width=96),
    L(T.FixedSizeCrop)(crop_size=(96, 96), pad=False),
]
dataloader.train.mapper.recompute_boxes = True
dataloader.test.mapper.augmentations = [L(T.ResizeShortestEdge)(short_edge_length=96, max_size=96)]

train.amp.enabled = True
