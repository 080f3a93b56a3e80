"""Mask R-CNN R101-FPN (caffe style) on COCO, 12 epochs.

    CONFIG=mask_rcnn/mask_rcnn_r101_caffe_fpn_1x_coco.py
    d2ext prepare coco
    d2ext train "$CONFIG" --num-gpus 8
    d2ext train "$CONFIG" --auto-scale-lr  # on one GPU
    d2ext train "$CONFIG" --eval-only --weights last

Reference: 8 workers x 2 images, SGD 0.02, as in MMDetection's configs/mask_rcnn file of this name
with its schedule_1x.py; its authors report box AP 40.4, mask AP 36.4 (metafile.yml). Not run here.
The model is Detectron2's, with L1 box losses and ROIAlignV2.
"""

from ..common.data.coco import data, dataloader, datasets
from ..common.evaluators import evaluators
from ..common.models.mask_rcnn_fpn import model
from ..common.optim import SGD as optimizer
from ..common.schedule import multistep_1x as lr_multiplier
from ..common.train import train

model.backbone.bottom_up.stages.depth = 101
dataloader.train.mapper.augmentations[0].short_edge_length = 800  # one scale

optimizer.lr = 0.02  # tuned for 8 workers x 2 images, the default of train.reference_*
train.max_epochs = 12
train.init_checkpoint = "detectron2://ImageNetPretrained/MSRA/R-101.pkl"
