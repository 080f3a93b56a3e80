"""Mask R-CNN R50-FPN on Cityscapes, initialized from COCO, 64 epochs.

    CONFIG=cityscapes/mask_rcnn_r50_fpn_1x_cityscapes.py
    d2ext prepare cityscapes
    d2ext train "$CONFIG" --num-gpus 8
    d2ext train "$CONFIG" --auto-scale-lr  # on one GPU
    d2ext train "$CONFIG" --eval-only --weights last

Reference: 8 workers x 1 image, SGD 0.01, as in MMDetection's configs/cityscapes file of this name.
That file trains for 8 epochs on the data repeated eight times, the last one at a tenth of the rate
(about 23,800 steps); its authors report box AP 40.9, mask AP 36.4 (configs/cityscapes/README.md).
Detectron2's configs/Cityscapes trains for 24,000 steps, at a tenth of the rate from step 18,000;
its authors report mask AP 36.5 with Cityscapes' own metric (MODEL_ZOO.md). Not run here.

Training starts from Detectron2's Mask R-CNN R50-FPN 3x (COCO box AP 41.0, mask AP 37.2 in its model
zoo). Like those weights, this model is caffe style; MMDetection's is pytorch style.
On a machine without network access, set `train.init_checkpoint=/path/to/model_final_f10217.pkl`.
"""

from detectron2.config import LazyCall as L

from d2ext.evaluation.cityscapes import CityscapesMetric

from ..common.data.cityscapes import data, dataloader, datasets
from ..common.evaluators import evaluators
from ..common.models.mask_rcnn_fpn import model
from ..common.optim import SGD as optimizer
from ..common.schedule import multistep_cityscapes as lr_multiplier
from ..common.train import train

# Photos are 2048 x 1024.
resize = dataloader.train.mapper.augmentations[0]
resize.short_edge_length = [800, 1024]
resize.sample_style = "range"
resize.max_size = 2048
dataloader.val.mapper.augmentations[0].short_edge_length = 1024
dataloader.val.mapper.augmentations[0].max_size = 2048
dataloader.tta = dict(min_sizes=[896, 1024, 1152], max_size=2304, flip=True)
del resize

evaluators.cityscapes = L(CityscapesMetric)()

train.reference_world_size = 8
train.reference_batch_size = 8
optimizer.lr = 0.01
train.max_epochs = 64
train.eval_period = "8 epochs"
train.checkpointer.period = "8 epochs"
train.init_checkpoint = (
    "detectron2://COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_3x/137849600/model_final_f10217.pkl"
)
