"""Measure how near a training step comes to its convolutions and matrix products alone.

    python benchmarks/step_floor.py [--options KEY=VALUE ...]

The floor is the number of their operations, forward and backward, divided by the peak of this
machine: the rate of a large matrix product or of a large convolution in float32, whichever is
higher. The steps are those of profile_step.py, which says how long they spend in these operators.
The table goes to tables.json.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable

import torch
from common import keep
from operations import counter
from profile_step import inputs, prepared

STEPS = ("step_lite0", "step_r50")
ROUNDS = 9


def peak() -> float:
    """Return the highest rate in operations per second."""
    a, b = torch.rand(2, 2048, 2048)
    image = torch.rand(2, 256, 128, 160).contiguous(memory_format=torch.channels_last)
    layer = torch.nn.Conv2d(256, 256, 3, padding=1).to(memory_format=torch.channels_last)
    rates = []
    with torch.no_grad():
        for function in (lambda: a @ b, lambda: layer(image)):
            with counter() as counted:
                function()
            rates.append(counted.get_total_flops() / min(_seconds(function) for _ in range(9)))
    print(f"GFLOP/s: matrix product {rates[0] / 1e9:.0f}, convolution {rates[1] / 1e9:.0f}")
    return max(rates)


def _seconds(function: Callable[[], object]) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def main() -> None:
    """Store a row for each recipe."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--options", nargs="*", default=[])
    options = parser.parse_args().options
    operations, times = {}, {}
    peaks = [peak()]
    for name in STEPS:
        with tempfile.TemporaryDirectory() as folder:
            step = prepared(name, True, *inputs(name, folder, options))
            step()
            with counter() as counted:
                step()
            operations[name] = counted.get_total_flops()
            times[name] = statistics.median(_seconds(step) for _ in range(ROUNDS))
        peaks.append(peak())
    rows = []
    for name, count in operations.items():
        floor, whole = count / max(peaks), times[name]
        rows.append(
            {
                "step": f"`{name}`",
                "GFLOP": round(count / 1e9, 1),
                "peak, GFLOP/s": round(max(peaks) / 1e9),
                "floor, s": round(floor, 3),
                "step, s": round(whole, 3),
                "floor / step": round(floor / whole, 2),
            }
        )
        print(rows[-1])
    keep("step floor", rows)


if __name__ == "__main__":
    main()
