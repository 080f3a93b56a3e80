"""Measure training against Detectron2's script: speed, time to the first step, peak memory.

    python benchmarks/training.py [--only step_r50 ...] [--options KEY=VALUE ...]

Both sides run as commands, in turn, on the original photos: `tools/train_net.py`, and `stock.py`
with Detectron2's mapper, loader and trainer. The model, its initial weights and the size of the
images are the same. The time of a step is the median after the first steps, loading included; the
first step begins when the model is called.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from common import ORIGINALS, ROOT, paired, record
from first_call import FILE
from weights import save_calibrated

from d2ext.config.load import load_config

LITE0 = "configs/balloon/mask_rcnn_lite0_fpn_balloon.py"
FIRST_STEP = "benchmarks/first_step.py"
R50 = "configs/balloon/mask_rcnn_r50_caffe_fpn_ms_poly_1x_balloon.py"
COMMON = ["train.log_period=1", "dataloader.train.num_workers=1", "train.warmup_iters=0"]
# A learning rate that does not change the weights, and one image size for every step.
R50_512 = [
    *COMMON,
    "optimizer.lr=1e-6",
    "dataloader.train.mapper.augmentations[0].short_edge_length=512",
    "train.reference_batch_size=2",
]
SHORT = [*COMMON, "train.max_iter=2"]
DEMO = ["train.max_iter=30", "train.log_period=1"]  # enough to reach peak memory


@dataclass(frozen=True)
class Figure:
    """A measurement: a field of `Run`, both sides with `overrides`, ours with `more`."""

    field: str
    unit: str
    config: str
    overrides: Sequence[str]
    more: Sequence[str] = ()
    rounds: int = 5


COMPILED = ["train.compile.enabled=True"]
BFLOAT16 = ["train.amp.enabled=True", "train.amp.dtype=bfloat16"]
FIGURES = {
    "step_r50": Figure("speed", "steps/s", R50, [*R50_512, "train.max_iter=8"]),
    "step_lite0": Figure("speed", "steps/s", LITE0, [*COMMON, "train.max_iter=20"]),
    "step_lite0_bf16": Figure("speed", "steps/s", LITE0, [*COMMON, "train.max_iter=20"], BFLOAT16),
    "step_lite0_compile": Figure(
        "speed", "steps/s", LITE0, [*COMMON, "train.max_iter=20"], COMPILED, rounds=1
    ),
    "start": Figure("start", "s", FIRST_STEP, SHORT),
    "peak_rss": Figure("peak", "MB", LITE0, DEMO),
}


class Run:
    """A run started as a command.

    Attributes:
        speed: Steps per second, from the median after the first ones; None for fewer than three.
        start: Seconds from the command to the first step; None if the model does not record it.
        peak: Peak memory in MB of the largest process.
    """

    def __init__(self, command: Sequence[str], folder: Path):
        shutil.rmtree(folder, ignore_errors=True)
        log, noted = folder.with_suffix(".log"), folder.with_suffix(".txt")
        noted.unlink(missing_ok=True)
        environment = {**os.environ, "PYTHONPATH": str(ROOT / "benchmarks"), FILE: str(noted)}
        begun = time.monotonic()
        with open(log, "w") as out:
            process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=out, stderr=out)
        _, status, used = os.wait4(process.pid, 0)
        if status:
            raise SystemExit(f"{' '.join(command)}\n{log.read_text()[-3000:]}")
        lines = map(json.loads, (folder / "metrics.json").read_text().splitlines())
        # Detectron2's timer skips the first two.
        times = [line["time"] for line in lines if "time" in line]
        self.speed = 1 / statistics.median(times) if times else None
        self.start = float(noted.read_text()) - begun if noted.exists() else None
        self.peak = used.ru_maxrss / 1024


def main() -> None:
    """Record the figures."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="+", choices=FIGURES, default=list(FIGURES))
    parser.add_argument("--options", nargs="*", default=[])
    args = parser.parse_args()
    for name in args.only:
        measure(name, FIGURES[name], args.options)


def commands(
    figure: Figure, options: Sequence[str], folder: Path
) -> dict[str, tuple[list[str], Path]]:
    """Return the commands of d2ext and of stock.py, and the folders that they write."""
    ours, theirs = folder / "ours", folder / "theirs"
    tool = [sys.executable, "tools/train_net.py", "--no-validate", "--work-dir", str(ours)]
    tool += ["--config-file", figure.config, "--options", *options, *figure.more]
    stock = [sys.executable, "benchmarks/stock.py", str(theirs), figure.config, *options]
    return {"d2ext": (tool, ours), "stock.py": (stock, theirs)}


def measure(name: str, figure: Figure, options: Sequence[str]) -> None:
    """Record a figure of both sides, run in turn with `options`."""
    options = [*figure.overrides, f"data.root={ORIGINALS}", *options]
    with tempfile.TemporaryDirectory() as root:
        if figure.config == R50:
            weights = Path(root) / "weights.pth"
            save_calibrated(load_config(str(ROOT / R50), options), weights)
            options.append(f"train.init_checkpoint={weights}")
        (tool, ours), (stock, theirs) = commands(figure, options, Path(root)).values()
        pairs = paired(
            lambda: getattr(Run(tool, ours), figure.field),
            lambda: getattr(Run(stock, theirs), figure.field),
            figure.rounds,
        )
    record(name, pairs, figure.unit)


if __name__ == "__main__":
    main()
