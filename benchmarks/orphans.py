"""Counts processes left behind by launches that are killed at random moments.

    python benchmarks/orphans.py --launches 50

Each launch trains in two processes in a session of its own; its launcher gets SIGKILL, the hardest
end there is, between its start and its first steps. Ten seconds later its session must be empty.
"""

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from common import machine

ROOT = Path(__file__).resolve().parent.parent
CONFIG = "configs/balloon/mask_rcnn_lite0_fpn_balloon.py"


def _living(session: int) -> list[int]:
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[3]) == session and fields[0] not in "ZX":
            found.append(int(stat.parent.name))
    return found


def _left_behind(seconds: float, folder: str) -> int:
    """Starts a training, kills its launcher after so long, and counts what lives 10 s later."""
    command = [sys.executable, "tools/train_net.py", "--config-file", CONFIG, "--num-gpus", "2"]
    process = subprocess.Popen(
        [*command, "--work-dir", folder, "--overwrite", "--no-validate"],
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    time.sleep(seconds)
    process.kill()
    process.wait()
    deadline = time.monotonic() + 10
    while (left := _living(process.pid)) and time.monotonic() < deadline:
        time.sleep(0.1)
    for pid in left:
        os.kill(pid, signal.SIGKILL)
    return len(left)


def main() -> None:
    """Prints how many processes the launches left behind."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--launches", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    rng = random.Random(args.seed)
    with tempfile.TemporaryDirectory() as folder:
        left = [_left_behind(rng.uniform(0.1, 15), f"{folder}/run") for _ in range(args.launches)]
    print(machine())
    print(f"{args.launches} launches killed after 0.1 to 15 s: {sum(left)} processes left behind")


if __name__ == "__main__":
    main()
