"""Measure what our loop and Detectron2's SimpleTrainer add to forward, backward and step.

    python benchmarks/loop_overhead.py

The model is a single number, so that the loop dominates; its own forward, backward and step are
measured separately and subtracted. Hooks and writers are those of a run, with a line every 20
iterations. The result is also given as a fraction of the lite0 recipe's step in results.json.
"""

import itertools
import json
import statistics
import tempfile
import time
from pathlib import Path

import torch
from common import RESULTS, paired, record
from detectron2.engine import SimpleTrainer, default_writers, hooks
from detectron2.solver import LRMultiplier
from detectron2.utils.events import TensorboardXWriter
from fvcore.common.param_scheduler import ConstantParamScheduler
from torch import Tensor, nn

from d2ext.config.schedule import Period, Schedule
from d2ext.engine.hooks import LearningRateHook, MemoryHook
from d2ext.engine.metric_writer import MetricWriter
from d2ext.engine.nonfinite import FiniteLossGuard
from d2ext.engine.progress import LivePanel
from d2ext.engine.trainer import Trainer
from d2ext.launch.signals import StopSignals
from d2ext.run_dir.results import Results

STEPS, ROUNDS = 500, 5


class _Losses(nn.Module):
    """Five losses of one number, as many as Mask R-CNN has."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))

    def forward(self, batch: list[dict]) -> dict[str, Tensor]:
        return {f"loss_{i}": self.weight * i for i in range(5)}


def _parts() -> tuple[nn.Module, torch.optim.Optimizer, itertools.cycle]:
    model = _Losses()
    return model, torch.optim.SGD(model.parameters(), 1e-9), itertools.cycle([[{"image": 0}]])


def _bare() -> float:
    model, optimizer, batches = _parts()
    start = time.perf_counter()
    for _, batch in zip(range(STEPS), batches, strict=False):
        sum(model(batch).values()).backward()
        optimizer.step()
        optimizer.zero_grad()
    return (time.perf_counter() - start) / STEPS


def _ours() -> float:
    model, optimizer, batches = _parts()
    schedule = Schedule(60, 4, STEPS, None, False, Period(), Period(), evaluates=False)
    with tempfile.TemporaryDirectory() as folder:
        results = Results(Path(folder, "results.json"), None, "max", iteration=0)
        all_hooks = [
            LearningRateHook(optimizer, ConstantParamScheduler(1.0)),
            hooks.IterationTimer(),
            MemoryHook(schedule),
            LivePanel("", schedule, results),
            MetricWriter(Path(folder), schedule, [TensorboardXWriter(folder)]),
        ]
        trainer = Trainer(FiniteLossGuard(model), optimizer, batches, all_hooks, seed=0)
        start = time.perf_counter()
        trainer.train(0, STEPS, StopSignals())
        return (time.perf_counter() - start) / STEPS


def _theirs() -> float:
    model, optimizer, batches = _parts()
    with tempfile.TemporaryDirectory() as folder:
        trainer = SimpleTrainer(model, batches, optimizer)
        schedule = LRMultiplier(optimizer, ConstantParamScheduler(1.0), STEPS + 1)
        trainer.register_hooks(
            [
                hooks.IterationTimer(),
                hooks.LRScheduler(optimizer, schedule),
                hooks.PeriodicWriter(default_writers(folder, STEPS), period=20),
            ]
        )
        start = time.perf_counter()
        trainer.train(0, STEPS)
        return (time.perf_counter() - start) / STEPS


def main() -> None:
    """Record milliseconds per step, and print our fraction of the lite0 step."""
    torch.set_num_threads(1)
    bare = statistics.median(_bare() for _ in range(ROUNDS))
    pairs = paired(_ours, _theirs, ROUNDS)
    pairs = [(1000 * (a - bare), 1000 * (b - bare)) for a, b in pairs]
    record("loop_overhead", pairs, "ms/step", on_photos=False)
    known = json.loads(RESULTS.read_text())
    if step := known.get("step_lite0"):
        ours = known["loop_overhead"]["ours"]
        print(f"{ours * step['ours'] / 10:.2f} % of the lite0 step")


if __name__ == "__main__":
    main()
