"""Measure how near a training step comes to its convolutions and matrix products alone.

    python benchmarks/step_floor.py [--options KEY=VALUE ...]

The floor is the number of their operations, forward and backward, divided by the peak of this
machine: the rate of a large matrix product or of a large convolution in float32, whichever is
higher. The steps are those of training.py, with the same batch each time and without loading. A
profile says how long they spend in these operators. The table goes to tables.json.
"""

import argparse
import contextlib
import io
import re
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from common import ORIGINALS, ROOT, keep
from detectron2.config import instantiate
from detectron2.utils.events import EventStorage
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode, conv_flop_count
from training import COMMON, LITE0, R50, R50_512
from weights import save_calibrated

from d2ext.config.load import load_config
from d2ext.data.datasets.register import register_datasets
from d2ext.engine.train_state import TrainState
from d2ext.preflight.plan import plan_run

STEPS = 9
RECIPES = {
    "step_lite0": (LITE0, COMMON),
    "step_r50": (R50, [*R50_512, "train.max_iter=8"]),
}
PRODUCTS = re.compile(r"aten::\w*(conv|mm|linear)")


def _backward_operations(
    gradient: Sequence[int], image: Sequence[int], weight: Sequence[int], *others: Any, **_: Any
) -> int:
    """Return the operations of a convolution's backward pass, from shapes.

    torch's own formula ignores groups, and counts those of a depthwise convolution far too high.
    """
    (*_, transposed, _, _, (of_image, of_weight, _)) = others
    forward = conv_flop_count(image, weight, gradient, transposed)
    return (of_image + of_weight) * forward


def _counter() -> FlopCounterMode:
    backward = {torch.ops.aten.convolution_backward: _backward_operations}
    return FlopCounterMode(display=False, custom_mapping=backward)


def peak() -> float:
    """Return the highest rate in operations per second."""
    a, b = torch.rand(2, 2048, 2048)
    image = torch.rand(2, 256, 128, 160).contiguous(memory_format=torch.channels_last)
    layer = torch.nn.Conv2d(256, 256, 3, padding=1).to(memory_format=torch.channels_last)
    rates = []
    with torch.no_grad():
        for function in (lambda: a @ b, lambda: layer(image)):
            with _counter() as counter:
                function()
            rates.append(counter.get_total_flops() / min(_seconds(function) for _ in range(9)))
    print(f"GFLOP/s: matrix product {rates[0] / 1e9:.0f}, convolution {rates[1] / 1e9:.0f}")
    return max(rates)


def _seconds(function: Callable[[], object]) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def training_step(config: str, options: Sequence[str], folder: Path) -> Callable[[], object]:
    """Return a function that takes a step of a recipe, always with the first batch."""
    if config == R50:
        weights = folder / "weights.pth"
        save_calibrated(load_config(str(ROOT / R50), options), weights)
        options = [*options, f"train.init_checkpoint={weights}"]
    cfg = load_config(str(ROOT / config), [*options, f"train.output_dir={folder / 'run'}"])
    register_datasets(cfg.datasets)
    with contextlib.redirect_stdout(io.StringIO()):
        state = TrainState.create(cfg, plan_run(cfg, "step_floor"))
    loader = iter(instantiate(cfg.dataloader.train))
    batch = next(loader)
    loader.close()
    state.model.train()

    def step() -> None:
        sum(state.model(batch).values()).backward()
        state.optimizer.step()
        state.optimizer.zero_grad()

    return step


def main() -> None:
    """Store a row for each recipe."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--options", nargs="*", default=[])
    options = [f"data.root={ORIGINALS}", *parser.parse_args().options]
    rows = []
    for name, (config, overrides) in RECIPES.items():
        with tempfile.TemporaryDirectory() as folder, EventStorage():
            step = training_step(config, [*overrides, *options], Path(folder))
            step()
            with _counter() as counter:
                step()
            best = peak()
            with profile(activities=[ProfilerActivity.CPU]) as profiled:
                step()
            times = [_seconds(step) for _ in range(STEPS)]
        within = sum(
            event.self_cpu_time_total / 1e6
            for event in profiled.key_averages()
            if PRODUCTS.match(event.key)
        )
        whole, floor = statistics.median(times), counter.get_total_flops() / best
        rows.append(
            {
                "step": f"`{name}`",
                "GFLOP": round(counter.get_total_flops() / 1e9, 1),
                "peak, GFLOP/s": round(best / 1e9),
                "floor, s": round(floor, 3),
                "in them, s": round(within, 3),
                "step, s": round(whole, 3),
                "floor / step": round(floor / whole, 2),
            }
        )
        print(rows[-1], flush=True)
    keep("step floor", rows)


if __name__ == "__main__":
    main()
