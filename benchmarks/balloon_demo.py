"""Measure the demo as a user runs it: minutes from command to report, and AP on the photos.

    python benchmarks/balloon_demo.py --seeds 0 1 2 [--options data.root=...]

Each seed is one run of tools/train_net.py in a new process. The numbers are those of its last
evaluation, not of the best one, on the 13 validation photos. The photos are those of the checkout,
or those in `data.root`; the first line says which.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from common import machine

from d2ext.config.load import load_config
from d2ext.data.prepare.balloon import describe_balloon

ROOT = Path(__file__).resolve().parent.parent
CONFIG = "configs/balloon/mask_rcnn_lite0_fpn_balloon.py"
COLUMNS = ("bbox/AP", "bbox/AP50", "segm/AP", "segm/AP50")


def _run(seed: int, folder: Path, options: Sequence[str]) -> tuple[float, dict[str, float]]:
    """Return minutes, and percentages by column."""
    command = [sys.executable, "tools/train_net.py", "--config-file", CONFIG]
    start = time.perf_counter()
    with open(folder / f"seed{seed}.log", "w") as log:
        subprocess.run(
            [*command, "--work-dir", str(folder / f"seed{seed}"), f"train.seed={seed}", *options],
            cwd=ROOT,
            stdout=log,
            stderr=subprocess.STDOUT,
            check=True,
        )
    minutes = (time.perf_counter() - start) / 60
    results = json.loads((folder / f"seed{seed}" / "results.json").read_text())["last"]["results"]
    return minutes, {c: results[f"balloon_val/coco/{c}"] for c in COLUMNS}


def main() -> None:
    """Run the seeds and print a Markdown table with their mean."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--options", nargs="*", default=[])
    args = parser.parse_args()
    photos = ROOT / load_config(ROOT / CONFIG, args.options).data.root / "balloon"
    print(f"{CONFIG}: {describe_balloon(photos)}\n{machine()}\n")
    with tempfile.TemporaryDirectory() as folder:
        runs = {seed: _run(seed, Path(folder), args.options) for seed in args.seeds}
    print("| seed | minutes | " + " | ".join(COLUMNS) + " |")
    print("|---" * (2 + len(COLUMNS)) + "|")
    for seed, (minutes, values) in runs.items():
        print(f"| {seed} | {minutes:.1f} | " + " | ".join(f"{values[c]:.1f}" for c in COLUMNS), "|")
    means = [statistics.mean(r[1][c] for r in runs.values()) for c in COLUMNS]
    minutes = statistics.mean(r[0] for r in runs.values())
    print(f"| mean | {minutes:.1f} | " + " | ".join(f"{m:.1f}" for m in means), "|")


if __name__ == "__main__":
    main()
