"""Measure `tools/train_net.py --help` against the imports of Detectron2's own tool.

    python benchmarks/startup.py

Detectron2's packages do not contain tools/lazyconfig_train_net.py, so this script repeats
its slow parts: the imports, then the help of its parser.
"""

import subprocess
import sys
import time
from pathlib import Path

from common import record

ROOT = Path(__file__).resolve().parent.parent
OURS = [sys.executable, "tools/train_net.py", "--help"]
THEIRS = [
    sys.executable,
    "-c",
    "from detectron2.checkpoint import DetectionCheckpointer\n"
    "from detectron2.config import LazyConfig, instantiate\n"
    "from detectron2.engine import default_argument_parser, hooks, launch\n"
    "from detectron2.engine.defaults import create_ddp_model\n"
    "from detectron2.evaluation import inference_on_dataset, print_csv_format\n"
    "from detectron2.utils import comm\n"
    "default_argument_parser().parse_args(['--help'])",
]


def _seconds(command: list[str]) -> float:
    start = time.perf_counter()
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    return time.perf_counter() - start


def main() -> None:
    """Record five pairs, after one pair that warms the disk cache."""
    pairs = [(_seconds(OURS), _seconds(THEIRS)) for _ in range(6)][1:]
    record("help", pairs, "s", on_photos=False)
    for tool in sorted((ROOT / "tools").glob("*.py")):
        seconds = min(_seconds([sys.executable, str(tool), "--help"]) for _ in range(3))
        print(f"tools/{tool.name} --help: {seconds:.2f} s")


if __name__ == "__main__":
    main()
