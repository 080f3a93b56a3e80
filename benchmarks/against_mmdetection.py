"""Compare the speed with MMDetection's on this machine: Mask R-CNN R50 caffe FPN.

    MMDET_PYTHON=mmdet/bin/python python benchmarks/against_mmdetection.py [--rounds 5]

The Python must have mmdet 3.3, mmengine 0.10 and mmcv with its operators; d2ext does not install
them. Both sides run as commands, in turn, on the balloon photos, with one class, a short side of
512 pixels, batches of 2, 2 loader processes and the same weights; the inference of a photo is timed
inside a process of each side, without the start. The weights are those of weights.py, so that each
photo has as many detections as allowed. MMDetection's config is its own one with these values.
d2ext's evaluation also draws overlays, as always. The table goes to tables.json. The exit status is
3 if any ratio is below 1.
"""

import argparse
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from common import ORIGINALS, OVER_LIMIT, ROOT, keep, machine
from first_call import FILE
from training import R50, R50_512
from weights import save_calibrated

from d2ext import Predictor
from d2ext.checkpoint.weights.convert import convert_to_mmdetection
from d2ext.config.load import load_config
from d2ext.data.convert import convert_to_coco
from d2ext.data.formats.images import images_in

STEPS = 9  # the first three are not measured
SIDE = [
    "dataloader.train.mapper.augmentations[0].max_size=853",
    "dataloader.val.mapper.augmentations[0].short_edge_length=512",
    "dataloader.val.mapper.augmentations[0].max_size=853",
]
CONFIG = """
_base_ = {base!r}
custom_imports = dict(imports=["mmdet_side"])
custom_hooks = [dict(type="FirstStep")]
model = dict(
    backbone=dict(init_cfg=None),
    roi_head=dict(bbox_head=dict(num_classes=1), mask_head=dict(num_classes=1)),
)
resize = dict(type="Resize", scale=(853, 512), keep_ratio=True)
load = dict(type="LoadImageFromFile")
train_pipeline = [
    load,
    dict(type="LoadAnnotations", with_bbox=True, with_mask=True, poly2mask=False),
    resize,
    dict(type="RandomFlip", prob=0.5),
    dict(type="PackDetInputs"),
]
keys = ("img_id", "img_path", "ori_shape", "img_shape", "scale_factor")
test_pipeline = [load, resize, dict(type="PackDetInputs", meta_keys=keys)]
classes = dict(classes=("balloon",))
train_dataloader = dict(
    batch_size=2,
    num_workers=2,
    sampler=dict(type="InfiniteSampler"),
    dataset=dict(
        data_root="", ann_file={train!r}, data_prefix=dict(img={photos!r} + "/train/"),
        metainfo=classes, pipeline=train_pipeline,
    ),
)
val_dataloader = dict(
    num_workers=2,
    dataset=dict(
        data_root="", ann_file={val!r}, data_prefix=dict(img={photos!r} + "/val/"),
        metainfo=classes, pipeline=test_pipeline,
    ),
)
test_dataloader = val_dataloader
val_evaluator = dict(ann_file={val!r})
test_evaluator = val_evaluator
train_cfg = dict(
    _delete_=True, type="IterBasedTrainLoop", max_iters={steps}, val_interval=10**6
)
param_scheduler = []
optim_wrapper = dict(optimizer=dict(lr=1e-6))
default_hooks = dict(
    logger=dict(interval=1), checkpoint=dict(by_epoch=False, interval={steps})
)
log_processor = dict(window_size=1, by_epoch=False)
load_from = {weights!r}
"""


class Side:
    """Commands of d2ext or MMDetection, their environment, and the folder for what they write."""

    def __init__(self, python: str, folder: Path):
        self.python, self.folder = python, folder
        self.note = folder.with_suffix(".first")
        paths = f"{ROOT / 'benchmarks'}"
        self.environment = {**os.environ, "PYTHONPATH": paths, FILE: str(self.note)}

    def run(self, *arguments: object) -> tuple[float, float, float, str]:
        """Run a command with an empty folder and without the note of an earlier run.

        Returns:
            The moment of its start on the monotonic clock, its seconds, the peak memory in MB of
            its largest process, and its output.
        """
        shutil.rmtree(self.folder, ignore_errors=True)
        self.note.unlink(missing_ok=True)  # so that a run that writes none fails
        command = [self.python, *map(str, arguments)]
        with tempfile.TemporaryFile("w+") as out:
            start = time.monotonic()
            process = subprocess.Popen(
                command, cwd=ROOT, env=self.environment, stdout=out, stderr=out
            )
            _, status, used = os.wait4(process.pid, 0)
            seconds = time.monotonic() - start
            out.seek(0)
            output = out.read()
        if status:
            raise SystemExit(f"{' '.join(command)}\n{output[-3000:]}")
        return start, seconds, used.ru_maxrss / 1024, output

    def train(self, metrics: str, *arguments: object) -> dict[str, float]:
        """Return seconds per step, seconds to the first step, and peak memory of a training.

        Args:
            metrics: Pattern of the file with a `time` in each line, in the folder.
            arguments: The command.
        """
        start, _, peak, _ = self.run(*arguments)
        (file,) = self.folder.glob(metrics)
        lines = map(json.loads, file.read_text().splitlines())
        times = [line["time"] for line in lines if "time" in line]
        return {
            "training step, s": statistics.median(times[-(STEPS - 3) :]),
            "command to first step, s": float(self.note.read_text()) - start,
            "peak memory of training, MB": peak,
        }


def _compare(python: str, configs: Path, rounds: int, work: Path) -> dict[str, list]:
    """Return the pairs of each row."""
    photos = ORIGINALS / "balloon"
    options = [*R50_512, *SIDE, f"data.root={ORIGINALS}", f"train.max_iter={STEPS}"]
    options += ["dataloader.train.num_workers=2", "train.reference_batch_size=2"]
    weights, converted = work / "weights.pth", work / "mmdetection.pth"
    save_calibrated(load_config(str(ROOT / R50), options), weights)
    convert_to_mmdetection(weights, converted)
    coco = {split: work / f"{split}.json" for split in ("train", "val")}
    for split, file in coco.items():
        via = photos / split / "via_region_data.json"
        convert_to_coco("via", via, photos / split, file, ["balloon"])
    config = work / "mmdetection.py"
    base = configs / "configs/mask_rcnn/mask-rcnn_r50-caffe_fpn_1x_coco.py"
    files = {split: str(file) for split, file in coco.items()}
    config.write_text(
        CONFIG.format(
            base=str(base), photos=str(photos), steps=STEPS, weights=str(converted), **files
        )
    )
    ours, theirs = Side(sys.executable, work / "ours"), Side(python, work / "theirs")
    tool = ["tools/train_net.py", "--config-file", R50, "--work-dir", ours.folder]
    options.append(f"train.init_checkpoint={weights}")
    train, test = (configs / "tools" / f"{name}.py" for name in ("train", "test"))
    side, val = ROOT / "benchmarks/mmdet_side.py", images_in(photos / "val")
    val_photos = [photos / "val" / name for name in val]
    via = photos / "train/via_region_data.json"
    predictor = Predictor.from_config(ROOT / R50, weights, options, score_threshold=0.05)

    def predict() -> float:
        list(predictor.predict(val_photos[:1]))
        start = time.perf_counter()
        found = list(predictor.predict(val_photos))
        return (time.perf_counter() - start) / len(found)

    def their_prediction() -> float:
        output = theirs.run(side, "predict", config, converted, *val_photos)[3]
        found = re.search(r"seconds per photo: (\S+)", output)
        assert found, output
        return float(found[1])

    noting = "model._target_=first_call.noting"
    pairs: dict[str, list] = {}

    def add(row: str, mine: Callable[[], float], other: Callable[[], float]) -> None:
        pairs.setdefault(row, []).append((mine(), other()))
        print(f"{row}: {pairs[row][-1]}", flush=True)

    for _ in range(rounds):
        mine = ours.train("metrics.json", *tool, "--no-validate", "--options", *options, noting)
        other = theirs.train("*/vis_data/scalars.json", train, config, "--work-dir", theirs.folder)
        for row, value in mine.items():
            pairs.setdefault(row, []).append((value, other[row]))
            print(f"{row}: {pairs[row][-1]}", flush=True)
        add("inference of a photo, s", predict, their_prediction)
        add(
            "evaluation command, s",
            lambda: ours.run(*tool, "--eval-only", "--weights", weights, "--options", *options)[1],
            lambda: theirs.run(test, config, converted, "--work-dir", theirs.folder)[1],
        )
        add(
            "train --help, s",
            lambda: ours.run("tools/train_net.py", "--help")[1],
            lambda: theirs.run(train, "--help")[1],
        )
        out = work / "converted.json"
        out.unlink(missing_ok=True)
        add(
            "VIA to COCO, 61 photos, s",
            lambda out=out: ours.run(
                *("-m", "d2ext", "convert", "via", via, "--images", photos / "train"),
                *("--classes", "balloon", "--output", out),
            )[1],
            lambda out=out: theirs.run(side, "convert", via, photos / "train", out)[1],
        )
    return pairs


def _table(pairs: dict[str, Sequence[tuple[float, float]]], versions: str) -> list[dict]:
    rows = []
    for row, values in pairs.items():
        mine, other = (statistics.median(column) for column in zip(*values, strict=True))
        ratio = statistics.median(b / a for a, b in values)
        rows.append(
            {
                "measured": row,
                "d2ext": f"{mine:.3g}" if mine < 1000 else f"{mine:.0f}",
                versions: f"{other:.3g}" if other < 1000 else f"{other:.0f}",
                "ratio": round(ratio, 3),
                "pairs": len(values),
            }
        )
    return rows


def main() -> int:
    """Print and store the table; return 2 without MMDetection, 3 if a ratio is not above 1."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    python = os.environ.get("MMDET_PYTHON")
    if not python:
        print(
            "error: MMDET_PYTHON is not set; give the path of a Python with mmdet 3.3",
            file=sys.stderr,
        )
        return 2
    code = (
        "import mmdet, mmcv.ops, torch; print(mmdet.__file__, mmdet.__version__, torch.__version__)"
    )
    try:
        asked = subprocess.run([python, "-W", "ignore", "-c", code], capture_output=True, text=True)
    except OSError as e:
        print(f"error: MMDET_PYTHON={python}: {e.strerror}; check the path", file=sys.stderr)
        return 2
    if asked.returncode:
        reason = (asked.stderr.strip().splitlines() or ["no output"])[-1]
        print(
            f"error: MMDET_PYTHON={python} cannot import mmdet and mmcv.ops ({reason});"
            " install mmdet 3.3 and mmcv 2.1 there",
            file=sys.stderr,
        )
        return 2
    package, version, torch = asked.stdout.split()
    print(machine(), flush=True)
    with tempfile.TemporaryDirectory() as folder:
        pairs = _compare(python, Path(package).parent / ".mim", rounds, Path(folder))
    rows = _table(pairs, f"mmdet {version}, torch {torch}")
    for row in rows:
        print(row)
    keep("mmdetection", rows)
    missed = [row["measured"] for row in rows if row["ratio"] <= 1]
    if missed:
        print(f"ratio not above 1: {', '.join(missed)}")
    return OVER_LIMIT if missed else 0


if __name__ == "__main__":
    sys.exit(main())
