"""Measure the evaluation command with overlays of crowded photos against Detectron2's tools.

    python benchmarks/eval_command.py [--pairs 5] [--options data.root=...]

Both sides run as commands, in turn, on the original balloon validation photos: `tools/train_net.py
--eval-only`, and `stock_eval.py`. R50-FPN has random weights, so that it returns 100 detections
per photo. Both draw the same photos, with the detections that our overlays show.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from common import ORIGINALS, ROOT, paired, record
from inference import R50
from weights import save_calibrated

from d2ext.config.load import load_config

NAME = "balloon_val"


class Command:
    """A command whose output goes to a folder, which is removed before each run."""

    def __init__(self, folder: Path, words: list[str]):
        self.folder, self._words = folder, words

    def __call__(self) -> float:
        """Run the command; return its seconds."""
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir()
        environment = os.environ | {"PYTHONPATH": str(ROOT)}
        start = time.perf_counter()
        command = [sys.executable, "-W", "ignore", *self._words]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=environment)
        assert done.returncode == 0, done.stderr
        return time.perf_counter() - start


def main() -> None:
    """Record the seconds of both commands."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--options", nargs="*", default=[])
    args = parser.parse_args()
    options = [f"data.root={ORIGINALS}", *args.options]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        weights, out = folder / "model.pth", folder / "ours"
        save_calibrated(load_config(str(ROOT / R50), options), weights)
        words = ["tools/train_net.py", "--eval-only", "--config-file", R50, "--work-dir", str(out)]
        ours = Command(out, [*words, "--weights", str(weights), "--options", *options])
        print(f"the first run took {ours():.1f} s", flush=True)
        analysis = json.loads(next(out.rglob(f"analysis/{NAME}.json")).read_text())
        # Without any hit there is no best score, and overlays show those from 0.5.
        score = analysis["tasks"]["segm"]["images"]["min_score"] or 0.5
        drawn = len(list(out.rglob(f"overlays/{NAME}/*.jpg")))
        found = json.loads(next(out.rglob(f"predictions/{NAME}.json")).read_text())
        shown = sum(x["score"] >= score for x in found)
        print(f"{drawn} photos, {shown} of {len(found)} detections drawn", flush=True)
        words = ["benchmarks/stock_eval.py", str(folder / "theirs"), str(weights), str(score)]
        theirs = Command(folder / "theirs", [*words, R50, *options])
        pairs = paired(ours, theirs, args.pairs)
        assert len(list(theirs.folder.glob("drawn/*.jpg"))) == drawn
        record("eval_command", pairs, "s")


if __name__ == "__main__":
    main()
