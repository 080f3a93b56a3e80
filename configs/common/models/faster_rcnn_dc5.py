"""Faster R-CNN with a ResNet-50 DC5, caffe style: no FPN, and a dilated res5 with stride 16.

Detectron2 has the same model as configs/COCO-Detection/faster_rcnn_R_50_DC5_1x.yaml; the padding is
MMDetection's.
"""

from detectron2.config import LazyCall as L
from detectron2.modeling.backbone import ResNet
from detectron2.modeling.backbone.resnet import BottleneckBlock

from d2ext.modeling.backbones.padded_resnet import PaddedResNet

from .faster_rcnn_fpn import model

model.backbone = model.backbone.bottom_up
model.backbone._target_ = PaddedResNet
model.backbone.out_features = ["res5"]
model.backbone.stages = [
    L(ResNet.make_stage)(
        block_class=BottleneckBlock,
        num_blocks=blocks,
        stride_per_block=[stride] + [1] * (blocks - 1),
        dilation=dilation,
        in_channels=in_channels,
        bottleneck_channels=out_channels // 4,
        out_channels=out_channels,
        norm="FrozenBN",
        stride_in_1x1=True,
    )
    for blocks, stride, dilation, in_channels, out_channels in [
        (3, 1, 1, 64, 256),
        (4, 2, 1, 256, 512),
        (6, 2, 1, 512, 1024),
        (3, 1, 2, 1024, 2048),
    ]
]
model.proposal_generator.in_features = ["res5"]
model.proposal_generator.head.in_channels = 2048
model.proposal_generator.head.num_anchors = 15
model.proposal_generator.anchor_generator.sizes = [[32, 64, 128, 256, 512]]
model.proposal_generator.anchor_generator.strides = [16]
model.proposal_generator.pre_nms_topk = (12000, 6000)
model.proposal_generator.post_nms_topk = (2000, 1000)
model.roi_heads.box_in_features = ["res5"]
model.roi_heads.box_pooler.scales = (1 / 16,)
model.roi_heads.box_head.input_shape.channels = 2048
