"""Mask R-CNN without an FPN: the heads share the last stage of the ResNet."""

from detectron2 import model_zoo

from tests.detectron2_style.tiny_models import shrink_resnet

from .common import dataloader, lr_multiplier, optimizer, train

model = model_zoo.get_config("common/models/mask_rcnn_c4.py").model
shrink_resnet(model.backbone)
model.backbone.stages.strides = (1, 2, 2)
model.pixel_std = [57.375, 57.120, 58.395]
rpn = model.proposal_generator
rpn.head.in_channels = 32
rpn.head.num_anchors = 6
rpn.anchor_generator.sizes = [[16, 32]]
rpn.batch_size_per_image = 32
rpn.pre_nms_topk = (50, 50)
rpn.post_nms_topk = (20, 20)
heads = model.roi_heads
heads.num_classes = 2
heads.batch_size_per_image = 16
heads.res5.in_channels = 32
heads.res5.bottleneck_channels = 16
heads.res5.out_channels = 64
heads.mask_head.conv_dims = [16]
heads.box_predictor.test_score_thresh = 0.0
