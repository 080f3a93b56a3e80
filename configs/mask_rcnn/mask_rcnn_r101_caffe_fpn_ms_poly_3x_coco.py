"""Mask R-CNN R101-FPN (caffe style) on COCO, multi-scale polygons, 36 epochs.

    CONFIG=mask_rcnn/mask_rcnn_r101_caffe_fpn_ms_poly_3x_coco.py
    d2ext prepare coco
    d2ext train "$CONFIG" --num-gpus 8
    d2ext train "$CONFIG" --auto-scale-lr  # on one GPU
    d2ext train "$CONFIG" --eval-only --weights last

Reference: 8 workers x 2 images, SGD 0.02; steps after 27 and 33 epochs as in MMDetection's
configs/common/mstrain-poly_3x_coco_instance.py. Its authors report box AP 42.9, mask AP 38.5
(metafile.yml) for mask_rcnn_r101_caffe_fpn_mstrain-poly_3x_coco; Detectron2's authors report 42.9
and 38.6 (MODEL_ZOO.md) for mask_rcnn_R_101_FPN_3x, with 270,000 iterations. Not run here.
"""

from ..common.data.coco import data, dataloader, datasets
from ..common.evaluators import evaluators
from ..common.models.mask_rcnn_fpn import model
from ..common.optim import SGD as optimizer
from ..common.schedule import multistep_3x as lr_multiplier
from ..common.train import train

model.backbone.bottom_up.stages.depth = 101

optimizer.lr = 0.02  # tuned for 8 workers x 2 images, the default of train.reference_*
train.max_epochs = 36
train.init_checkpoint = "detectron2://ImageNetPretrained/MSRA/R-101.pkl"
