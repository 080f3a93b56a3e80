"""Mask R-CNN R50-FPN (caffe style) on COCO, 32 workers x 3 images, 36 epochs.

    CONFIG=mask_rcnn/mask_rcnn_r50_caffe_fpn_ms_poly_32x3_3x_coco.py
    d2ext prepare coco
    NODES=(--num-machines 4 --machine-rank 0 --dist-url tcp://HOST:29500)
    d2ext train $CONFIG --num-gpus 8 "${NODES[@]}"
    d2ext train $CONFIG --auto-scale-lr  # on one GPU
    d2ext train $CONFIG --eval-only --weights last

These NODES are the first machine's of 4, which differ in --machine-rank.

Reference: 32 workers x 3 images, SGD 0.12: the 3x recipe's 0.02 by the linear rule (Goyal et al.
2017) for 96 images instead of 16. No AP is published for this combination; Detectron2's authors
report box AP 41.0, mask AP 37.2 (MODEL_ZOO.md) for 16 images, 3x. Not run here.
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
# The rate rises by as much a step as on the way to 0.02 in 500 steps. That is about 2.5 epochs;
# Goyal et al. take 5, for batches of up to 8,192.
train.warmup_iters = 3000
train.max_epochs = 36
train.init_checkpoint = "detectron2://ImageNetPretrained/MSRA/R-50.pkl"
