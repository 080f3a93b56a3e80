"""RetinaNet R50-FPN (pytorch style) on COCO, 12 epochs.

    CONFIG=retinanet/retinanet_r50_fpn_1x_coco.py
    d2ext prepare coco
    d2ext train "$CONFIG" --num-gpus 8
    d2ext train "$CONFIG" --auto-scale-lr  # on one GPU
    d2ext train "$CONFIG" --eval-only --weights last

Reference: 8 workers x 2 images, SGD 0.01, as in MMDetection's configs/retinanet file of this name
with its schedule_1x.py; its authors report box AP 36.5 (metafile.yml). Detectron2's authors report
37.4 (MODEL_ZOO.md) for retinanet_R_50_FPN_1x, which is caffe style with several scales, and trains
for 90,000 iterations with a warm-up of 1,000. Not run here. The model follows MMDetection's rules;
only BatchNorm's scale and shift, which MMDetection trains, are fixed.
"""

from ..common.data.coco import data, dataloader, datasets
from ..common.evaluators import evaluators
from ..common.models.retinanet_fpn_pytorch import model
from ..common.optim import SGD as optimizer
from ..common.schedule import multistep_1x as lr_multiplier
from ..common.train import train

dataloader.train.mapper.use_instance_mask = False
evaluators.coco.tasks = ["bbox"]  # also if the model detects nothing
dataloader.train.mapper.augmentations[0].short_edge_length = 800  # one scale

optimizer.lr = 0.01  # tuned for 8 workers x 2 images, the default of train.reference_*
train.max_epochs = 12
train.init_checkpoint = "detectron2://ImageNetPretrained/torchvision/R-50.pkl"
