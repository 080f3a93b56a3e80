"""Keypoint R-CNN with a ResNet-50 FPN, caffe style: Detectron2's own model, for 17 keypoints."""

from detectron2 import model_zoo

model = model_zoo.get_config("common/models/keypoint_rcnn_fpn.py").model
model.backbone.bottom_up.freeze_at = 2
model.roi_heads.num_classes = None  # set from the training data
