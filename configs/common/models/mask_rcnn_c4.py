"""Mask R-CNN with a ResNet-50 C4, caffe style: Detectron2's model, with MMDetection's padding.

It has no FPN: the proposals come from the features of res4, and res5 is the head of each box.
"""

from detectron2 import model_zoo

from d2ext.modeling.backbones.padded_resnet import PaddedResNet

model = model_zoo.get_config("common/models/mask_rcnn_c4.py").model
model.backbone._target_ = PaddedResNet
model.backbone.freeze_at = 2
model.roi_heads.num_classes = None  # set from the training data
