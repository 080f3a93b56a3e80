"""Compare the speed of two checkouts of d2ext, in turn.

    git worktree add ../old COMMIT
    python benchmarks/two_trees.py ../old . [--only step_lite0 ...] [--rounds 3]

Each figure is measured in its own process with the code of its checkout, A B A B A B. The script
prints the medians, and the median of the pairs' ratios: above 1, the second checkout is slower.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from coco_file import make_coco
from common import ROOT, machine
from results_file import make_results

LITE0 = "configs/balloon/mask_rcnn_lite0_fpn_balloon.py"
R50 = "configs/balloon/mask_rcnn_r50_caffe_fpn_ms_poly_1x_balloon.py"
IMAGES, OBJECTS, DETECTIONS = 40_000, 290_000, 170_000  # a third of COCO

# Each snippet prints seconds. The modules are those of the checkout's own benchmarks/.
_TRAIN = """
import json, statistics, subprocess
command = [sys.executable, "tools/train_net.py", "--no-validate", "--overwrite", "--work-dir"]
command += [f"{work}/run", "--config-file", CONFIG, "train.init_checkpoint=", *OPTIONS]
subprocess.run(command, check=True, capture_output=True)
lines = map(json.loads, open(f"{work}/run/metrics.json"))
print(statistics.median(line["time"] for line in lines if "time" in line))
"""
_STEP = ["train.log_period=1", "dataloader.train.num_workers=1", "train.warmup_iters=0"]
_R50_STEP = ["optimizer.lr=1e-6", "train.reference_batch_size=2", "train.max_iter=6"]
_R50_STEP += ["dataloader.train.mapper.augmentations[0].short_edge_length=512"]
_TOOL = """
import subprocess
start = time.perf_counter()
subprocess.run([sys.executable, *ARGUMENTS], check=False, capture_output=True)
print(time.perf_counter() - start)
"""
FIGURES = {
    "step_lite0": f"CONFIG, OPTIONS = {LITE0!r}, {[*_STEP, 'train.max_iter=20']}" + _TRAIN,
    "step_r50": f"CONFIG, OPTIONS = {R50!r}, {[*_STEP, *_R50_STEP]}" + _TRAIN,
    "mapper_exact": """
import mapper, numpy as np, torch, cv2
torch.set_num_threads(1), cv2.setNumThreads(1)
from pathlib import Path
folder = Path("examples/balloon/train")
records = mapper.read_via(folder / "via_region_data.json", folder, ["balloon"])
ours = mapper._mapper(mapper.Mapper)
for _ in range(2):
    np.random.seed(0)
    start = time.perf_counter()
    for record in records:
        ours(record)
print(time.perf_counter() - start)
""",
    "inference_lite0": f"""
import inference, torch
torch.manual_seed(0)
cfg = inference.load_config({LITE0!r}, ["dataloader.val.num_workers=0"])
weights = f"{{work}}/weights.pth"
open(weights, "w").close()  # preflight looks for it
plan = inference.plan_run(cfg, "inference", eval_only=True, weights=weights)
torch.save(inference.build_model(cfg, plan).state_dict(), weights)
rate = inference._ours(cfg, plan)
rate()
print(1 / rate())
""",
    "store_first": """
import coco_size
sys.stdin = open("/dev/null")
print(coco_size._store(f"{data}/gt.json")["seconds"], file=sys.stderr)
""",
    "check_dataset": "ARGUMENTS = ['tools/check_dataset.py', f'{data}/gt.json']" + _TOOL,
    "eval_bbox": "ARGUMENTS = ['tools/evaluate.py', f'{data}/boxes.json', '--dataset',"
    " f'{data}/gt.json', '--tasks', 'bbox']" + _TOOL,
    "via_convert": """
import via_to_coco
from pathlib import Path
folder = Path("examples/balloon/train")
arguments = ("via", folder / "via_region_data.json", folder)
times = [
    via_to_coco.seconds(
        via_to_coco.convert_to_coco, *arguments, Path(f"{work}/{i}.json"), ["balloon"]
    )
    for i in range(20)
]
print(sorted(times)[10])
""",
}


def measure(name: str, tree: Path, data: Path) -> float:
    """Return the seconds of a figure in a checkout, with empty caches."""
    with tempfile.TemporaryDirectory() as work:
        head = f"import sys, time\nwork, data = {work!r}, {str(data)!r}\n"
        environment = {
            **os.environ,
            "D2EXT_CACHE": f"{work}/cache",
            "PYTHONPATH": f"{tree}:{tree / 'benchmarks'}",
            "PYTHONWARNINGS": "ignore",
        }
        done = subprocess.run(
            [sys.executable, "-c", head + FIGURES[name]],
            cwd=tree,
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
        )
    if done.returncode:
        raise SystemExit(f"{name} in {tree}:\n{done.stderr[-3000:]}")
    printed = done.stderr if name == "store_first" else done.stdout
    return float(printed.split()[-1])


def make_data(folder: Path) -> None:
    """Write a COCO file and detected boxes in its images."""
    make_coco(folder / "gt.json", IMAGES, OBJECTS)
    make_results(folder / "gt.json", folder / "masks.json", DETECTIONS)
    results = json.loads((folder / "masks.json").read_bytes())
    for result in results:
        del result["segmentation"]
    (folder / "boxes.json").write_text(json.dumps(results))


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("old", type=Path)
    parser.add_argument("new", type=Path, nargs="?", default=ROOT)
    parser.add_argument("--only", nargs="+", choices=FIGURES, default=list(FIGURES))
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    old, new = args.old.resolve(), args.new.resolve()
    print(machine())
    print("| figure | old, s | new, s | new / old |\n|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder)
        if {"store_first", "check_dataset", "eval_bbox"} & set(args.only):
            make_data(data)
        for name in args.only:
            pairs = [[measure(name, tree, data) for tree in (old, new)] for _ in range(args.rounds)]
            first, second = (statistics.median(column) for column in zip(*pairs, strict=True))
            ratio = statistics.median(b / a for a, b in pairs)
            print(f"| {name} | {first:.3f} | {second:.3f} | {ratio:.3f} |", flush=True)


if __name__ == "__main__":
    main()
