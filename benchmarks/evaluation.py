"""Measure a COCO evaluation, from files to the printed table, against other implementations.

python benchmarks/evaluation.py [IMAGES OBJECTS DETECTIONS]

Results are compared as well, and the limits for the default size are checked: the exit status is 3
if one is exceeded. The floor is the time of what no Python code of d2ext can shorten: parsing both
files and hotcoco's evaluation. Memory is that of the largest process. Only installations from
source have Detectron2's compiled COCOeval; its line says if it is missing.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from coco_file import make_coco
from common import OVER_LIMIT, keep, machine, record
from results_file import make_results

ROOT = Path(__file__).resolve().parent.parent
SIZE = (5_000, 36_000, 500_000)
ASKED = tuple(map(int, sys.argv[1:4])) or SIZE
ROUNDS = 5

_COMMON = """
import json, sys
from pycocotools.coco import COCO
ground_truth, results, task, out = sys.argv[1:]
ground_truth = COCO(ground_truth)
results = json.load(open(results))
if task == "segm":  # sizes are those of masks, as in Detectron2
    for result in results:
        result.pop("bbox", None)
evaluation = COCOeval(ground_truth, ground_truth.loadRes(results), task)
evaluation.evaluate()
evaluation.accumulate()
evaluation.summarize()
json.dump([100 * float(v) for v in evaluation.stats[:6]], open(out, "w"))
"""
_PYCOCOTOOLS = "from pycocotools.cocoeval import COCOeval\n" + _COMMON
# Parsing both files, and the IoUs, the matching and the table by hotcoco.
_FLOOR = """
import gc, json, sys, time
import hotcoco, msgspec
gc.disable()
ground_truth, results, task, out = sys.argv[1:]
start = time.perf_counter()
for path in (ground_truth, results):
    msgspec.json.decode(open(path, "rb").read())
parsed = time.perf_counter() - start
ground_truth = hotcoco.COCO(ground_truth)
evaluation = hotcoco.COCOeval(ground_truth, ground_truth.load_res(results), task)
start = time.perf_counter()
evaluation.evaluate()
evaluation.accumulate()
json.dump([parsed, time.perf_counter() - start], open(out, "w"))
"""
_DETECTRON2 = "from detectron2.evaluation.fast_eval_api import COCOeval_opt as COCOeval\n" + _COMMON
_OTHERS = {"Detectron2's compiled": _DETECTRON2, "pycocotools": _PYCOCOTOOLS}

# Limits: times as a fraction of the alternative's, memory in GB, start in seconds.
RATIOS = {
    ("bbox", "pycocotools"): 30,
    ("bbox", "Detectron2's compiled"): 10,
    ("segm", "pycocotools"): 20,
}
MEMORY, START = 1.5, 0.4


class _Failed(Exception):
    """Raised if a command fails, with its last line of output."""


def _run(command: list) -> tuple[float, float, float]:
    """Return wall seconds, CPU seconds and GB."""
    with tempfile.TemporaryFile("w+") as said:
        start = time.perf_counter()
        process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=said)
        _, status, usage = os.wait4(process.pid, 0)
        wall = time.perf_counter() - start
        if status:
            said.seek(0)
            raise _Failed((said.read().strip().splitlines() or ["it said nothing"])[-1])
    return wall, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1e6


def _held(what: str, value: float, limit: float, at_least: bool = False) -> str:
    """Return the end of a line: the limit and whether it is met."""
    sign = "at least" if at_least else "below"
    if ASKED != SIZE:
        return f"({sign} {limit:g} at the usual size)"
    holds = value >= limit if at_least else value < limit
    if not holds:
        _broken.append(what)
    return f"({sign} {limit:g}: {'holds' if holds else 'BROKEN'})"


_broken: list[str] = []


def _task(task: str, ground_truth: Path, results: Path, out: Path) -> dict:
    """Run all implementations for one task in turn, ours first; return the row of the floors."""
    ours = ["tools/evaluate.py", results, "--dataset", ground_truth, "--tasks", task, "--out", out]
    taken: list[tuple[float, float, float]] = []
    theirs: dict[str, list[tuple[float, float, float]]] = {name: [] for name in _OTHERS}
    errors = dict.fromkeys(_OTHERS, 0.0)
    names = ("AP", "AP50", "AP75", "APs", "APm", "APl")
    for _ in range(ROUNDS):
        taken.append(_run([sys.executable, *ours]))
        numbers = json.loads(out.read_bytes())
        expected = [numbers[f"coco/{task}/{n}"] for n in names]
        for name in list(theirs):
            try:
                command = [sys.executable, "-c", _OTHERS[name], ground_truth, results, task, out]
                theirs[name].append(_run(command))
            except _Failed as e:
                print(f"{task}: {name}: not here ({e})", flush=True)
                del theirs[name]
                continue
            pairs = zip(json.loads(out.read_bytes()), expected, strict=True)
            errors[name] = max(errors[name], *(abs(a - b) for a, b in pairs))
    wall, cpu, _ = map(statistics.median, zip(*taken, strict=True))
    peak = max(memory for _, _, memory in taken)
    print(f"{task}: tools/evaluate.py: {wall:.2f} s, CPU {cpu:.2f} s, medians of {ROUNDS}")
    print(f"{task}: peak {peak:.2f} GB {_held(f'{task} memory', peak, MEMORY)}", flush=True)
    _run([sys.executable, "-c", _FLOOR, ground_truth, results, task, out])
    parsed, matched = json.loads(out.read_bytes())
    print(
        f"{task}: floor: {parsed + matched:.2f} s, {parsed:.2f} s for msgspec to parse both files"
        f" and {matched:.2f} s for hotcoco to evaluate",
        flush=True,
    )
    floor = {
        **{"evaluation": f"`eval_{task}`", "parsing, s": round(parsed, 2)},
        **{"hotcoco, s": round(matched, 2), "floor, s": round(parsed + matched, 2)},
        "d2ext, s": round(wall, 2),
    }
    for name, runs in theirs.items():
        wall, cpu, _ = map(statistics.median, zip(*runs, strict=True))
        memory = max(memory for _, _, memory in runs)
        pairs = [(a[0], b[0]) for a, b in zip(taken, runs, strict=True)]
        ratio = statistics.median(b / a for a, b in pairs)
        if name == "pycocotools" and ASKED == SIZE:
            record(f"eval_{task}", pairs, "s", on_photos=False)
        limit = RATIOS.get((task, name))
        held = "" if limit is None else _held(f"{task} against {name}", ratio, limit, True)
        print(
            f"{task}: {name}: {wall:.2f} s, CPU {cpu:.2f} s, {memory:.2f} GB: ours is"
            f" {ratio:.1f} times as fast {held}; largest difference of an AP {errors[name]:.1e}",
            flush=True,
        )
    return floor


def main() -> int:
    """Print the times for boxes and masks; return 3 if a limit is exceeded."""
    print(machine())
    print("{} images, {} objects, {} detections".format(*ASKED), flush=True)
    with tempfile.TemporaryDirectory() as folder:
        ground_truth, masks, boxes = (
            Path(folder) / f"{name}.json" for name in ("gt", "segm", "bbox")
        )
        make_coco(ground_truth, *ASKED[:2])
        make_results(ground_truth, masks, ASKED[2])
        content = json.loads(masks.read_bytes())
        for result in content:
            del result["segmentation"]
        boxes.write_text(json.dumps(content))
        del content
        floors = [
            _task(task, ground_truth, results, Path(folder) / "out.json")
            for task, results in (("bbox", boxes), ("segm", masks))
        ]
        if ASKED == SIZE:
            keep("evaluation floor", floors)
    start = min(_run([sys.executable, "tools/evaluate.py", "--help"])[0] for _ in range(ROUNDS))
    print(f"tools/evaluate.py --help: {start:.2f} s {_held('--help', start, START)}")
    if _broken:
        print(f"limits broken: {', '.join(_broken)}")
    return OVER_LIMIT if _broken else 0


if __name__ == "__main__":
    sys.exit(main())
