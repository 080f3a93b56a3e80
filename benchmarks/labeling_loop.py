"""Measure the labeling loop on the balloon photos; docs/labeling.md has the numbers.

    nice python benchmarks/labeling_loop.py [--compare 3] [--options train.max_epochs=66]
    nice python benchmarks/labeling_loop.py --run RUN [--weights FILE]

Of the 61 training photos, 20 are drawn as labeled, and the recipe `CONFIG` trains on them.
`d2ext predict` writes outlines for the other 41, which are compared with the true ones: an outline
with an IoU of 0.9 or more needs no correction. A second table has other score thresholds and
outlines with more points. `--run` annotates with a model that was trained on these 20 photos. With
`--compare N`, the recipe is then trained with 20 more photos, N times with those that `--rank
uncertain` puts first and N times with random ones.
"""

import argparse
import itertools
import json
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pycocotools.mask as mask_util
from common import machine

from d2ext.data.formats.via import read_via
from d2ext.data.prepare.balloon import PHOTOS
from d2ext.predict.outlines import simplified

ROOT = Path(__file__).resolve().parent.parent
CONFIG = "configs/balloon/mask_rcnn_lite0_fpn_balloon.py"
VIA = "via_region_data.json"
LABELED = 20
FINE = (0.95, 0.9, 0.8)  # IoU of an outline that needs no correction
FOUND = 0.5  # least IoU of an outline that belongs to an object
SCORES = (0.5, 0.7, 0.9)
SIMPLIFIED = (0.95, 0.98, None)  # least IoU with the mask; None is the mask itself


def _tool(name: str, *args: object) -> None:
    command = [sys.executable, "-W", "ignore", f"tools/{name}.py", *map(str, args)]
    subprocess.run(command, cwd=ROOT, stdout=subprocess.DEVNULL, check=True)


def _train(names: Sequence[str], folder: Path, options: Sequence[str]) -> tuple[float, float]:
    """Train on some of the photos; return the minutes, and segm/AP of the 13 validation photos."""
    photos = folder / "balloon" / "train"
    photos.mkdir(parents=True)
    truth = json.loads((PHOTOS / "train" / VIA).read_text())
    chosen = {key: entry for key, entry in truth.items() if entry["filename"] in names}
    (photos / VIA).write_text(json.dumps(chosen))
    for name in names:
        shutil.copy(PHOTOS / "train" / name, photos)
    shutil.copytree(PHOTOS / "val", folder / "balloon" / "val")
    start = time.perf_counter()
    flags = ["--config-file", CONFIG, "--work-dir", folder / "run"]
    _tool("train_net", *flags, f"data.root={folder}", *options)
    minutes = (time.perf_counter() - start) / 60
    results = json.loads((folder / "run" / "results.json").read_text())["last"]["results"]
    return minutes, results["balloon_val/coco/segm/AP"]


def _rles(record: dict) -> list[dict]:
    size = record["height"], record["width"]
    polygons = (mask_util.frPyObjects(a["segmentation"], *size) for a in record["annotations"])
    return [mask_util.merge(rles) for rles in polygons]


def _matched(predicted: list[dict], true: list[dict]) -> list[float]:
    """Return the IoU of each pair of a predicted and a true outline, best pairs first."""
    if not predicted or not true:
        return []
    ious = np.asarray(mask_util.iou(predicted, true, [False] * len(true)))
    pairs = []
    while ious.size and ious.max() >= FOUND:
        row, column = np.unravel_index(ious.argmax(), ious.shape)
        pairs.append(float(ious[row, column]))
        ious[row] = ious[:, column] = -1
    return pairs


def _true() -> dict[str, list[dict]]:
    truth = read_via(PHOTOS / "train" / VIA, PHOTOS / "train", ["balloon"])
    return {Path(record["file_name"]).name: _rles(record) for record in truth}


def _work(via: Path, photos: Path) -> dict[str, dict[str, int]]:
    """Return for each photo how many outlines are there, and what is left to do."""
    true = _true()
    work = {}
    for record in read_via(via, photos, ["balloon"], attribute="class"):
        name, predicted = Path(record["file_name"]).name, _rles(record)
        pairs = _matched(predicted, true[name])
        points = sum(len(p) // 2 for a in record["annotations"] for p in a["segmentation"])
        counts = {"balloons": len(true[name]), "predicted": len(predicted), "points": points}
        counts |= {f"IoU >= {least}": sum(iou >= least for iou in pairs) for least in FINE}
        counts["to correct"] = len(pairs) - counts["IoU >= 0.9"]
        counts["to draw"] = len(true[name]) - len(pairs)
        counts["to delete"] = len(predicted) - len(pairs)
        work[name] = counts
    return work


def _print_outlines(predicted: Path) -> None:
    """Print how many outlines need no correction at other thresholds and with more points."""
    true = _true()
    images = json.loads((predicted / "images.json").read_text())["images"]
    objects: dict[int, list[dict]] = {image["id"]: [] for image in images}
    for found in json.loads((predicted / "predictions.json").read_text()):
        objects[found["image_id"]].append(found)
    print(
        "\n| score | IoU with the mask | written | found | IoU >= 0.9 | points |\n"
        + "|---" * 6
        + "|"
    )
    for score, least in itertools.product(SCORES, SIMPLIFIED):
        written, points, pairs = 0, 0, []
        for image in images:
            masks = [o["segmentation"] for o in objects[image["id"]] if o["score"] >= score]
            if least is not None:
                outlines = [simplified(mask, True, least) for mask in masks]
                points += sum(len(p) // 2 for polygons in outlines for p in polygons)
                record = {**image, "annotations": [{"segmentation": p} for p in outlines if p]}
                masks = _rles(record)
            written += len(masks)
            pairs += _matched(masks, true[Path(image["file_name"]).name])
        fine = sum(iou >= 0.9 for iou in pairs)
        mean = round(points / max(1, written)) if least else "-"
        print(
            f"| {score} | {least or 1} | {written} | {len(pairs)} | {fine} | {mean} |", flush=True
        )


def _row(title: str, work: Sequence[dict[str, int]]) -> str:
    sums = {key: sum(counts[key] for counts in work) for key in work[0]}
    sums["points"] = round(sums["points"] / max(1, sums["predicted"]))
    return f"| {title} | {len(work)} | " + " | ".join(map(str, sums.values())) + " |"


def main() -> None:
    """Run the loop once and print Markdown tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seed", type=int, default=0, help="draws the labeled photos")
    parser.add_argument(
        "--compare", type=int, default=0, metavar="N", help="trainings of each kind"
    )
    parser.add_argument("--run", type=Path, help="trained run; default: train one")
    parser.add_argument("--weights", default="last", help="weights of --run (last)")
    parser.add_argument("--keep", type=Path, metavar="DIR", help="new folder for runs and outlines")
    parser.add_argument("--options", nargs="*", default=[], help="overrides of the recipe")
    args = parser.parse_args()
    names = sorted(path.name for path in (PHOTOS / "train").glob("*.jpg"))
    labeled = sorted(random.Random(args.seed).sample(names, LABELED))
    rest = [name for name in names if name not in labeled]
    print(f"{CONFIG} {' '.join(args.options)}\n{machine()}\n")
    with tempfile.TemporaryDirectory() as made:
        folder = (args.keep or Path(made)).resolve()
        run = args.run.resolve() if args.run else folder / "first" / "run"
        if not args.run:
            minutes, ap = _train(labeled, folder / "first", args.options)
            print(
                f"{LABELED} labeled photos: {minutes:.1f} minutes, segm/AP {ap:.1f}\n", flush=True
            )
        photos, out = folder / "photos", folder / "out"
        photos.mkdir(parents=True)
        for name in rest:
            shutil.copy(PHOTOS / "train" / name, photos)
        flags = ["--annotations", "via", "--rank", "uncertain", "--output", out]
        start = time.perf_counter()
        _tool("predict", run, photos, "--weights", args.weights, *flags)
        seconds = time.perf_counter() - start
        print(f"{len(rest)} photos annotated in {seconds:.0f} s\n")
        work = _work(out / "via.json", photos)
        order = [Path(line).name for line in (out / "rank.txt").read_text().splitlines()]
        print("| photos | number | " + " | ".join(next(iter(work.values()))) + " |")
        print("|---" * (2 + len(work[order[0]])) + "|")
        print(_row("all unlabeled", list(work.values())))
        print(_row("most uncertain", [work[name] for name in order[:LABELED]]))
        print(_row("the others", [work[name] for name in order[LABELED:]]), flush=True)
        _print_outlines(out)
        found: dict[str, list[float]] = {"most uncertain": [], "random": []}
        for i in range(args.compare):
            more = {
                "most uncertain": order[:LABELED],
                "random": random.Random(100 + i).sample(rest, LABELED),
            }
            for kind, extra in more.items():
                again = folder / f"{kind}{i}"
                _, ap = _train([*labeled, *extra], again, [f"train.seed={i}", *args.options])
                found[kind].append(ap)
                shutil.rmtree(again)
        for kind, aps in found.items():
            if aps:
                each = ", ".join(f"{ap:.1f}" for ap in aps)
                print(f"\n20 more, {kind}: segm/AP {statistics.mean(aps):.1f} ({each})")


if __name__ == "__main__":
    main()
