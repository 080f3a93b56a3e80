"""The demo as a user runs it: minutes from command to report, and AP on the balloon photos.

    python benchmarks/balloon_demo.py --seeds 0 1 2

Each seed is one run of tools/train_net.py in a fresh process; the numbers are those of its last
evaluation (no choosing of the best one), on the 13 validation photos.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from common import machine

ROOT = Path(__file__).resolve().parent.parent
CONFIG = "configs/balloon/mask_rcnn_lite0_fpn_balloon.py"
COLUMNS = ("bbox/AP", "bbox/AP50", "segm/AP", "segm/AP50")


def _run(seed: int, folder: Path) -> tuple[float, dict[str, float], bool]:
    """Minutes, percents by column, and whether the data is synthetic."""
    command = [sys.executable, "tools/train_net.py", "--config-file", CONFIG]
    start = time.perf_counter()
    with open(folder / f"seed{seed}.log", "w") as log:
        subprocess.run(
            [*command, "--work-dir", str(folder / f"seed{seed}"), f"train.seed={seed}"],
            cwd=ROOT,
            stdout=log,
            stderr=subprocess.STDOUT,
            check=True,
        )
    minutes = (time.perf_counter() - start) / 60
    results = json.loads((folder / f"seed{seed}" / "results.json").read_text())["last"]["results"]
    about = json.loads((folder / f"seed{seed}" / "run.json").read_text())
    synthetic = about["datasets"]["balloon_val"]["synthetic"]
    return minutes, {c: results[f"balloon_val/coco/{c}"] for c in COLUMNS}, synthetic


def main() -> None:
    """Runs the seeds and prints a Markdown table with their mean."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        runs = {seed: _run(seed, Path(folder)) for seed in args.seeds}
    data = "synthetic data" if any(r[2] for r in runs.values()) else "photos"
    print(f"{CONFIG}, {data}\n{machine()}\n")
    print("| seed | minutes | " + " | ".join(COLUMNS) + " |")
    print("|---" * (2 + len(COLUMNS)) + "|")
    for seed, (minutes, values, _) in runs.items():
        print(f"| {seed} | {minutes:.1f} | " + " | ".join(f"{values[c]:.1f}" for c in COLUMNS), "|")
    means = [statistics.mean(r[1][c] for r in runs.values()) for c in COLUMNS]
    minutes = statistics.mean(r[0] for r in runs.values())
    print(f"| mean | {minutes:.1f} | " + " | ".join(f"{m:.1f}" for m in means), "|")


if __name__ == "__main__":
    main()
