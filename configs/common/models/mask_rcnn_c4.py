"""Mask R-CNN with a ResNet-50 C4, caffe style: Detectron2's own model.

It has no FPN: the proposals come from the features of res4, and res5 is the head of each box.
"""

from detectron2 import model_zoo

model = model_zoo.get_config("common/models/mask_rcnn_c4.py").model
model.backbone.freeze_at = 2
model.roi_heads.num_classes = None  # set from the training data
