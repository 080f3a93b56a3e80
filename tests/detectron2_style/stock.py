"""Train and evaluate as Detectron2's tools/lazyconfig_train_net.py and tools/train_net.py do.

    python -m tests.detectron2_style.stock train CONFIG RECORDED OUTPUT
    python -m tests.detectron2_style.stock evaluate CONFIG WEIGHTS OUTPUT

`train` starts from the weights that `Record` saved in the folder RECORDED, uses the same batches,
and seeds torch before each of them as d2ext does. Everything runs on the CPU.
"""

import json
import sys
from pathlib import Path

import numpy as np
import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import LazyConfig, get_cfg, instantiate
from detectron2.engine import DefaultTrainer, HookBase, SimpleTrainer, hooks
from detectron2.evaluation import (
    DatasetEvaluators,
    SemSegEvaluator,
    inference_on_dataset,
    print_csv_format,
)
from omegaconf import ListConfig
from PIL import Image

from tests.detectron2_style.photos import register_photos


class Record(HookBase):
    """Save initial weights, the batches and the losses of a training.

    Args:
        folder: Existing folder; the files are initial.pth, batches.pth and losses.json.
    """

    def __init__(self, folder):
        self._folder = Path(folder)
        self._batches, self._losses = [], []

    def before_train(self):
        """Save the weights, and record what goes into the model and comes out of it."""
        model = self.trainer.model
        torch.save({"model": model.state_dict()}, self._folder / "initial.pth")
        model.register_forward_pre_hook(lambda _, args: self._batches.append(args[0]))
        model.register_forward_hook(self._record)

    def _record(self, _, args, losses):
        self._losses.append({name: float(loss.detach()) for name, loss in losses.items()})

    def after_train(self):
        """Write the files."""
        torch.save(self._batches, self._folder / "batches.pth")
        (self._folder / "losses.json").write_text(json.dumps(self._losses))


class Clip(HookBase):
    """Clip gradients as detrex's trainer does.

    Args:
        params: Arguments of `clip_grad_norm_`.
    """

    def __init__(self, params):
        self._params = params

    def after_backward(self):
        """Clip the gradients of all parameters."""
        torch.nn.utils.clip_grad_norm_(self.trainer.model.parameters(), **self._params)


def seeded_batches(recorded):
    """Yield the recorded batches, after seeding torch as d2ext's trainer does with seed 0."""
    for i, batch in enumerate(torch.load(recorded / "batches.pth", weights_only=False)):
        torch.manual_seed(int(np.random.SeedSequence((0, i, 0)).generate_state(1)[0]))
        yield batch


def train(config, recorded, output):
    """Train a LazyConfig as `do_train` of lazyconfig_train_net.py does."""
    cfg = _lazy_config(config)
    model = instantiate(cfg.model)
    cfg.optimizer.params.model = model
    optimizer = instantiate(cfg.optimizer)
    trainer = SimpleTrainer(model, seeded_batches(recorded), optimizer)
    checkpointer = DetectionCheckpointer(model, str(output), trainer=trainer)
    schedule = hooks.LRScheduler(scheduler=instantiate(cfg.lr_multiplier))
    period = hooks.PeriodicCheckpointer(checkpointer, **cfg.train.checkpointer)
    trainer.register_hooks([hooks.IterationTimer(), schedule, period, Record(output)])
    if clipping := cfg.train.get("clip_grad"):
        trainer.register_hooks([Clip(clipping.params)])
    checkpointer.resume_or_load(str(recorded / "initial.pth"), resume=False)
    trainer.train(0, cfg.train.max_iter)


def train_yacs(config, recorded, output):
    """Train a yacs config as tools/train_net.py does."""
    register_photos()
    cfg = get_cfg()
    cfg.merge_from_file(str(config))
    cfg.MODEL.DEVICE = "cpu"
    cfg.MODEL.WEIGHTS = str(recorded / "initial.pth")
    cfg.OUTPUT_DIR = str(output)

    class Trainer(DefaultTrainer):
        @classmethod
        def build_train_loader(cls, cfg):
            return seeded_batches(recorded)

        def build_hooks(self):
            return [h for h in super().build_hooks() if not isinstance(h, hooks.EvalHook)]

    trainer = Trainer(cfg)
    trainer.register_hooks([Record(output)])
    trainer.resume_or_load(resume=False)
    trainer.train()


def evaluate(config, weights, output):
    """Evaluate a LazyConfig as `do_test` of lazyconfig_train_net.py does."""
    cfg = _lazy_config(config)
    model = instantiate(cfg.model)
    DetectionCheckpointer(model).load(str(weights))
    evaluator = cfg.dataloader.evaluator
    if isinstance(evaluator, ListConfig):
        for node in evaluator:
            if node._target_ is SemSegEvaluator:  # its own function fails with NumPy 2
                node.sem_seg_loading_fn = lambda file, **_: np.asarray(Image.open(file), int)
        evaluator = DatasetEvaluators(instantiate(evaluator))
    results = inference_on_dataset(model, instantiate(cfg.dataloader.test), instantiate(evaluator))
    print_csv_format(results)
    output.write_text(json.dumps(results, default=float))


def _lazy_config(config):
    cfg = LazyConfig.load(str(config))
    if "device" in cfg.model:
        cfg.model.device = "cpu"
    return cfg


if __name__ == "__main__":
    command, *paths = sys.argv[1:]
    paths = [Path(path) for path in paths]
    if command == "evaluate":
        evaluate(*paths)
    elif paths[0].suffix == ".yaml":
        train_yacs(*paths)
    else:
        train(*paths)
