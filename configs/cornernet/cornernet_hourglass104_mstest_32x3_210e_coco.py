"""CornerNet Hourglass-104 on COCO, 32 workers x 3 images, 210 epochs.

    CONFIG=cornernet/cornernet_hourglass104_mstest_32x3_210e_coco.py
    d2ext prepare coco
    d2ext train "$CONFIG" --num-gpus 8
    d2ext train "$CONFIG" --auto-scale-lr  # on one GPU
    d2ext train "$CONFIG" --eval-only --weights last

Reference: 32 workers x 3 images, Adam 0.0005, gradients clipped at 35, as in MMDetection's
configs/cornernet/cornernet_hourglass104_32xb3-210e-mstest_coco.py; its authors report box AP
40.4 with flipped photos, 39.6 without (configs/cornernet/README.md). Method: CornerNet,
https://arxiv.org/abs/1808.01244. Not run here. Photos are tested at their own size and mirrored;
`model.test_scales=[0.5,0.75,1,1.25,1.5]` tests several sizes, as the paper does. Crops are padded
with the mean color rounded to whole numbers.
"""

from detectron2.config import LazyCall as L
from torch.optim import Adam

from ..common.data.coco_corners import data, dataloader, datasets
from ..common.evaluators import evaluators
from ..common.models.cornernet import model
from ..common.optim import SGD as _sgd
from ..common.schedule import multistep_210e as lr_multiplier
from ..common.train import train

optimizer = L(Adam)(params=_sgd.params, lr=0.0005)
optimizer.params.weight_decay_norm = None
lr_multiplier.warmup_factor = 1 / 3
evaluators.coco.tasks = ["bbox"]  # also if the model detects nothing

train.reference_world_size = 32
train.reference_batch_size = 96
train.max_epochs = 210
train.clip_grad_norm = 35
