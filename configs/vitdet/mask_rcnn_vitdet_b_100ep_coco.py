"""ViTDet: Mask R-CNN on a plain ViT-B on COCO, large-scale jittering, about 100 epochs.

    CONFIG=vitdet/mask_rcnn_vitdet_b_100ep_coco.py
    d2ext prepare coco
    NODES=(--num-machines 8 --machine-rank 0 --dist-url tcp://HOST:29500)
    d2ext train "$CONFIG" --num-gpus 8 "${NODES[@]}"
    d2ext train "$CONFIG" --auto-scale-lr  # on one GPU
    d2ext train "$CONFIG" --eval-only --weights last

These NODES are for the first of 8 machines; the others have --machine-rank 1 to 7.

Reference: 64 workers x 1 image, AdamW 1e-4 with a decay of 0.7 per layer, mixed precision, all as
in Detectron2's projects/ViTDet/configs/COCO/mask_rcnn_vitdet_b_100ep.py; its authors report box AP
51.6, mask AP 45.9, and 10.9 GB of GPU memory per image (its README.md). Not run here. Training
starts from an MAE of ImageNet-1k (He et al. 2021, CC BY-NC 4.0).
"""

from functools import partial

import detectron2.data.transforms as T
from detectron2.config import LazyCall as L
from detectron2.modeling.backbone.vit import get_vit_lr_decay_rate

from ..common.data.coco import data, dataloader, datasets
from ..common.evaluators import evaluators
from ..common.models.mask_rcnn_vitdet import model
from ..common.optim import AdamW as optimizer
from ..common.schedule import multistep_100ep as lr_multiplier
from ..common.train import train

dataloader.train.mapper.augmentations = [
    L(T.RandomFlip)(horizontal=True),
    L(T.ResizeScale)(min_scale=0.1, max_scale=2.0, target_height=1024, target_width=1024),
    L(T.FixedSizeCrop)(crop_size=(1024, 1024), pad=False),
]
dataloader.train.mapper.recompute_boxes = True  # a cropped box may exceed its cropped mask
dataloader.val.mapper.augmentations[0].short_edge_length = 1024
dataloader.val.mapper.augmentations[0].max_size = 1024

train.reference_world_size = 64
train.reference_batch_size = 64
optimizer.lr = 1e-4
optimizer.params.lr_factor_func = partial(get_vit_lr_decay_rate, num_layers=12, lr_decay_rate=0.7)
optimizer.params.overrides = {"pos_embed": {"weight_decay": 0.0}}
train.max_epochs = None
train.max_iter = 184375
train.warmup_iters = 250
train.eval_period = 5000
train.checkpointer.period = 5000
train.amp.enabled = "auto"
train.ddp.fp16_compression = True
train.init_checkpoint = "detectron2://ImageNetPretrained/MAE/mae_pretrain_vit_base.pth"
