"""Cascade Mask R-CNN R50-FPN (pytorch style) on COCO, 12 epochs.

    CONFIG=cascade_rcnn/cascade_mask_rcnn_r50_fpn_1x_coco.py
    d2ext prepare coco
    d2ext train "$CONFIG" --num-gpus 8
    d2ext train "$CONFIG" --auto-scale-lr  # on one GPU
    d2ext train "$CONFIG" --eval-only --weights last

Reference: 8 workers x 2 images, SGD 0.02, as in MMDetection's configs/cascade_rcnn file of this
name with its schedule_1x.py; its authors report box AP 41.2, mask AP 35.9 (metafile.yml). Not run
here. The model follows MMDetection's rules and gives the same numbers with its weights; only
BatchNorm's scale and shift, which MMDetection trains, are fixed.
"""

from ..common.data.coco import data, dataloader, datasets
from ..common.evaluators import evaluators
from ..common.models.cascade_mask_rcnn_fpn_pytorch import model
from ..common.optim import SGD as optimizer
from ..common.schedule import multistep_1x as lr_multiplier
from ..common.train import train

dataloader.train.mapper.augmentations[0].short_edge_length = 800  # one scale

optimizer.lr = 0.02  # tuned for 8 workers x 2 images, the default of train.reference_*
train.max_epochs = 12
train.init_checkpoint = "detectron2://ImageNetPretrained/torchvision/R-50.pkl"
