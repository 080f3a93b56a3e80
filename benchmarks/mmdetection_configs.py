"""Import MMDetection's configs, and write the table of docs/from_mmdetection.md.

    pip download mmdet==3.3.0 --no-deps && unzip -q mmdet-3.3.0-*.whl -d mmdet
    python benchmarks/mmdetection_configs.py mmdet/mmdet/.mim/configs [--build] [--only retinanet]

Each config of the folders below is imported, loaded with tiny data in place of its own (`data.*`),
and checked by preflight, in this process. With `--build`, its model is also built, and takes a
training step on the CPU. With `--all`, the configs of all folders are only translated; those of
the detectors that d2ext has are counted by what the import refuses.
"""

import argparse
import contextlib
import io
import json
import logging
import re
import sys
import tempfile
import time
import warnings
from collections import Counter
from pathlib import Path

from common import ROOT, machine
from PIL import Image

FOLDERS = (
    *("faster_rcnn", "mask_rcnn", "cascade_rcnn", "retinanet"),
    *("pascal_voc", "openimages", "cityscapes"),
)
NO_CONFIGS = ("retinanet_tta.py",)  # parts that others import
DETECTORS = ("FasterRCNN", "MaskRCNN", "CascadeRCNN", "RetinaNet")
PHOTOS = ROOT / "examples" / "balloon" / "train"
# Only what makes images small and needs no network.
STEP = ["train.init_checkpoint=", "train.device=cpu", "train.max_iter=1", "train.warmup_iters=0"]
STEP += ["train.reference_world_size=1", "train.reference_batch_size=1"]
STEP += ["dataloader.train.num_workers=0", "train.clip_grad_norm=1", "optimizer.lr=1e-6"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("configs", type=Path, help="folder of MMDetection's configs")
    parser.add_argument("--only", default="", help="part of the names of the configs to import")
    parser.add_argument("--build", action="store_true", help="also train each model for a step")
    parser.add_argument("--all", action="store_true", help="only translate, in all folders")
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    print(f"{machine()}\n")
    if args.all:
        count_refused(args.configs)
        return
    print("| config | preflight | set | unused | differ | unknown | notes |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    notes: dict[str, int] = {}
    passed, failed, start = Counter(), Counter(), time.time()
    with tempfile.TemporaryDirectory() as folder:
        data = write_data(Path(folder))
        for file in (f for name in FOLDERS for f in sorted((args.configs / name).glob("*.py"))):
            if args.only not in str(file) or file.name in NO_CONFIGS:
                continue
            outcome, counts, differs = _imported(file, Path(folder), data, args.build)
            numbers = [str(notes.setdefault(text, len(notes) + 1)) for text in differs]
            cells = [f"{file.parent.name}/{file.name}", outcome, *counts, ", ".join(numbers)]
            print(f"| {' | '.join(cells)} |", flush=True)
            (passed if outcome == "passes" else failed)[file.parent.name] += 1
    print("\nNotes:\n")
    for text, number in notes.items():
        print(f"{number}. {text}")
    total = sum(passed.values()) + sum(failed.values())
    print(f"\n{sum(passed.values())} of {total} configs pass, in {time.time() - start:.0f} s\n")
    print("| folder | configs | pass |\n| --- | --- | --- |")
    for name in FOLDERS:
        if passed[name] + failed[name]:
            print(f"| {name} | {passed[name] + failed[name]} | {passed[name]} |")


def count_refused(configs: Path) -> None:
    """Print how many of all configs of our detectors are translated, and why others are not."""
    from d2ext.config.mmdetection.importer import translate
    from d2ext.config.mmdetection.read import read_config
    from d2ext.errors import UserError

    files = sorted(configs.rglob("*.py"))
    unreadable, translated, unknown, refused = 0, 0, 0, Counter()
    for file in files:
        try:
            values = read_config(file)
        except UserError:  # not only configs: scripts, and bases that the package lacks
            unreadable += 1
            continue
        model = values.get("model")
        whole = isinstance(model, dict) and "_base_" not in file.parts
        if not whole or str(model.get("type")).rpartition(".")[2] not in DETECTORS:
            continue
        try:
            rows = translate(values, file).rows
        except UserError as e:
            field = re.match(r"[\w.]+", str(e))
            refused[re.sub(r"\.\d+", "", field[0]) if field else str(e)] += 1
            continue
        translated += 1
        unknown += any(r.outcome == "unknown" and r.field.startswith("model.") for r in rows)
    print(
        f"{len(files)} files, {unreadable} unreadable; {translated + refused.total()} configs of"
        f" {', '.join(DETECTORS)}: {translated} translated, of which {unknown} with unknown fields"
        f" of the model, and {refused.total()} refused\n"
    )
    print("| field | refused |\n| --- | --- |")
    for field, count in refused.most_common():
        print(f"| {field} | {count} |")


def _imported(
    file: Path, folder: Path, data: list[str], build: bool
) -> tuple[str, list[str], list[str]]:
    """Return the outcome of one config, its number of fields by outcome, and what differs."""
    from d2ext.config.mmdetection.importer import translate
    from d2ext.config.mmdetection.read import read_config

    counts, differs = ["", "", "", ""], []
    try:
        translation = translate(read_config(file), file)
        counts = [str(n) for n in translation.counts().values()]
        different = [row for row in translation.rows if row.outcome == "differs"]
        differs = list(dict.fromkeys(_cell(row.became) for row in different))
        written = folder / f"{file.stem}.py"
        written.write_text(translation.text)
        with contextlib.redirect_stdout(io.StringIO()):
            _check(written, data, folder / "run", build)
    except Exception as e:
        return f"{type(e).__name__}: {_cell(str(e))}", counts, differs
    return "passes", counts, differs


def _check(config: Path, data: list[str], run: Path, build: bool) -> None:
    from d2ext import load_config
    from d2ext.preflight.plan import plan_run

    logging.disable(logging.INFO)
    cfg = load_config(config, [*data, "train.init_checkpoint=", f"train.output_dir={run}"])
    plan_run(cfg, config.stem, overwrite=True)
    if build:
        import d2ext

        d2ext.train(load_config(config, [*data, *STEP]), output_dir=run, overwrite=True)


def write_data(folder: Path) -> list[str]:
    """Write a COCO file with boxes and masks of two photos; return the overrides that name it."""
    images, objects = [], []
    (folder / "photos").mkdir()
    for i, photo in enumerate(sorted(PHOTOS.glob("*.jpg"))[:2], 1):
        with Image.open(photo) as opened:
            opened.convert("RGB").resize((160, 120)).save(folder / "photos" / f"{i}.jpg")
        images.append({"id": i, "file_name": f"{i}.jpg", "width": 160, "height": 120})
        x, y = 20 * i, 16
        outline = [x, y, x + 64, y, x + 64, y + 80, x, y + 80]
        box = {"bbox": [x, y, 64, 80], "area": 5120, "iscrowd": 0, "segmentation": [outline]}
        objects.append({"id": i, "image_id": i, "category_id": 1, **box})
    categories = [{"id": 1, "name": "balloon"}]
    content = {"images": images, "annotations": objects, "categories": categories}
    (folder / "coco.json").write_text(json.dumps(content))
    return [
        f"data.{split}.{key}={folder / value}"
        for split in ("train", "val")
        for key, value in (("json", "coco.json"), ("images", "photos"))
    ]


def _cell(text: str) -> str:
    return (text.strip().splitlines() or [""])[0].replace("|", "/")[:200]


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    main()
