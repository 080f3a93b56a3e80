"""Train like Detectron2's tools/lazyconfig_train_net.py, as the alternative in benchmarks.

    python benchmarks/stock.py FOLDER CONFIG [overrides]

Set-up, loader, mapper, trainer, hooks and writers are in the order of main and do_train in that
file (Detectron2's packages do not contain it), with the model, optimizer, schedule and dataset of
one of our recipes. metrics.json is written to FOLDER.
"""

import logging
import sys
from argparse import Namespace

import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import instantiate
from detectron2.data import (
    DatasetMapper,
    build_detection_train_loader,
    get_detection_dataset_dicts,
)
from detectron2.engine import SimpleTrainer, default_setup, default_writers, hooks
from detectron2.engine.defaults import create_ddp_model

from d2ext.checkpoint.weights.initial import load_weights, local_weights
from d2ext.config.load import load_config
from d2ext.data.datasets.register import register_datasets


def main() -> None:
    """Train for `train.max_iter` iterations."""
    folder, config, *overrides = sys.argv[1:]
    cfg = load_config(config, overrides)
    cfg.train.output_dir = folder
    default_setup(cfg, Namespace(config_file=config, opts=overrides, eval_only=False))
    register_datasets(cfg.datasets)
    model = instantiate(cfg.model)
    logging.getLogger("detectron2").info("Model:\n%s", model)
    model.to("cuda" if torch.cuda.is_available() else "cpu")
    cfg.optimizer.params.model = model
    optimizer = instantiate(cfg.optimizer)
    data = cfg.dataloader.train
    mapper = data.mapper
    mapper["_target_"] = DatasetMapper
    loader = build_detection_train_loader(
        get_detection_dataset_dicts(data.dataset.names),
        mapper=instantiate(mapper),
        total_batch_size=data.total_batch_size,
        num_workers=data.num_workers,
    )
    model = create_ddp_model(model)
    trainer = SimpleTrainer(model, loader, optimizer)
    checkpointer = DetectionCheckpointer(model, folder, trainer=trainer)
    writers = default_writers(folder, cfg.train.max_iter)
    trainer.register_hooks(
        [
            hooks.IterationTimer(),
            hooks.LRScheduler(scheduler=instantiate(cfg.lr_multiplier)),
            hooks.PeriodicCheckpointer(checkpointer, period=5000),
            hooks.PeriodicWriter(writers, period=cfg.train.log_period),
        ]
    )
    if source := cfg.train.init_checkpoint:  # its own loader does not know these names
        load_weights(model, local_weights(source, "train.init_checkpoint"))
    trainer.train(0, cfg.train.max_iter)


if __name__ == "__main__":
    main()
