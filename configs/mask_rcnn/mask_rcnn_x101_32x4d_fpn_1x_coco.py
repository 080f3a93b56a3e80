"""Mask R-CNN X101-32x4d-FPN (pytorch style) on COCO, 12 epochs.

    CONFIG=mask_rcnn/mask_rcnn_x101_32x4d_fpn_1x_coco.py
    d2ext prepare coco
    d2ext train "$CONFIG" --num-gpus 8
    d2ext train "$CONFIG" --auto-scale-lr  # on one GPU
    d2ext train "$CONFIG" --eval-only --weights last

Reference: 8 workers x 2 images, SGD 0.02, as in MMDetection's configs/mask_rcnn file of this name
with its schedule_1x.py; its authors report box AP 41.9, mask AP 37.5 (metafile.yml). Not run here.
The model is Detectron2's, with L1 box losses, ROIAlignV2, and BatchNorm frozen entirely. It starts
from MMDetection's ImageNet weights; without a network, download the file and pass
`train.init_checkpoint=/path/to/resnext101_32x4d-a5af3160.pth`. timm's weights for this network have
the same names.
"""

from ..common.data.coco import data, dataloader, datasets
from ..common.evaluators import evaluators
from ..common.models.mask_rcnn_x101_32x4d_fpn import model
from ..common.optim import SGD as optimizer
from ..common.schedule import multistep_1x as lr_multiplier
from ..common.train import train

dataloader.train.mapper.augmentations[0].short_edge_length = 800  # one scale

optimizer.lr = 0.02  # tuned for 8 workers x 2 images, the default of train.reference_*
train.max_epochs = 12
train.init_checkpoint = (
    "https://download.openmmlab.com/pretrain/third_party/resnext101_32x4d-a5af3160.pth"
)
