"""Measure a prediction by two CPU processes of one thread against one process of two threads.

    python benchmarks/predict_processes.py [--pairs 5] [--options data.root=...]

lite0, trained for a few iterations, predicts all original balloon photos with overlays. The
commands alternate. The images per second are those from the tenth overlay to predictions.json, so
that the start of the processes does not count.
"""

import argparse
import functools
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from common import ORIGINALS, ROOT, paired, record
from inference import LITE0, train

FIRST = 10  # overlays before the measurement


def _images_per_second(run: Path, processes: int) -> float:
    out = run / f"by_{processes}"
    command = [sys.executable, "tools/predict.py", str(run), str(ORIGINALS / "balloon")]
    command += ["--output", str(out), "--num-gpus", str(processes), "--weights", "last"]
    command += ["--options", "train.device=cpu"]
    threads = os.environ | {"OMP_NUM_THREADS": str(2 // processes)}
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, env=threads)
    # The folders also contain annotation files, which are skipped with status 0.
    assert done.returncode == 0, done.stdout.decode()
    times = sorted(file.stat().st_mtime for file in out.rglob("overlays/**/*.jpg"))
    seconds = (out / "predictions.json").stat().st_mtime - times[FIRST - 1]
    return (len(times) - FIRST) / seconds


def main() -> None:
    """Record the images per second of both."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--options", nargs="*", default=[])
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        train(LITE0, folder, [f"data.root={ORIGINALS}", *args.options])
        two, one = (functools.partial(_images_per_second, Path(folder), n) for n in (2, 1))
        record("predict_two_processes", paired(two, one, args.pairs), "images/s")


if __name__ == "__main__":
    main()
