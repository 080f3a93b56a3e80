"""Mask R-CNN R50-FPN (caffe style) on COCO, multi-scale polygons, 12 epochs.

    CONFIG=mask_rcnn/mask_rcnn_r50_caffe_fpn_ms_poly_1x_coco.py
    d2ext prepare coco
    d2ext train "$CONFIG" --num-gpus 8
    d2ext train "$CONFIG" --auto-scale-lr  # on one GPU
    d2ext train "$CONFIG" --eval-only --weights last

Reference: 8 workers x 2 images, SGD 0.02, as in MMDetection's
mask_rcnn_r50_caffe_fpn_mstrain-poly_1x_coco with its schedule_1x.py. Detectron2's authors report
box AP 38.6, mask AP 35.2 (MODEL_ZOO.md) for mask_rcnn_R_50_FPN_1x, with the same model, scales and
rate, but 90,000 iterations, steps at 60,000 and 80,000, and a warm-up of 1,000. Not run here.
"""

from ..common.data.coco import data, dataloader, datasets
from ..common.evaluators import evaluators
from ..common.models.mask_rcnn_fpn import model
from ..common.optim import SGD as optimizer
from ..common.schedule import multistep_1x as lr_multiplier
from ..common.train import train

optimizer.lr = 0.02  # tuned for 8 workers x 2 images, the default of train.reference_*
train.max_epochs = 12
train.init_checkpoint = "detectron2://ImageNetPretrained/MSRA/R-50.pkl"
