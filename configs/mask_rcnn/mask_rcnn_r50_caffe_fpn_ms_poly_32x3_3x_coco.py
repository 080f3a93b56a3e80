"""Mask R-CNN R50-FPN (caffe style) on COCO, 32 workers x 3 images, 36 epochs.

    CONFIG=mask_rcnn/mask_rcnn_r50_caffe_fpn_ms_poly_32x3_3x_coco.py
    d2ext prepare coco
    NODES=(--num-machines 4 --machine-rank 0 --dist-url tcp://HOST:29500)
    d2ext train "$CONFIG" --num-gpus 8 "${NODES[@]}"
    d2ext train "$CONFIG" --auto-scale-lr  # on one GPU
    d2ext train "$CONFIG" --eval-only --weights last

These NODES are for the first of 4 machines; the others have --machine-rank 1 to 3.

Reference: 32 workers x 3 images, SGD 0.12, which is the 3x recipe's 0.02 scaled from 16 to 96
images by the linear rule (Goyal et al. 2017). No AP is published for this combination; Detectron2's
authors report box AP 41.0, mask AP 37.2 (MODEL_ZOO.md) for 16 images, 3x. Not run here.
"""

from ..common.data.coco import data, dataloader, datasets
from ..common.evaluators import evaluators
from ..common.models.mask_rcnn_fpn import model
from ..common.optim import SGD as optimizer
from ..common.schedule import multistep_3x as lr_multiplier
from ..common.train import train

train.reference_world_size = 32
train.reference_batch_size = 96
optimizer.lr = 0.02 * 96 / 16
# The rate grows as much per step as with 500 steps to 0.02. The warm-up lasts about 2.5 epochs;
# Goyal et al. use 5, for batches of up to 8,192.
train.warmup_iters = 3000
train.max_epochs = 36
train.init_checkpoint = "detectron2://ImageNetPretrained/MSRA/R-50.pkl"
