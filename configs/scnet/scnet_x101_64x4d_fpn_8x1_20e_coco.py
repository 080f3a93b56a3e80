"""SCNet X101-64x4d-FPN (pytorch style) on COCO with label maps, 8 workers x 1 image, 20 epochs.

    CONFIG=scnet/scnet_x101_64x4d_fpn_8x1_20e_coco.py
    d2ext prepare coco --stuff
    d2ext train "$CONFIG" --num-gpus 8
    d2ext train "$CONFIG" --auto-scale-lr  # on one GPU
    d2ext train "$CONFIG" --eval-only --weights last

Reference: 8 workers x 1 image, SGD 0.01, as in MMDetection's configs/scnet file of this name. No AP
is published for it; with 8 workers x 2 images and SGD 0.02, its authors report box AP 47.5, mask AP
42.3 (metafile.yml). Method: SCNet: Training Inference Sample Consistency for Instance Segmentation,
https://arxiv.org/abs/2012.10150. Not run here.
The model gives MMDetection's numbers with its weights. In training, BatchNorm is frozen entirely,
mask targets are drawn from polygons instead of bitmaps (about 0.1 % of the mask loss), and each
region learns the object with which its IoU is largest. MMDetection's ROI heads of SCNet also allow
low-quality matches: a region above the threshold may go to another object, whose best one it is.
Without label maps: `model.roi_heads.semantic=False`.
It starts from MMDetection's ImageNet weights; without a network, download the file and pass
`train.init_checkpoint=/path/to/resnext101_64x4d-ee2c6f71.pth`.
"""

from detectron2.config import LazyCall as L

from d2ext.modeling.backbones.resnext import build_resnext

from ..common.data.coco_stuff import data, dataloader, datasets
from ..common.evaluators import evaluators
from ..common.models.scnet_fpn import model
from ..common.optim import SGD as optimizer
from ..common.schedule import multistep_20e as lr_multiplier
from ..common.train import train

model.backbone.bottom_up = L(build_resnext)(
    depth=101,
    groups=64,
    width_per_group=4,
    freeze_at=2,
    norm="FrozenBN",
    out_features=["res2", "res3", "res4", "res5"],
)
dataloader.train.mapper.augmentations[0].short_edge_length = 800  # one scale

train.reference_world_size = 8
train.reference_batch_size = 8
optimizer.lr = 0.01  # 0.02 for 16 images, by the linear rule
train.max_epochs = 20
train.init_checkpoint = (
    "https://download.openmmlab.com/pretrain/third_party/resnext101_64x4d-ee2c6f71.pth"
)
