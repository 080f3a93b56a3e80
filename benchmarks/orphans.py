"""Count processes that survive launchers killed at random moments.

    python benchmarks/orphans.py --launches 50
    python benchmarks/orphans.py --launches 50 --start module

Each launch trains in two processes in its own session. Its launcher receives SIGKILL between its
start and its first steps; ten seconds later its session must be empty. Each way to start a run
imports the main module of its ranks differently.
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
# What pip writes to the environment's bin folder.
SCRIPT = """import sys
from d2ext.__main__ import main
if __name__ == "__main__":
    sys.exit(main())
"""
STARTS = {
    "tools": ["tools/train_net.py"],  # python tools/train_net.py
    "command": ["{folder}/d2ext", "train"],  # d2ext train
    "module": ["-m", "d2ext", "train"],  # python -m d2ext train
}


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


def _left_behind(start: list[str], seconds: float, folder: str) -> int:
    """Start a run, kill its launcher after a delay, and count living processes 10 s later."""
    command = [sys.executable, *(word.format(folder=folder) for word in start)]
    command += ["--config-file", CONFIG, "--num-gpus", "2", "--work-dir", f"{folder}/run"]
    process = subprocess.Popen(
        [*command, "--overwrite", "--no-validate"],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
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
    """Print how many processes survived."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--launches", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--start", choices=STARTS, default="tools")
    args = parser.parse_args()
    rng = random.Random(args.seed)
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "d2ext").write_text(SCRIPT)
        seconds = [rng.uniform(0.1, 15) for _ in range(args.launches)]
        left = [_left_behind(STARTS[args.start], each, folder) for each in seconds]
    print(machine())
    launches = f"{args.launches} launches ({args.start}) killed after 0.1 to 15 s"
    print(f"{launches}: {sum(left)} processes survived")


if __name__ == "__main__":
    main()
