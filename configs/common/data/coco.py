"""COCO 2017 (118,287 + 5,000 photos, 80 classes) and loaders for it.

`d2ext prepare coco` downloads it to the default of data.root; for another folder, set
`data.root=/elsewhere`.
"""

from detectron2.config import LazyCall as L
from detectron2.data import MetadataCatalog

from d2ext.data.datasets.declare import coco_dataset

from .loader import dataloader
from .root import data


def _split(name):
    return L(coco_dataset)(
        json_file=f"${{data.root}}/coco/annotations/instances_{name}.json",
        image_root=f"${{data.root}}/coco/{name}",
        # Set explicitly, so that processes need not read 476 MB to get them.
        classes=MetadataCatalog.get("coco_2017_train").thing_classes,
    )


# Detectron2 itself has registered coco_2017_train and coco_2017_val, so use other names.
datasets = dict(coco_train=_split("train2017"), coco_val=_split("val2017"))
dataloader.train.dataset.names = "coco_train"
dataloader.val.dataset.names = "coco_val"
