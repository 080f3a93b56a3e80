"""Panoptic FPN with two evaluators (COCOPanopticEvaluator needs the package panopticapi)."""

from detectron2 import model_zoo
from detectron2.config import LazyCall as L
from detectron2.data.datasets import register_coco_panoptic_separated
from detectron2.evaluation import COCOEvaluator, SemSegEvaluator

from tests.detectron2_style.photos import STUFF
from tests.detectron2_style.tiny_models import shrink_rcnn

from .common import dataloader, lr_multiplier, optimizer, root, train

for split in ("train", "val"):
    register_coco_panoptic_separated(
        f"tiny_{split}_panoptic",
        dict(stuff_classes=STUFF),
        image_root=f"{root}/{split}",
        panoptic_root=f"{root}/panoptic_{split}",
        panoptic_json=f"{root}/panoptic_{split}.json",
        sem_seg_root=f"{root}/stuff_{split}",
        instances_json=f"{root}/{split}.json",
    )

model = model_zoo.get_config("common/models/panoptic_fpn.py").model
shrink_rcnn(model)
model.sem_seg_head.num_classes = len(STUFF)
model.sem_seg_head.conv_dims = 32  # GroupNorm has 32 groups

dataloader.train.dataset.names = "tiny_train_panoptic_separated"
dataloader.train.dataset.filter_empty = False
dataloader.test.dataset.names = "tiny_val_panoptic_separated"
dataloader.evaluator = [
    L(COCOEvaluator)(dataset_name="${...test.dataset.names}"),
    L(SemSegEvaluator)(dataset_name="${...test.dataset.names}"),
]
