"""PISA: Faster R-CNN with a ResNet-50 FPN, pytorch style, whose training weights prime samples."""

from d2ext.modeling.pisa import PISAOutputLayers, PISAROIHeads

from .faster_rcnn_fpn_pytorch import model

model.roi_heads._target_ = PISAROIHeads
model.roi_heads.box_predictor._target_ = PISAOutputLayers
model.roi_heads.box_predictor.smooth_l1_beta = 1.0
model.proposal_generator.post_nms_topk = (2000, 2000)
model.proposal_generator.pre_nms_topk = (2000, 2000)
