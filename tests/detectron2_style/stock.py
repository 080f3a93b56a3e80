"""Train and evaluate a config as Detectron2's tools/lazyconfig_train_net.py does, on the CPU."""

import sys
from pathlib import Path

import numpy as np
import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import LazyConfig, instantiate
from detectron2.engine import SimpleTrainer, hooks
from detectron2.evaluation import DatasetEvaluators, SemSegEvaluator, inference_on_dataset
from omegaconf import ListConfig
from PIL import Image


def train(config: Path, steps: int) -> None:
    """Train some steps and print losses and results."""
    cfg = LazyConfig.load(str(config))
    if "device" in cfg.model:
        cfg.model.device = "cpu"
    model = instantiate(cfg.model)
    cfg.optimizer.params.model = model
    optimizer = instantiate(cfg.optimizer)
    trainer = SimpleTrainer(model, instantiate(cfg.dataloader.train), optimizer)
    checkpointer = DetectionCheckpointer(model, trainer=trainer)
    trainer.register_hooks([hooks.LRScheduler(scheduler=instantiate(cfg.lr_multiplier))])
    checkpointer.resume_or_load(cfg.train.init_checkpoint, resume=False)
    trainer.train(0, steps)
    print({k: v.latest() for k, v in trainer.storage.histories().items() if "loss" in k})
    for node in (
        cfg.dataloader.evaluator if isinstance(cfg.dataloader.evaluator, ListConfig) else ()
    ):
        if node._target_ is SemSegEvaluator:  # its own function fails with NumPy 2
            node.sem_seg_loading_fn = lambda file, **_: np.asarray(Image.open(file), int)
    evaluator = instantiate(cfg.dataloader.evaluator)
    if isinstance(evaluator, list):
        evaluator = DatasetEvaluators(evaluator)
    print(inference_on_dataset(model, instantiate(cfg.dataloader.test), evaluator))


if __name__ == "__main__":
    torch.set_num_threads(1)
    train(Path(sys.argv[1]), 2)
