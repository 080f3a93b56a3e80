"""Cascade Mask R-CNN with a ResNet-50 FPN, caffe style: Detectron2's own model.

It has three box heads, trained at IoU 0.5, 0.6 and 0.7, and one mask head. MMDetection has a mask
head per stage, samples proposals again for each of them, and weights the losses of the stages.
"""

from detectron2 import model_zoo

model = model_zoo.get_config("common/models/cascade_rcnn.py").model
model.backbone.bottom_up.freeze_at = 2
model.roi_heads.num_classes = None  # set from the training data
# As in Detectron2's configs/Misc/cascade_mask_rcnn_R_50_FPN_1x.yaml and in MMDetection.
model.proposal_generator.post_nms_topk = (2000, 1000)
