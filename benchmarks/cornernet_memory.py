"""Measure time and memory of CornerNet's forward and backward pass, as in training, on the CPU.

    python benchmarks/cornernet_memory.py [--images 1 3]

The model is that of the recipes, with random weights; images have 511 x 511 pixels and five objects
each. Memory is the peak of the process less what it has before the pass (Linux). Each row, with and
without activation checkpointing, has its own process.
"""

import argparse
import subprocess
import sys
import time
from pathlib import Path

import torch
from common import machine
from detectron2.config import instantiate
from detectron2.structures import Boxes, Instances

from d2ext import get_config

RECIPE = "cornernet/cornernet_hourglass104_mstest_32x3_210e_coco.py"


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=int, nargs="+", default=[1, 3])
    args = parser.parse_args()
    print(machine(), flush=True)
    print("images  checkpointing  seconds  GiB", flush=True)
    for count in args.images:
        for checkpointing in ("False", "True"):
            command = [sys.executable, "-c", "import cornernet_memory as m; m.measure()"]
            subprocess.run(
                [*command, str(count), checkpointing], check=True, cwd=Path(__file__).parent
            )


def measure() -> None:
    """Print a row for the number of images and the choice that the arguments state."""
    count, checkpointing = int(sys.argv[1]), sys.argv[2]
    torch.manual_seed(0)
    options = [f"model.activation_checkpointing={checkpointing}", "model.num_classes=80"]
    model = instantiate(get_config(RECIPE, options).model).train()
    batch = [_sample() for _ in range(count)]
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak
    before, started = _status("VmRSS"), time.perf_counter()
    sum(model(batch).values()).backward()
    seconds = time.perf_counter() - started
    print(
        f"{count:6}  {checkpointing:13}  {seconds:7.1f}  {_status('VmHWM') - before:.2f}",
        flush=True,
    )


def _sample() -> dict:
    corners = torch.rand(5, 2) * 400
    objects = Instances((511, 511), gt_boxes=Boxes(torch.cat([corners, corners + 100], dim=1)))
    objects.gt_classes = torch.randint(80, (5,))
    return {"image": torch.randint(256, (3, 511, 511), dtype=torch.uint8), "instances": objects}


def _status(name: str) -> float:
    """Return a number of the process's status in GiB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    (line,) = [line for line in lines if line.startswith(f"{name}:")]
    return int(line.split()[1]) / 2**20


if __name__ == "__main__":
    main()
