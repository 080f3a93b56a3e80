"""Mask R-CNN with a ResNet-50 FPN: Detectron2's own model, with the class count of the data.

It is caffe style, with the stride in the 1x1 convolution, BGR input with std 1, and FrozenBN, and
fits the weights of Detectron2's model zoo and the MSRA ImageNet weights.
"""

from detectron2 import model_zoo

model = model_zoo.get_config("common/models/mask_rcnn_fpn.py").model
model.backbone.bottom_up.freeze_at = 2
model.roi_heads.num_classes = None  # set from the training data
