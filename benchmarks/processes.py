"""Measure two CPU processes of one thread against one process of two threads.

    python benchmarks/processes.py --pairs 5

Both have the same global batch size. The runs alternate, each in a new process on the original
balloon photos; the speed is that of the median step after the first ten.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from common import ORIGINALS, record

ROOT = Path(__file__).resolve().parent.parent
CONFIG = "configs/balloon/mask_rcnn_lite0_fpn_balloon.py"
STEPS = 40


def _images_per_second(processes: int, folder: Path) -> float:
    command = [sys.executable, "tools/train_net.py", "--config-file", CONFIG, "--no-validate"]
    command += ["--num-gpus", str(processes), "--work-dir", str(folder), "--overwrite"]
    command += ["--options", "train.log_period=1", f"train.max_iter={STEPS}", "train.device=cpu"]
    command.append(f"data.root={ORIGINALS}")
    threads = os.environ | {"OMP_NUM_THREADS": str(2 // processes)}
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True, env=threads)
    lines = [json.loads(line) for line in (folder / "metrics.json").read_text().splitlines()]
    times = [line["time"] for line in lines if line.get("iteration", 0) >= 10 and "time" in line]
    return 4 / statistics.median(times)


def main() -> None:
    """Record the images per second of both."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pairs", type=int, default=5)
    args = parser.parse_args()
    pairs = []
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(args.pairs):
            pairs.append(tuple(_images_per_second(n, Path(folder, str(n))) for n in (2, 1)))
    record("two_processes", pairs, "images/s")


if __name__ == "__main__":
    main()
