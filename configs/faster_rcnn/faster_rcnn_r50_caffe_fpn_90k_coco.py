"""Faster R-CNN R50-FPN (caffe style) on COCO, 90,000 iterations.

    CONFIG=faster_rcnn/faster_rcnn_r50_caffe_fpn_90k_coco.py
    d2ext prepare coco
    d2ext train "$CONFIG" --num-gpus 8
    d2ext train "$CONFIG" --auto-scale-lr  # on one GPU
    d2ext train "$CONFIG" --eval-only --weights last

Reference: 8 workers x 2 images, SGD 0.02; length, steps and periods as in MMDetection's
faster-rcnn_r50-caffe_fpn_90k_coco, for which its metafile.yml reports no AP. For the same schedule,
Detectron2's authors report box AP 36.9 with one scale (configs/Detectron1-Comparisons) and 37.9
with several (MODEL_ZOO.md, faster_rcnn_R_50_FPN_1x), with 1,000 iterations of warm-up. Not run
here.
"""

from ..common.data.coco import data, dataloader, datasets
from ..common.evaluators import evaluators
from ..common.models.faster_rcnn_fpn import model
from ..common.optim import SGD as optimizer
from ..common.schedule import multistep_90k as lr_multiplier
from ..common.train import train

dataloader.train.mapper.use_instance_mask = False
evaluators.coco.tasks = ["bbox"]  # also if the model detects nothing
dataloader.train.mapper.augmentations[0].short_edge_length = 800  # one scale

optimizer.lr = 0.02  # tuned for 8 workers x 2 images, the default of train.reference_*
train.max_epochs = None
train.max_iter = 90000
train.eval_period = 10000
train.checkpointer.period = 10000
train.init_checkpoint = "detectron2://ImageNetPretrained/MSRA/R-50.pkl"
