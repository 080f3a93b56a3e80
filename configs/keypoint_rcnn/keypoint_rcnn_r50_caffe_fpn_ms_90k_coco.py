"""Keypoint R-CNN R50-FPN (caffe style) on COCO's people, multi-scale, 90,000 iterations.

    CONFIG=keypoint_rcnn/keypoint_rcnn_r50_caffe_fpn_ms_90k_coco.py
    d2ext prepare coco
    d2ext train "$CONFIG" --num-gpus 8
    d2ext train "$CONFIG" --auto-scale-lr  # on one GPU
    d2ext train "$CONFIG" --eval-only --weights last

Reference: 8 workers x 2 images, SGD 0.02, length and steps as in Detectron2's
configs/COCO-Keypoints/keypoint_rcnn_R_50_FPN_1x, which has a warm-up of 1,000 iterations; its
authors report box AP 53.6, keypoint AP 64.0 (MODEL_ZOO.md). Images without a person with a labeled
keypoint are skipped, as there. Not run here.
"""

from ..common.data.coco_keypoints import data, dataloader, datasets
from ..common.evaluators import evaluators
from ..common.models.keypoint_rcnn_fpn import model
from ..common.optim import SGD as optimizer
from ..common.schedule import multistep_90k as lr_multiplier
from ..common.train import train

optimizer.lr = 0.02  # tuned for 8 workers x 2 images, the default of train.reference_*
train.max_epochs = None
train.max_iter = 90000
train.eval_period = 10000
train.checkpointer.period = 10000
train.init_checkpoint = "detectron2://ImageNetPretrained/MSRA/R-50.pkl"
