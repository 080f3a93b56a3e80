"""Mask R-CNN with a ResNet-50 FPN: Detectron2's own model, its class count left to the data.

`caffe`: stride in the 1x1 convolution, BGR input with std 1, FrozenBN; goes with Detectron2's model
zoo and with the MSRA ImageNet weights.
"""

from detectron2 import model_zoo

model = model_zoo.get_config("common/models/mask_rcnn_fpn.py").model
model.backbone.bottom_up.freeze_at = 2
model.roi_heads.num_classes = None  # as many as the training data has
