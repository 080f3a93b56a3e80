"""A Mask R-CNN of 0.1 million parameters whose config names the modules of version 0.1."""

from ....configs.custom.mask_rcnn_lite0_fpn import (
    data,
    dataloader,
    datasets,
    evaluators,
    lr_multiplier,
    model,
    optimizer,
    train,
)

dataloader.train._target_ = "d2ext.data.loader.build_train_loader"
dataloader.train.dataset._target_ = "d2ext.data.training_set.training_set"
dataloader.train.mapper._target_ = "d2ext.data.mapper.Mapper"
dataloader.val._target_ = "d2ext.data.loader.build_test_loader"
dataloader.val.dataset._target_ = "d2ext.data.training_set.evaluation_set"
dataloader.val.mapper._target_ = "d2ext.data.mapper.Mapper"
datasets.custom_train._target_ = "d2ext.data.catalog.annotated_dataset"
datasets.custom_val._target_ = "d2ext.data.catalog.annotated_dataset"
evaluators.coco._target_ = "d2ext.evaluation.coco.CocoMetric"
model.backbone.bottom_up._target_ = "d2ext.modeling.timm_backbone.TimmBackbone"

model.backbone.bottom_up.name = "test_efficientnet"
model.backbone.bottom_up.freeze_at = 6
channels = 8
model.backbone.out_channels = channels
model.proposal_generator.head.in_channels = channels
heads = model.roi_heads
heads.box_pooler.output_size = 3
heads.box_head.input_shape.channels = channels
heads.box_head.input_shape.width = 3
heads.box_head.input_shape.height = 3
heads.box_head.fc_dims = [32]
heads.box_predictor.input_shape.channels = 32
heads.mask_head.input_shape.channels = channels
heads.mask_head.conv_dims = [channels] * 2
del heads

data.train.json = "photos/train.json"
data.train.images = "photos/train"
data.val.json = "photos/val.json"
data.val.images = "photos/val"
dataloader.train.mapper.augmentations[0].short_edge_length = [64, 96]
dataloader.val.mapper.augmentations[0].short_edge_length = 96
dataloader.train.num_workers = 0
dataloader.val.num_workers = 0
train.reference_batch_size = 2
train.max_epochs = None
train.max_iter = 4
train.eval_period = 2
train.checkpointer.period = 2
train.log_period = 1
train.warmup_iters = 2
train.init_checkpoint = ""
