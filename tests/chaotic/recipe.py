"""A toy Mask R-CNN for runs that are killed, at about 50 ms per step.

It is the CPU recipe with thin layers and tiny images; tests/chaos.py sets the data.
"""

import detectron2.data.transforms as T
from detectron2.config import LazyCall as L

from ...configs.balloon.mask_rcnn_lite0_fpn_balloon import (
    data,
    dataloader,
    datasets,
    evaluators,
    lr_multiplier,
    model,
    optimizer,
    train,
)

WIDTH = 16
model.backbone.bottom_up.name = "test_resnet"  # from timm's tests: 0.5 million parameters
model.backbone.bottom_up.freeze_at = 0
model.backbone.out_channels = WIDTH
model.proposal_generator.head.in_channels = WIDTH
model.proposal_generator.pre_nms_topk = (100, 50)
model.proposal_generator.post_nms_topk = (30, 10)
model.proposal_generator.batch_size_per_image = 32
heads = model.roi_heads
heads.batch_size_per_image = 16
heads.box_head.input_shape.channels = heads.mask_head.input_shape.channels = WIDTH
heads.box_head.fc_dims = [WIDTH]
heads.box_predictor.input_shape.channels = WIDTH
heads.box_predictor.test_score_thresh = 0.0  # so that there is something to evaluate
heads.box_predictor.test_topk_per_image = 5
heads.mask_head.conv_dims = [WIDTH]
del heads

dataloader.train.mapper.augmentations = [
    L(T.ResizeShortestEdge)(short_edge_length=[48, 64], sample_style="choice", max_size=96),
    L(T.RandomFlip)(horizontal=True),
]
dataloader.train.num_workers = dataloader.val.num_workers = 0
dataloader.val.mapper.augmentations[0].short_edge_length = 64
train.reference_world_size = 2
train.reference_batch_size = 4
train.max_epochs = None
train.max_iter = 16
train.eval_period = 8
train.checkpointer.period = 3
train.warmup_iters = 5
train.log_period = 1
train.init_checkpoint = ""
train.channels_last = False
train.best.metric = "coco/bbox/AR100"
optimizer.lr = 1e-3
