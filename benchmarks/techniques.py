"""Measure what training techniques cost on the lite0 recipe: all switched off, and EMA.

python benchmarks/techniques.py [data.root=...]

Steps on batches in memory, in turn: a bare loop, ours without techniques, ours with EMA.
"""

import itertools
import logging
import statistics
import sys
import time
from pathlib import Path

import numpy as np
import torch
from common import machine
from detectron2.utils.events import EventStorage

from d2ext.config.load import load_config
from d2ext.data.datasets.register import register_datasets
from d2ext.engine.builders import build_model, build_optimizer, build_train_loader
from d2ext.engine.hooks import AverageWeightsHook
from d2ext.engine.techniques import averaged
from d2ext.engine.trainer import Trainer
from d2ext.launch.signals import StopSignals
from d2ext.preflight.plan import plan_run

RECIPE = Path(__file__).parent.parent / "configs/balloon/mask_rcnn_lite0_fpn_balloon.py"
BATCHES, STEPS, ROUNDS = 6, 6, 8


def bare(model, optimizer, batches, seed=0) -> None:
    """Take `STEPS` steps with the minimum that any loop must do."""
    with EventStorage():
        for i in range(STEPS):
            torch.manual_seed(int(np.random.SeedSequence((seed, i, 0)).generate_state(1)[0]))
            sum(model(next(batches)).values()).backward()
            optimizer.step()
            optimizer.zero_grad()


def main() -> None:
    """Print medians and their ratios."""
    cfg = load_config(
        RECIPE, ["dataloader.train.num_workers=0", "optimizer.lr=1e-6", *sys.argv[1:]]
    )
    plan = plan_run(cfg, "techniques", validate=False, overwrite=True)
    register_datasets(cfg.datasets)
    model = build_model(cfg, plan)
    model.train()
    optimizer = build_optimizer(cfg, model)
    kept = list(itertools.islice(build_train_loader(cfg, 0), BATCHES))
    average = averaged(model, 0.999)

    def ours(*hooks) -> None:
        trainer = Trainer(model, optimizer, itertools.cycle(kept), hooks, seed=0)
        with StopSignals() as signals:
            trainer.train(0, STEPS, signals)

    runs = {
        "a bare loop": lambda: bare(model, optimizer, itertools.cycle(kept)),
        "ours, no techniques": ours,
        "ours, EMA": lambda: ours(AverageWeightsHook(average, model)),
    }
    bare(model, optimizer, itertools.cycle(kept))  # warm
    seconds = {name: [] for name in runs}
    for number in range(ROUNDS):
        for name in list(runs)[:: 1 if number % 2 else -1]:
            start = time.perf_counter()
            runs[name]()
            seconds[name].append((time.perf_counter() - start) / STEPS)
    updates = []
    for _ in range(50):
        start = time.perf_counter()
        average.update_parameters(model)
        updates.append(time.perf_counter() - start)
    print(machine())
    base = statistics.median(seconds["a bare loop"])
    for name, values in seconds.items():
        ratios = [v / b for v, b in zip(values, seconds["a bare loop"], strict=True)]
        print(
            f"{name}: {1000 * statistics.median(values):.0f} ms a step,"
            f" {statistics.median(ratios):.3f} times the bare loop"
        )
    update = statistics.median(updates)
    print(f"one update of the average: {1000 * update:.2f} ms, {update / base:.2%} of a step")


if __name__ == "__main__":
    logging.basicConfig(level=logging.ERROR)
    main()
