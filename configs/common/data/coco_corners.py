"""COCO 2017 as CornerNet sees it: crops of 511 pixels in training, whole photos in evaluations.

The augmentation is that of MMDetection's configs/cornernet. `--tta` evaluates at several scales.
"""

import detectron2.data.transforms as T
from detectron2.config import LazyCall as L

from d2ext.data.loading.augment.center_crop import CenterCropPad
from d2ext.data.loading.augment.color import PhotoMetricDistortion

from .coco import data, dataloader, datasets

dataloader.train.mapper.use_instance_mask = False
dataloader.train.mapper.augmentations = [
    L(PhotoMetricDistortion)(
        brightness_delta=32,
        contrast_range=[0.5, 1.5],
        saturation_range=[0.5, 1.5],
        hue_delta=18,
        image_format="${model.input_format}",
    ),
    L(CenterCropPad)(
        crop_size=[511, 511],
        pad_value="${model.pixel_mean}",
        ratios=[0.6, 0.7, 0.8, 0.9, 1.0, 1.1, 1.2, 1.3],
        border=128,
    ),
    L(T.Resize)(shape=[511, 511]),
    L(T.RandomFlip)(horizontal=True),
]
dataloader.train.aspect_ratio_grouping = False  # all crops are square
dataloader.val.mapper.augmentations = []
dataloader.tta = dict(scales=[0.5, 0.75, 1.0, 1.25, 1.5], flip=True)
