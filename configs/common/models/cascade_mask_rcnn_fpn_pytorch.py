"""Cascade Mask R-CNN with a ResNet-50 FPN, pytorch style, by MMDetection's rules.

Each stage has its own mask head, samples its proposals again, and has a weight for its losses. For
torchvision's ImageNet weights.
"""

import copy

from detectron2.config import LazyCall as L

from d2ext.modeling.cascade import CascadeROIHeads
from d2ext.modeling.matcher import MaxIoUMatcher
from d2ext.modeling.rpn import ValidAnchorRPN

from .cascade_mask_rcnn_fpn import model
from .pytorch_style import to_pytorch_style

to_pytorch_style(model)
model.proposal_generator._target_ = ValidAnchorRPN
model.proposal_generator.anchor_matcher = L(MaxIoUMatcher)(
    negative=0.3, positive=0.7, min_positive=0.3
)
model.proposal_generator.anchor_boundary_thresh = 0  # without anchors that leave the image
model.proposal_generator.smooth_l1_beta = 1 / 9
model.roi_heads._target_ = CascadeROIHeads
model.roi_heads.mask_head.num_classes = "${...num_classes}"  # one level further down
model.roi_heads.mask_head = [copy.deepcopy(model.roi_heads.mask_head) for _ in range(3)]
for _predictor in model.roi_heads.box_predictors:
    _predictor.smooth_l1_beta = 1.0
model.roi_heads.box_predictors[2].box2box_transform.weights = [
    1 / std for std in (0.033, 0.033, 0.067, 0.067)
]
