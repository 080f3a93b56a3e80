"""Data, optimizer, schedule and `train` in Detectron2's layout; the configs change some fields."""

import os

from detectron2 import model_zoo
from detectron2.config import LazyCall as L
from detectron2.data.datasets import register_coco_instances
from detectron2.solver import WarmupParamScheduler
from fvcore.common.param_scheduler import MultiStepParamScheduler

root = os.path.join(os.environ["DETECTRON2_DATASETS"], "tiny")
for split in ("train", "val"):
    register_coco_instances(f"tiny_{split}", {}, f"{root}/{split}.json", f"{root}/{split}")

dataloader = model_zoo.get_config("common/data/coco.py").dataloader
dataloader.train.dataset.names = "tiny_train"
dataloader.train.mapper.augmentations[0].short_edge_length = (56, 64, 72)
dataloader.train.total_batch_size = 2
dataloader.train.num_workers = 0
dataloader.test.dataset.names = "tiny_val"
dataloader.test.mapper.augmentations[0].short_edge_length = 64
dataloader.test.num_workers = 0

optimizer = model_zoo.get_config("common/optim.py").SGD
optimizer.lr = 0.01
lr_multiplier = L(WarmupParamScheduler)(
    scheduler=L(MultiStepParamScheduler)(values=[1.0, 0.1], milestones=[3, 5]),
    warmup_length=2 / 5,
    warmup_factor=0.1,
)

train = model_zoo.get_config("common/train.py").train
train.max_iter = 5
train.eval_period = 5
train.checkpointer.period = 2
train.log_period = 1
