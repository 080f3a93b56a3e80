"""MMDetection's balloon example: Mask R-CNN R50-FPN (caffe style), multi-scale polygons, 12 epochs.

    CONFIG=balloon/mask_rcnn_r50_caffe_fpn_ms_poly_1x_balloon.py
    d2ext train "$CONFIG"
    d2ext train "$CONFIG" --eval-only --weights last

Reference: 1 worker x 1 image, 12 epochs as in MMDetection's example. Its learning rate, 0.02 for 8
x 2 images, is scaled by the linear rule. Training starts from Detectron2's Mask R-CNN R50-FPN 3x
(COCO box AP 41.0, mask AP 37.2 in its model zoo).
On a machine without network access, set `train.init_checkpoint=/path/to/model_final_f10217.pkl`.
"""

from ..common.data.balloon import data, datasets
from ..common.data.loader import dataloader
from ..common.evaluators import evaluators
from ..common.models.mask_rcnn_fpn import model
from ..common.optim import SGD as optimizer
from ..common.schedule import multistep_1x as lr_multiplier
from ..common.train import train

model.roi_heads.num_classes = 1  # the box predictor and the mask head refer to this value

dataloader.train.dataset.names = "balloon_train"
dataloader.val.dataset.names = "balloon_val"

# COCO 1x uses lr 0.02 for 8 x 2 images; the linear rule gives 0.00125 for 1 x 1.
train.reference_world_size = 1
train.reference_batch_size = 1
optimizer.lr = 0.02 / 16
train.warmup_iters = 100
train.best.metric = "coco/segm/AP"
train.init_checkpoint = (
    "detectron2://COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_3x/137849600/model_final_f10217.pkl"
)
