"""COCO 2017 with CornerNet's augmentations: random crops of 511 pixels, and photos as they are."""

import detectron2.data.transforms as T
from detectron2.config import LazyCall as L

from d2ext.data.loading.center_crop import CenterCropPad
from d2ext.data.loading.photometric import PhotoMetricDistortion

from .coco import data, dataloader, datasets

dataloader.train.aspect_ratio_grouping = False  # all crops are square
dataloader.train.mapper.use_instance_mask = False
dataloader.train.mapper.augmentations = [
    L(PhotoMetricDistortion)(image_format="${dataloader.train.mapper.image_format}"),
    L(CenterCropPad)(
        size=511,
        ratios=[0.6, 0.7, 0.8, 0.9, 1.0, 1.1, 1.2, 1.3],
        border=128,
        pad_value="${model.pixel_mean}",
    ),
    L(T.Resize)(shape=[511, 511]),
    L(T.RandomFlip)(horizontal=True),
]
dataloader.val.mapper.augmentations = []
