"""Mask R-CNN R50-FPN (pytorch style) on COCO, 8 workers x 1 image, 20 epochs.

    CONFIG=mask_rcnn/mask_rcnn_r50_fpn_8x1_20e_coco.py
    d2ext prepare coco
    d2ext train "$CONFIG" --num-gpus 8
    d2ext train "$CONFIG" --auto-scale-lr  # on one GPU
    d2ext train "$CONFIG" --eval-only --weights last

Reference: 8 workers x 1 image, SGD 0.01, as in MMDetection's scnet_x101_64x4d_fpn_8x1_20e_coco
(another model); steps after 16 and 19 epochs as in its schedule_20e.py. No AP is published for this
combination; the nearest one is the 1x of mask_rcnn_r50_fpn_1x_coco. Not run here.
"""

from ..common.data.coco import data, dataloader, datasets
from ..common.evaluators import evaluators
from ..common.models.mask_rcnn_fpn_pytorch import model
from ..common.optim import SGD as optimizer
from ..common.schedule import multistep_20e as lr_multiplier
from ..common.train import train

dataloader.train.mapper.augmentations[0].short_edge_length = 800  # one scale

train.reference_world_size = 8
train.reference_batch_size = 8
optimizer.lr = 0.01  # 0.02 for 16 images, by the linear rule
train.max_epochs = 20
train.init_checkpoint = "detectron2://ImageNetPretrained/torchvision/R-50.pkl"
