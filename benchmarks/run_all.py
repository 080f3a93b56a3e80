"""Run the benchmarks and write RESULTS.md; `make bench` calls this script.

    python benchmarks/run_all.py [--only mapper training]

Each script writes its figures to results.json, from which the table is made, so that a single
benchmark can be repeated. All of them take about two hours on an otherwise idle machine.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

from common import ORIGINALS, RESULTS, ROOT

SCRIPTS = (
    "startup via_to_coco mapper check_dataset coco_size evaluation roi_align training inference"
    " predict_onnx overlays loop_overhead processes intervals interval_coverage"
).split()
TABLE = Path(__file__).parent / "RESULTS.md"

# Figure to what it measures, the alternative, and the target ratio.
FIGURES = {
    "mapper_exact": ("photos through the mapper, all pixels decoded", "DatasetMapper", 2.3),
    "mapper_scaled": ("the same with scaled JPEG decoding", "DatasetMapper", 3),
    "mapper_cached": ("the same from the cache", "DatasetMapper", 8),
    "roi_align": ("RoIAlign of 600 boxes, forward and backward", "torchvision's", None),
    "step_r50": ("training, R50-FPN, short side 512", "stock.py", 1.3),
    "step_lite0": ("training, lite0", "stock.py", 1.5),
    "step_lite0_bf16": ("the same in bfloat16", "stock.py in float32", None),
    "step_lite0_compile": ("the same with torch.compile", "stock.py without", None),
    "inference_r50": ("evaluation, R50-FPN", "inference_on_dataset, COCOEvaluator", 1.5),
    "inference_lite0": ("evaluation, lite0", "inference_on_dataset, COCOEvaluator", 1.5),
    "predict_onnx": ("prediction with an exported file, lite0", "Detectron2's model", 2.5),
    "overlays": ("100 objects with masks drawn on a photo of 1024 pixels", "Visualizer", 30),
    "overlays_video": ("objects drawn on a video of 30 frames, lite0", "all of its prediction", 10),
    "start": ("command to first step, lite0", "stock.py", None),
    "peak_rss": ("peak memory of the demo", "stock.py", 1.25),
    "loop_overhead": ("time that the loop adds to a step", "SimpleTrainer", None),
    "help": ("train_net.py --help", "imports of Detectron2's tool", None),
    "two_processes": ("two processes of one thread", "one process of two threads", None),
    "via_convert": ("VIA to COCO, 61 photos", "script of MMDetection's guide", 100),
    "check_dataset": ("all checks of a COCO-size file", "json.load of the file", None),
    "store_first": ("COCO's annotations, first start", "load_coco_json", None),
    "store_later": ("the same, later starts", "load_coco_json", None),
    "eval_bbox": ("500,000 boxes, from files to table", "pycocotools", 30),
    "eval_segm": ("500,000 masks, from files to table", "pycocotools", 20),
}
INTERVALS = Path(__file__).parent / "intervals.json"
INTERVAL_TABLES = {
    "seconds": (
        "Time of intervals",
        [
            "CPU time of 1,000 draws for all results of COCO's metric, boxes and masks, by",
            "`intervals.py`. The target is 10 s for 1,000 images and 100,000 detections.",
        ],
    ),
    "coverage": (
        "Coverage of 95 % intervals",
        [
            "How many of the intervals contain the true result, in percent, on the generated",
            "detections of `interval_coverage.py`: of models A and B, and of the difference on the",
            "same photos. *Plain* are the quantiles of 2.5 % and 97.5 % of the draws, *widened* is",
            "what d2ext reports. *Mean error* is that of A's results, in points: with few objects",
            "per class, AP is too high on average, and the interval makes up for a part of that.",
            "Photos have 3.2 objects on average. The classes of *three classes* have 60, 30 and",
            "10 % of them. Of *40 classes*, class 1 has 7.6 % and class 20 has 1.6 %.",
            "The exit status checks 92 to 98 % at 200 photos for *one class* and *three classes*;",
            "*40 classes* misses this range. Its rows for 50 and 200 photos have fewer than the",
            "500 trials of the default command, to save time.",
        ],
    ),
}


def write_table() -> None:
    """Write RESULTS.md from results.json."""
    known = json.loads(RESULTS.read_text())
    lines = [
        "# d2ext against Detectron2, pycocotools and MMDetection's guide",
        "",
        "`make bench` writes this page from `results.json`. d2ext and the alternative ran in turn",
        "on one machine. The table shows medians, and the median of the pairs' ratios: above 1,",
        "d2ext is better. *Target* is the goal of the project. The photos are the original balloon",
        "photos, which `d2ext prepare balloon --full` downloads.",
        "",
        "| figure | measured | against | d2ext | alternative | ratio | target |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, (measured, against, target) in FIGURES.items():
        if name in known:
            n = known[name]
            lines.append(
                f"| `{name}` | {measured} | {against} | {n['ours']:.4g} {n['unit']} |"
                f" {n['theirs']:.4g} {n['unit']} | {n['ratio']:.2f} | {target or ''} |"
            )
    by_machine: dict[str, list[str]] = {}
    for name, n in known.items():
        by_machine.setdefault(n["machine"], []).append(f"`{name}`")
    lines += ["", "Machines:", ""]
    lines += [f"- {machine}: {', '.join(names)}" for machine, names in by_machine.items()]
    lines += _interval_lines()
    TABLE.write_text("\n".join(lines) + "\n")


def _interval_lines() -> list[str]:
    """Return the sections about intervals, from the tables of intervals.json."""
    known = json.loads(INTERVALS.read_text())
    lines = []
    for name, (title, explanation) in INTERVAL_TABLES.items():
        rows = known[name]["rows"]
        lines += [
            "",
            f"## {title}",
            "",
            *explanation,
            "",
            f"Machine: {known[name]['machine']}.",
            "",
        ]
        lines += [f"| {' | '.join(rows[0])} |", "|---" * len(rows[0]) + "|"]
        lines += [f"| {' | '.join(map(str, row.values()))} |" for row in rows]
    return lines


def main() -> int:
    """Run the scripts in turn; return 1 if any failed, otherwise 0."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="*", choices=SCRIPTS, default=SCRIPTS)
    failed = []
    scripts = parser.parse_args().only
    prepare = [sys.executable, "tools/prepare_data.py", "balloon", "--full", "--root", ORIGINALS]
    subprocess.run(prepare, cwd=ROOT, check=True)
    for script in scripts:
        print(f"== {script}", flush=True)
        command = [sys.executable, f"benchmarks/{script}.py"]
        if subprocess.run(command, cwd=ROOT).returncode:
            failed.append(script)
    write_table()
    print(f"the table is {TABLE}" + (f"; failed: {', '.join(failed)}" if failed else ""))
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
