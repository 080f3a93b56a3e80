"""Mask R-CNN for a laptop CPU: EfficientNet-Lite0, a 96-channel FPN, light heads.

The backbone is timm's tf_efficientnet_lite0 (strides 4 to 32, 24/40/112/320 channels) and expects
RGB with mean = std = 127.5. Otherwise, only widths and sampling differ from Detectron2's R50 model.
The recipes of Lite1 and Lite2 only replace the name of the backbone.
"""

from detectron2 import model_zoo
from detectron2.config import LazyCall as L

from d2ext.modeling.backbones.timm_backbone import TimmBackbone

model = model_zoo.get_config("common/models/mask_rcnn_fpn.py").model

model.input_format = "RGB"
model.pixel_mean = [127.5, 127.5, 127.5]
model.pixel_std = [127.5, 127.5, 127.5]
model.backbone.bottom_up = L(TimmBackbone)(
    name="tf_efficientnet_lite0",
    out_features=["res2", "res3", "res4", "res5"],
    # ImageNet's early features need no training, which would be expensive.
    freeze_at=3,
)

# Convolutions at stride 4 are the most expensive ones on a CPU. The model therefore has 96
# channels, and no proposals at that stride; small anchors at stride 8 make up for it.
channels = 96
model.backbone.out_channels = channels
rpn = model.proposal_generator
rpn.in_features = ["p3", "p4", "p5", "p6"]
rpn.head.in_channels = channels
rpn.head.num_anchors = 6
rpn.anchor_generator.sizes = [[16, 28], [48, 72], [112, 168], [256, 384]]
rpn.anchor_generator.strides = [8, 16, 32, 64]
rpn.pre_nms_topk = (1000, 500)
rpn.post_nms_topk = (300, 200)
rpn.batch_size_per_image = 128

heads = model.roi_heads
heads.num_classes = None  # set from the training data
heads.batch_size_per_image = 64
heads.box_pooler.sampling_ratio = 2
heads.mask_pooler.sampling_ratio = 2
heads.box_head.input_shape.channels = channels
heads.box_head.fc_dims = [256, 256]
heads.box_predictor.input_shape.channels = 256
heads.mask_head.input_shape.channels = channels
heads.mask_head.conv_dims = [channels] * 3
del heads, rpn
