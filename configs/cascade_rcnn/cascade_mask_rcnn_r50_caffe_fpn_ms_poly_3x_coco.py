"""Cascade Mask R-CNN R50-FPN (caffe style) on COCO, multi-scale polygons, 36 epochs.

    CONFIG=cascade_rcnn/cascade_mask_rcnn_r50_caffe_fpn_ms_poly_3x_coco.py
    d2ext prepare coco
    d2ext train "$CONFIG" --num-gpus 8
    d2ext train "$CONFIG" --auto-scale-lr  # on one GPU
    d2ext train "$CONFIG" --eval-only --weights last

Reference: 8 workers x 2 images, SGD 0.02. Detectron2's authors report box AP 44.3, mask AP 38.5
(MODEL_ZOO.md) for configs/Misc/cascade_mask_rcnn_R_50_FPN_3x, with the same model, scales and rate,
but 270,000 iterations and a warm-up of 1,000. MMDetection's authors report 44.0 and 38.1
(metafile.yml) for their model in cascade_mask_rcnn_r50_caffe_fpn_mstrain_3x_coco. Not run here.
"""

from ..common.data.coco import data, dataloader, datasets
from ..common.evaluators import evaluators
from ..common.models.cascade_mask_rcnn_fpn import model
from ..common.optim import SGD as optimizer
from ..common.schedule import multistep_3x as lr_multiplier
from ..common.train import train

optimizer.lr = 0.02  # tuned for 8 workers x 2 images, the default of train.reference_*
train.max_epochs = 36
train.init_checkpoint = "detectron2://ImageNetPretrained/MSRA/R-50.pkl"
