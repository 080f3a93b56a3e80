"""SCNet R101-FPN (pytorch style) on COCO with COCO-Stuff's label maps, 20 epochs.

    CONFIG=scnet/scnet_r101_fpn_20e_coco.py
    d2ext prepare coco --stuff
    d2ext train "$CONFIG" --num-gpus 8
    d2ext train "$CONFIG" --auto-scale-lr  # on one GPU
    d2ext train "$CONFIG" --eval-only --weights last

Reference: 8 workers x 2 images, SGD 0.02, as in MMDetection's configs/scnet file of this name; its
authors report box AP 45.8, mask AP 40.9 (metafile.yml). Method: SCNet: Training Inference Sample
Consistency for Instance Segmentation, https://arxiv.org/abs/2012.10150. Not run here.
The model gives MMDetection's numbers with its weights. In training, BatchNorm is frozen entirely,
mask targets are drawn from polygons instead of bitmaps (about 0.1 % of the mask loss), and each
region learns the object with which its IoU is largest. MMDetection's ROI heads of SCNet also allow
low-quality matches: a region above the threshold may go to another object, whose best one it is.
Without label maps: `model.roi_heads.semantic=False`.
It starts from torchvision's ImageNet weights, as in MMDetection; without a network, download the
file and pass `train.init_checkpoint=/path/to/resnet101-63fe2227.pth`.
"""

from ..common.data.coco_stuff import data, dataloader, datasets
from ..common.evaluators import evaluators
from ..common.models.scnet_fpn import model
from ..common.optim import SGD as optimizer
from ..common.schedule import multistep_20e as lr_multiplier
from ..common.train import train

model.backbone.bottom_up.stages.depth = 101
dataloader.train.mapper.augmentations[0].short_edge_length = 800  # one scale

optimizer.lr = 0.02  # tuned for 8 workers x 2 images, the default of train.reference_*
train.max_epochs = 20
train.init_checkpoint = "https://download.pytorch.org/models/resnet101-63fe2227.pth"
