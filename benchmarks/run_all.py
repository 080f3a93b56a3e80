"""Run the benchmarks and write RESULTS.md; `make bench` calls this script.

    python benchmarks/run_all.py [--only mapper step_r50]

Each part is a script that writes its figures to results.json, or a table to tables.json, from which
RESULTS.md is made, so that a single part can be repeated. The end of the output lists the targets
that are missed and the parts that could not run. Without a network, the photos are the reduced ones
of this checkout. `--only` without a name writes RESULTS.md and measures nothing.
"""

import argparse
import json
import os
import subprocess
import sys
import textwrap
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from common import ORIGINALS, OVER_LIMIT, RESULTS, ROOT, TABLES, keep, machine

from d2ext.data.prepare.balloon import prepare_balloon
from d2ext.errors import UserError

PAGE = Path(__file__).parent / "RESULTS.md"
LIMIT = 30  # minutes for a part

INTRODUCTION = (
    "`make bench` writes this page from `results.json` and `tables.json`. d2ext and the alternative"
    " ran in turn on one machine. The table shows medians, and the median of the ratios of the"
    " pairs: above 1, d2ext is better. *Target* is the goal of the project. *Photos* says which"
    " balloon photos were used: the original ones, which `d2ext prepare balloon --full` downloads,"
    " or those of the checkout, which are reduced to a short side of at most 640 pixels. The dates"
    " below say when each figure was measured; d2ext may have become faster or slower since then."
)

# Part to its script and arguments. None may take more than LIMIT minutes.
PARTS = {
    **{
        name: f"{name}.py"
        for name in (
            *("startup", "via_to_coco", "mapper", "check_dataset", "coco_size", "evaluation"),
            *("roi_align", "inference", "predict_onnx", "overlays", "loop_overhead", "processes"),
            *("intervals", "interval_coverage", "large_data", "step_floor", "memory_profile"),
            "profile_step",
        )
    },
    "step_r50": "training.py --only step_r50",
    "step_lite0": "training.py --only step_lite0 step_lite0_bf16",
    "step_lite0_compile": "training.py --only step_lite0_compile",
    "eval_command": "eval_command.py",
    "predict_processes": "predict_processes.py",
    "whole_run": "training.py --only start peak_rss",
}


class Figure(NamedTuple):
    """A ratio in results.json.

    Attributes:
        part: The part that measures it.
        measured: What is measured.
        against: The alternative.
        target: The ratio to reach; None if it is only reported.
    """

    part: str
    measured: str
    against: str
    target: float | None = None


FIGURES = {
    "mapper_exact": Figure(
        "mapper", "photos through the mapper, all pixels decoded", "DatasetMapper", 2.3
    ),
    "mapper_scaled": Figure("mapper", "the same with scaled JPEG decoding", "DatasetMapper", 3),
    "mapper_cached": Figure("mapper", "the same from the cache", "DatasetMapper", 8),
    "roi_align": Figure(
        "roi_align", "RoIAlign of 600 boxes, forward and backward", "torchvision's"
    ),
    "step_r50": Figure("step_r50", "training, R50-FPN, short side 512", "stock.py", 1.6),
    "step_lite0": Figure("step_lite0", "training, lite0", "stock.py", 2.1),
    "step_lite0_bf16": Figure("step_lite0", "the same in bfloat16", "stock.py in float32"),
    "step_lite0_compile": Figure(
        "step_lite0_compile", "the same with torch.compile", "stock.py without"
    ),
    "inference_r50": Figure(
        "inference", "evaluation, R50-FPN", "inference_on_dataset, COCOEvaluator", 2.0
    ),
    "inference_lite0": Figure(
        "inference", "evaluation, lite0", "inference_on_dataset, COCOEvaluator", 2.5
    ),
    "eval_command": Figure(
        "eval_command",
        "`--eval-only` with overlays of crowded photos",
        "stock_eval.py",
        1.5,
    ),
    "predict_onnx": Figure(
        "predict_onnx", "prediction with an exported file, lite0", "Detectron2's model", 2.5
    ),
    "predict_two_processes": Figure(
        "predict_processes",
        "prediction by two processes of one thread, lite0",
        "one process of two threads",
    ),
    "overlays": Figure(
        "overlays", "100 objects with masks drawn on a photo of 1024 pixels", "Visualizer", 30
    ),
    "overlays_video": Figure(
        "overlays",
        "objects drawn on a video of 30 frames, lite0",
        "all of its prediction",
        10,
    ),
    "start": Figure("whole_run", "command to first step, lite0", "stock.py"),
    "peak_rss": Figure("whole_run", "peak memory of the demo", "stock.py"),
    "loop_overhead": Figure("loop_overhead", "time that the loop adds to a step", "SimpleTrainer"),
    "help": Figure("startup", "train_net.py --help", "imports of Detectron2's tool"),
    "two_processes": Figure(
        "processes", "two processes of one thread", "one process of two threads", 1.1
    ),
    "via_convert": Figure(
        "via_to_coco", "VIA to COCO, 61 photos", "script of MMDetection's guide", 100
    ),
    "check_dataset": Figure(
        "check_dataset", "all checks of a COCO-size file", "json.load of the file"
    ),
    "store_first": Figure("coco_size", "COCO's annotations, first start", "load_coco_json"),
    "store_later": Figure("coco_size", "the same, later starts", "load_coco_json"),
    "eval_bbox": Figure("evaluation", "500,000 boxes, from files to table", "pycocotools", 30),
    "eval_segm": Figure("evaluation", "500,000 masks, from files to table", "pycocotools", 20),
    # Only `gpu_check.py` measures these.
    **{
        f"gpu_step_{images}_{dtype}": Figure(
            "gpu_check",
            f"training on a GPU, R50-FPN, {images} images, {dtype}",
            "SimpleTrainer" if dtype == "float32" else "AMPTrainer",
        )
        for images in (2, 8)
        for dtype in ("float32", "float16", "bfloat16")
    },
    "gpu_step_2_compile": Figure("gpu_check", "the same with torch.compile", "d2ext without"),
    "gpu_inference_r50": Figure("gpu_check", "evaluation on a GPU, R50-FPN", "COCOEvaluator"),
}

# Table in tables.json to its title and explanation.
SECTIONS = {
    "mmdetection": (
        "MMDetection on the same machine",
        "`MMDET_PYTHON=PYTHON python benchmarks/against_mmdetection.py` runs both in turn: Mask"
        " R-CNN R50 caffe FPN on the balloon photos, with the same weights. The values are medians;"
        " a ratio above 1 means that d2ext is better. The target is above 1 in every row.",
    ),
    "mapper floor": (
        "Floor of the mapper",
        "Milliseconds per photo on one core, by `mapper.py`: *reading* is the part that no mapper"
        " can leave out, which is decoding the JPEG, or opening the cached pixels. *At most* is the"
        " ratio to DatasetMapper of a mapper that does nothing else.",
    ),
    "step floor": (
        "Floor of a training step",
        "By `step_floor.py`, without loading. The floor is the time of the convolutions and"
        " matrix products (forward and backward, counted by torch's FlopCounterMode, without its"
        " error for depthwise ones) at the peak of this machine, which is the highest rate of a"
        " large matrix product and of a large convolution, measured in the same run.",
    ),
    "profiles": (
        "Steps and inferences by kind of operation",
        "By `profile_step.py`, without loading: the smallest times of torch's profiler for a"
        " training step and for the evaluation of a photo. *All* is measured without the profiler,"
        " which slows the operations down, so that they can add up to more. *Python* is the rest of"
        " *all*, or 0, with numpy, pycocotools and the noise between rounds. Convolutions and"
        " linear layers are what no layer of d2ext can leave out. The system's time is that of"
        " clearing new pages of memory.",
    ),
    "evaluation floor": (
        "Floor of an evaluation",
        "By `evaluation.py`: what no Python code of d2ext can shorten is parsing both files (by"
        " msgspec) and the evaluation by hotcoco.",
    ),
    "memory": (
        "Memory of the demo",
        "Resident memory of the training process in MB after each stage, by `memory_profile.py`."
        " *Own* pages are those that the process has written; *files* are pages of libraries and"
        " data, which processes share and the system can drop. *Loader* is what only the loader's"
        " processes hold; it is not part of the first number.",
    ),
    "large data": (
        "Data of 10,000 to 1,000,000 images",
        "Drawn COCO files with 10 objects per image, by `large_data.py`. The first start parses and"
        " stores the file; *user* and *system* are the CPU times of its own code and of the kernel."
        " Later starts open the store. *Sampler* is the time to the first batch of the second"
        " epoch, and *its MB* the peak of its arrays. Targets at 1,000,000 images: later starts"
        " below 0.5 s, the sampler below 2 s, and below 100 MB. The first start is to take at most"
        " linear time, up to a tenth for noise.",
    ),
    "seconds": (
        "Time of intervals",
        "CPU time of 1,000 draws for all results of COCO's metric, boxes and masks, by"
        " `intervals.py`. The target is 10 s for 1,000 images and 100,000 detections.",
    ),
    "coverage": (
        "Coverage of 95 % intervals",
        "How many of the intervals contain the true result, in percent, on the generated detections"
        " of `interval_coverage.py`: of models A and B, and of the difference on the same photos."
        " *Plain* are the quantiles of 2.5 % and 97.5 % of the draws, *widened* is what d2ext"
        " reports. *Mean error* is that of A's results, in points: with few objects per class, AP"
        " is too high on average, and the interval makes up for a part of that. Photos have 3.2"
        " objects on average. The classes of *three classes* have 60, 30 and 10 % of them. Of *40"
        " classes*, class 1 has 7.6 % and class 20 has 1.6 %. The exit status checks"
        " 92 to 98 % at 200 photos for *one class* and *three classes*; *40 classes* misses this"
        " range. *Trials* is the number of test sets.",
    ),
}


class Outcome(NamedTuple):
    """How a part ended: its exit status, the last line of its output, and its minutes."""

    status: int
    last_line: str
    minutes: float


def run_part(part: str) -> Outcome:
    """Run a part, and print its output."""
    command = [sys.executable, "-W", "ignore", *f"benchmarks/{PARTS[part]}".split()]
    start, last = time.monotonic(), "no output"
    with subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            print(line, end="", flush=True)
            last = line.strip() or last
    return Outcome(process.returncode, last, (time.monotonic() - start) / 60)


def below_target(known: Mapping[str, Mapping]) -> list[str]:
    """Return a text for each figure of results.json that misses its target."""
    missed = []
    for name, figure in FIGURES.items():
        if figure.target and name in known and known[name]["ratio"] < figure.target:
            # Reading takes less of the time of reduced photos, so that ratios differ.
            reduced = ", reduced photos" if known[name]["photos"] == "reduced" else ""
            missed.append(f"{name} {known[name]['ratio']:.2f} (target {figure.target:g}{reduced})")
    return missed


def summary(
    outcomes: Mapping[str, Outcome], before: Mapping[str, Mapping], after: Mapping[str, Mapping]
) -> list[str]:
    """Return the lines that end the output: what is below its target, and what could not run.

    Args:
        outcomes: The parts that were run.
        before: results.json before the run.
        after: results.json after it.
    """
    failed = {part for part, o in outcomes.items() if o.status not in (0, OVER_LIMIT)}
    measured = {
        name: after[name]
        for name, figure in FIGURES.items()
        if figure.part in outcomes
        and name in after
        # A part that failed may have measured some of its figures; others are of an earlier run.
        and (figure.part not in failed or after[name] != before.get(name))
    }
    lines = [f"below its target: {text}" for text in below_target(measured)]
    for part, outcome in outcomes.items():
        if part in failed:
            lacking = [n for n, f in FIGURES.items() if f.part == part and n not in measured]
            lacks = f", without {', '.join(lacking)}" if lacking else ""
            lines.append(
                f"could not run: {part} (status {outcome.status}{lacks}): {outcome.last_line}"
            )
        elif outcome.status == OVER_LIMIT:
            lines.append(f"above a limit of its own: {part}: {outcome.last_line}")
        if outcome.minutes > LIMIT:
            lines.append(f"above {LIMIT} minutes: {part} ({outcome.minutes:.0f} minutes)")
    return lines


def write_page() -> None:
    """Write RESULTS.md from results.json and tables.json."""
    known, tables = json.loads(RESULTS.read_text()), json.loads(TABLES.read_text())
    lines = [
        "# d2ext against Detectron2, pycocotools, MMDetection and the script in its guide",
        "",
        _wrapped(INTRODUCTION),
        "",
        "| figure | measured | against | d2ext | alternative | ratio | target | pairs | photos |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name, figure in FIGURES.items():
        if name in known:
            n = known[name]
            lines.append(
                f"| `{name}` | {figure.measured} | {figure.against} | {n['ours']:.4g} {n['unit']} |"
                f" {n['theirs']:.4g} {n['unit']} | {n['ratio']:.2f} | {figure.target or ''} |"
                f" {n['pairs']} | {n['photos'] or ''} |"
            )
    unknown = [
        f"`{name}`" for name, f in FIGURES.items() if f.part != "gpu_check" and name not in known
    ]
    below = [*below_target(known), *_below_mmdetection(tables)]
    missed = f"Below their target: {', '.join(below) or 'none'}."
    lines += ["", _wrapped(missed + (f" Not measured: {', '.join(unknown)}." if unknown else ""))]
    if not any(FIGURES[name].part == "gpu_check" for name in known):
        text = (
            "No GPU was available: all figures on GPUs are unproved. `python"
            " benchmarks/gpu_check.py` measures them where there is one."
        )
        lines += ["", _wrapped(text)]
    lines += ["", "Machines:", ""]
    by_machine: dict[str, list[str]] = {}
    for name, n in known.items():
        by_machine.setdefault(n["machine"], []).append(f"`{name}`")
    lines += [f"- {machine}: {', '.join(names)}" for machine, names in by_machine.items()]
    lines += _part_lines(tables)
    for name, (title, explanation) in SECTIONS.items():
        if name in tables:
            rows, where = tables[name]["rows"], tables[name]["machine"]
            lines += ["", f"## {title}", "", _wrapped(explanation), ""]
            lines += [f"Machine: {where}.", ""]
            lines += _table(rows)
    PAGE.write_text("\n".join(lines) + "\n")


def _below_mmdetection(tables: Mapping[str, Mapping]) -> list[str]:
    """Return a text for each row of MMDetection's table in which d2ext is not better."""
    rows = tables.get("mmdetection", {"rows": []})["rows"]
    return [
        f"{row['measured']} against MMDetection {row['ratio']:.3f} (target above 1)"
        for row in rows
        if row["ratio"] <= 1
    ]


def _part_lines(tables: Mapping[str, Mapping]) -> list[str]:
    """Return the section about the time of each part."""
    if "parts" not in tables:
        return []
    rows = tables["parts"]["rows"]
    minutes = sum(row["minutes"] for row in rows)
    lacking = [part for part in PARTS if part not in {row["part"] for row in rows}]
    unknown = f" No time is stored for: {', '.join(lacking)}." if lacking else ""
    return [
        *("", "## Time of the parts", ""),
        _wrapped(
            f"`make bench ARGS='--only PART'` measures a part, which may take {LIMIT} minutes at"
            f" most. Those in the table took {minutes:.0f} minutes in all.{unknown}"
        ),
        *("", *_table(rows)),
    ]


def _wrapped(text: str) -> str:
    return textwrap.fill(text, 100, break_on_hyphens=False)


def _table(rows: Sequence[Mapping]) -> list[str]:
    return [
        f"| {' | '.join(rows[0])} |",
        "|---" * len(rows[0]) + "|",
        *(f"| {' | '.join(map(str, row.values()))} |" for row in rows),
    ]


def _keep_times(outcomes: Mapping[str, Outcome]) -> None:
    """Store the minutes of the parts that ran in tables.json, with those of earlier runs."""
    tables = json.loads(TABLES.read_text())
    rows = {row["part"]: row for row in tables.get("parts", {"rows": []})["rows"]}
    for part, outcome in outcomes.items():
        if outcome.status in (0, OVER_LIMIT):
            minutes = round(outcome.minutes, 1)
            rows[part] = {"part": part, "minutes": minutes, "machine": machine()}
    if rows:
        keep("parts", [rows[part] for part in PARTS if part in rows])


def _prepare_photos() -> None:
    """Download the original photos; select the reduced ones if that is impossible."""
    try:
        print(prepare_balloon(ORIGINALS, full=True))
    except UserError as e:
        os.environ["DETECTRON2_DATASETS"] = str(ROOT / "examples")  # read by the scripts
        print(f"{e}\nmeasured with the reduced photos in {ROOT / 'examples'}")


def main() -> int:
    """Run the parts in turn; return 1 if one could not run or a target is missed, otherwise 0."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="*", choices=PARTS, default=list(PARTS), metavar="PART")
    parts = parser.parse_args().only
    before = json.loads(RESULTS.read_text())
    if parts:
        _prepare_photos()
    outcomes = {}
    for part in parts:
        print(f"== {part}", flush=True)
        outcomes[part] = run_part(part)
        _keep_times(outcomes)  # after each part, because a later one may be interrupted
        write_page()
    if not parts:
        write_page()
    lines = summary(outcomes, before, json.loads(RESULTS.read_text()))
    print(f"== the tables are in {PAGE}")
    if parts:
        print(*(lines or ["all targets are reached"]), sep="\n")
    return int(bool(lines))


if __name__ == "__main__":
    sys.exit(main())
