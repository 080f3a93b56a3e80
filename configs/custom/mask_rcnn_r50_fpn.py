"""Mask R-CNN R50-FPN on photos of your own, initialised from COCO; wants a GPU.

    CONFIG=custom/mask_rcnn_r50_fpn.py
    DATA=(data.train.json=a.json data.train.images=imgs data.val.json=b.json data.val.images=imgs)
    d2ext train $CONFIG "${DATA[@]}"
    d2ext train $CONFIG --eval-only --weights best "${DATA[@]}"

The annotations are COCO, VIA or MMDetection's middle format; classes and their number come from the
files. `--dry-run` says what was found.

Reference: 1 worker x 2 images, which fit into 8 GB; SGD 0.0025 by the linear rule from 0.02 for
8 x 2 images (`--auto-scale-lr` goes on with it). 24 epochs with steps after 16 and 22: some hundred
photos make 1000 steps, enough for weights that have seen COCO; for more, train.max_epochs=12.

Starts from Detectron2's Mask R-CNN R50-FPN 3x (COCO box AP 41.0, mask AP 37.2 in its model zoo).
A machine without network: `train.init_checkpoint=/path/to/model_final_f10217.pkl`.
"""

from ..common.data.custom import data, dataloader, datasets
from ..common.evaluators import evaluators
from ..common.models.mask_rcnn_fpn import model
from ..common.optim import SGD as optimizer
from ..common.schedule import multistep_1x as lr_multiplier
from ..common.train import train

train.reference_world_size = 1
train.reference_batch_size = 2
optimizer.lr = 0.02 / 8
train.max_epochs = 24
train.warmup_iters = 100
train.best.metric = "coco/segm/AP"
train.init_checkpoint = (
    "detectron2://COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_3x/137849600/model_final_f10217.pkl"
)
