"""Cityscapes' fine annotations (2,975 + 500 photos, 8 classes with instances) and loaders for it.

The datasets are Detectron2's own, which are in $DETECTRON2_DATASETS (default: datasets) and are
read with the package cityscapesscripts. `d2ext prepare cityscapes` checks both.
"""

from .loader import dataloader

data = dict(augmentation=None)
datasets = dict()  # empty, because Detectron2 has registered the datasets
dataloader.train.dataset.names = "cityscapes_fine_instance_seg_train"
dataloader.val.dataset.names = "cityscapes_fine_instance_seg_val"
