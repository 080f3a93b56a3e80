"""SCNet with a ResNet-50 FPN, pytorch style: Cascade Mask R-CNN with SCNet's ROI heads.

The semantic branch needs label maps of COCO-stuff's 182 classes, `label_root` of a `coco_dataset`.
With your own data, it is off unless you set `model.roi_heads.semantic=True`.
"""

from detectron2.config import LazyCall as L
from detectron2.modeling.poolers import ROIPooler

from d2ext.modeling.scnet import (
    FeatureRelayHead,
    GlobalContextHead,
    SCNet,
    SCNetMaskHead,
    SCNetROIHeads,
    SemanticHead,
)

from .cascade_mask_rcnn_fpn_pytorch import model

model._target_ = SCNet
heads = model.roi_heads
heads._target_ = SCNetROIHeads
heads.semantic = True
heads.semantic_head = L(SemanticHead)(
    in_features=["p2", "p3", "p4", "p5", "p6"], level="p3", num_labels=183
)
heads.semantic_pooler = L(ROIPooler)(
    output_size=14, scales=[1 / 8], sampling_ratio=0, pooler_type="ROIAlignV2"
)
heads.context_head = L(GlobalContextHead)(in_feature="p6", num_classes="${..num_classes}")
heads.relay_head = L(FeatureRelayHead)()
heads.mask_head = L(SCNetMaskHead)(num_classes="${..num_classes}")
for _predictor in heads.box_predictors:
    _predictor.test_score_thresh = 0.001
del heads
