"""How long a COCO evaluation takes, from files to the printed table, against others.

python benchmarks/evaluation.py [IMAGES OBJECTS DETECTIONS]

The numbers of all are compared, too. Detectron2's compiled COCOeval is part of an installation
from source alone; without it its line is left out.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from coco_file import make_coco
from common import machine
from results_file import make_results

ROOT = Path(__file__).resolve().parent.parent
SIZE = (5_000, 36_000, 500_000)
ROUNDS = 3

_COMMON = """
import json, sys
from pycocotools.coco import COCO
truth, results, task, out = sys.argv[1:]
truth = COCO(truth)
results = json.load(open(results))
if task == "segm":  # sizes are those of masks, as in Detectron2
    for result in results:
        result.pop("bbox", None)
evaluation = COCOeval(truth, truth.loadRes(results), task)
evaluation.evaluate()
evaluation.accumulate()
evaluation.summarize()
json.dump([100 * float(v) for v in evaluation.stats[:6]], open(out, "w"))
"""
_PYCOCOTOOLS = "from pycocotools.cocoeval import COCOeval\n" + _COMMON
_DETECTRON2 = "from detectron2.evaluation.fast_eval_api import COCOeval_opt as COCOeval\n" + _COMMON


def _run(command: list) -> tuple[float, float, float] | None:
    """Wall seconds, CPU seconds and GB; None where it fails."""
    start = time.perf_counter()
    process = subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        return None
    cpu = usage.ru_utime + usage.ru_stime
    return time.perf_counter() - start, cpu, usage.ru_maxrss / 1e6


def main() -> None:
    """Prints the times for boxes and masks."""
    size = tuple(map(int, sys.argv[1:4])) or SIZE
    print(machine())
    print("{} images, {} objects, {} detections".format(*size), flush=True)
    with tempfile.TemporaryDirectory() as folder:
        truth, masks, boxes = (Path(folder) / f"{name}.json" for name in ("gt", "segm", "bbox"))
        make_coco(truth, *size[:2])
        make_results(truth, masks, size[2])
        content = json.loads(masks.read_bytes())
        for result in content:
            del result["segmentation"]
        boxes.write_text(json.dumps(content))
        del content
        for task, results in (("bbox", boxes), ("segm", masks)):
            out = Path(folder) / "out.json"
            ours = ["tools/evaluate.py", results, "--dataset", truth, "--out", out]
            commands = {
                "tools/evaluate.py": [sys.executable, *ours],
                "Detectron2's compiled": [sys.executable, "-c", _DETECTRON2],
                "pycocotools": [sys.executable, "-c", _PYCOCOTOOLS],
            }
            expected = None
            for name, command in commands.items():
                own = name == "tools/evaluate.py"
                arguments = [] if own else [truth, results, task, out]
                taken = [_run(command + arguments) for _ in range(ROUNDS if own else 1)]
                if None in taken:
                    print(f"{task}: {name}: not here")
                    continue
                numbers = json.loads(out.read_bytes())
                if own:
                    what = "" if task == "bbox" else " (boxes, too)"
                    names = ("AP", "AP50", "AP75", "APs", "APm", "APl")
                    numbers = [numbers[f"coco/{task}/{n}"] for n in names]
                    expected, what = numbers, f"best of {ROUNDS}{what}"
                else:
                    error = max(abs(a - b) for a, b in zip(numbers, expected, strict=True))
                    what = f"largest difference of an AP {error:.1e}"
                wall, cpu, memory = map(min, zip(*taken, strict=True))
                print(
                    f"{task}: {name}: {wall:.2f} s, CPU {cpu:.2f} s, {memory:.2f} GB, {what}",
                    flush=True,
                )
        start = time.perf_counter()
        subprocess.run([sys.executable, "tools/evaluate.py", "--help"], cwd=ROOT, stdout=-3)
        print(f"tools/evaluate.py --help: {time.perf_counter() - start:.2f} s")


if __name__ == "__main__":
    main()
