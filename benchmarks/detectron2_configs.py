"""Run Detectron2's own configs unchanged, and write the table of docs/configs.md.

    python benchmarks/detectron2_configs.py [--projects detectron2/projects] [--only retinanet]

Every LazyConfig and yacs file of Detectron2's package is loaded and its model is built, by
Detectron2 and by d2ext. One config of each architecture also trains for a step and evaluates, on a
generated copy of COCO with three photos. The configs of projects follow with `--projects`.
"""

import argparse
import json
import multiprocessing
import os
import re
import subprocess
import sys
import tempfile
import warnings
from importlib.util import find_spec
from pathlib import Path

import detectron2
import numpy as np
from common import ROOT, machine
from PIL import Image

ZOO = Path(detectron2.__file__).parent / "model_zoo" / "configs"
PHOTOS = ROOT / "examples" / "balloon" / "train"
SIDE = 96  # pixels
_COMMON = [
    "train.init_checkpoint=",
    "train.max_iter=1",
    "train.warmup_iters=0",
    "optimizer.lr=1e-6",
]
_COMMON += ["dataloader.train.total_batch_size=1", "dataloader.train.num_workers=0"]
_COMMON += ["dataloader.test.num_workers=0"]
_RESIZE = [
    f"dataloader.{s}.mapper.augmentations[0].short_edge_length={SIDE}" for s in ("train", "test")
]
_YACS = [f"INPUT.MIN_SIZE_TRAIN=({SIDE},)", f"INPUT.MIN_SIZE_TEST={SIDE}"]
_LSJ = "dataloader.train.mapper.augmentations"
_CROP = [
    f"{_LSJ}[0].target_height=128",
    f"{_LSJ}[0].target_width=128",
    f"{_LSJ}[1].crop_size=[128,128]",
]
# Its package, panopticapi, is not in the package index.
_PANOPTIC = [] if find_spec("panopticapi") else ["evaluators.panoptic=null"]
# One config of each architecture, and the overrides that make its images small.
TRAINED = {
    "COCO-Detection/fcos_R_50_FPN_1x.py": _RESIZE,
    "COCO-Detection/retinanet_R_50_FPN_1x.py": _RESIZE,
    "COCO-InstanceSegmentation/mask_rcnn_R_50_C4_1x.py": _RESIZE,
    "COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_1x.py": _RESIZE,
    "COCO-InstanceSegmentation/mask_rcnn_regnety_4gf_dds_fpn_1x.py": _RESIZE,
    "COCO-Keypoints/keypoint_rcnn_R_50_FPN_1x.py": _RESIZE,
    "COCO-PanopticSegmentation/panoptic_fpn_R_50_1x.py": [*_RESIZE, *_PANOPTIC],
    "new_baselines/mask_rcnn_R_50_FPN_100ep_LSJ.py": [*_CROP, _RESIZE[1]],
    "COCO-Detection/faster_rcnn_R_50_FPN_1x.yaml": _YACS,
    "COCO-Detection/retinanet_R_50_FPN_1x.yaml": _YACS,
    "COCO-Detection/rpn_R_50_FPN_1x.yaml": _YACS,
    "COCO-InstanceSegmentation/mask_rcnn_R_50_C4_1x.yaml": _YACS,
    "COCO-InstanceSegmentation/mask_rcnn_R_50_DC5_1x.yaml": _YACS,
    "COCO-Keypoints/keypoint_rcnn_R_50_FPN_1x.yaml": _YACS,
    "COCO-PanopticSegmentation/panoptic_fpn_R_50_1x.yaml": [*_YACS, *_PANOPTIC],
    "Misc/cascade_mask_rcnn_R_50_FPN_1x.yaml": _YACS,
    "Misc/mask_rcnn_R_50_FPN_1x_dconv_c3-c5.yaml": _YACS,
    "Misc/mask_rcnn_R_50_FPN_3x_gn.yaml": _YACS,
    "Misc/mask_rcnn_R_50_FPN_3x_syncbn.yaml": _YACS,
    "Misc/semantic_R_50_FPN_1x.yaml": _YACS,
}


# Functions that add the keys and models of a project's yacs configs.
SETUP = {
    "DeepLab": ["detectron2.projects.deeplab.add_deeplab_config"],
    "DensePose": ["densepose.add_densepose_config"],
    "Panoptic-DeepLab": ["detectron2.projects.panoptic_deeplab.add_panoptic_deeplab_config"],
    "PointRend": ["detectron2.projects.point_rend.add_pointrend_config"],
    "PointSup": [
        "detectron2.projects.point_rend.add_pointrend_config",
        "point_sup.add_point_sup_config",
    ],
    "TensorMask": ["tensormask.add_tensormask_config"],
    "TridentNet": ["tridentnet.add_tridentnet_config"],
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--projects", type=Path, help="folder of Detectron2's projects")
    parser.add_argument("--only", default="", help="part of the names of the configs to run")
    parser.add_argument("--no-train", action="store_true", help="only build the models")
    args = parser.parse_args()
    files = [f for f in sorted(ZOO.rglob("*")) if f.suffix in (".py", ".yaml")]
    files = [f for f in files if "common" not in f.relative_to(ZOO).parts]
    if args.projects:
        args.projects = args.projects.resolve()
        sys.path += [str(folder) for folder in args.projects.iterdir()]
        found = sorted(args.projects.glob("*/configs/**/*"))
        files += [f for f in found if f.suffix in (".py", ".yaml") and "common" not in f.parts]
    print(f"{machine()}, Detectron2 {detectron2.__version__}\n")
    print("| config | built by Detectron2 and by d2ext | one step and an evaluation by d2ext |")
    print("| --- | --- | --- |")
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "data"
        make_coco(data)
        for file in files:
            name = file.relative_to(ZOO if file.is_relative_to(ZOO) else args.projects).as_posix()
            if args.only not in name:
                continue
            setup = SETUP.get(name.partition("/")[0], [])
            theirs, ours = _isolated(_detectron2s, file, setup), _isolated(_ours, file, setup)
            trained = ""
            if name in TRAINED and not args.no_train:
                trained = _train(file, TRAINED[name], data, Path(folder) / "run")
            built = ours if ours == theirs else f"Detectron2: {theirs}; d2ext: {ours}"
            print(f"| {name} | {built} | {trained} |", flush=True)


def _isolated(build, file: Path, setup: list[str]) -> str:
    """Return the outcome of a function in a process of its own, because models need memory."""
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    process = context.Process(target=_reported, args=(queue, build, file, setup))
    process.start()
    process.join()
    return queue.get() if process.exitcode == 0 else f"exit status {process.exitcode}"


def _reported(queue, build, file: Path, setup: list[str]) -> None:
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    warnings.simplefilter("ignore")
    sys.stdout = sys.stderr = open(os.devnull, "w")
    try:
        count = sum(p.numel() for p in build(file, setup).parameters())
        queue.put(f"{count / 1e6:.1f} M parameters")
    except Exception as e:
        queue.put(f"{type(e).__name__}: {_cell(str(e).replace(f'{file.parent}/', ''))}")


def _cell(text: str) -> str:
    return (text.strip().splitlines() or [""])[0].replace("|", "/")[:150]


def _detectron2s(file: Path, setup: list[str]):
    from detectron2.config import LazyConfig, get_cfg, instantiate
    from detectron2.modeling import build_model
    from detectron2.utils.registry import locate

    if file.suffix == ".py":
        model = LazyConfig.load(str(file)).model
        if "device" in model:
            model.device = "cpu"
        return instantiate(model)
    cfg = get_cfg()
    for name in setup:
        locate(name)(cfg)
    cfg.merge_from_file(str(file))
    cfg.MODEL.DEVICE = "cpu"
    return build_model(cfg)


def _ours(file: Path, setup: list[str]):
    from detectron2.config import instantiate

    from d2ext import load_config

    overrides = ["train.device=cpu"]
    if setup:
        overrides.append(f"train.yacs_setup={json.dumps(setup)}")
    return instantiate(load_config(file, overrides).model)


def _train(file: Path, overrides: list[str], data: Path, run: Path) -> str:
    command = [sys.executable, "-W", "ignore", "-m", "d2ext", "train", str(file), "--overwrite"]
    command += ["--work-dir", str(run), *_COMMON, *overrides]
    env = {**os.environ, "DETECTRON2_DATASETS": str(data), "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=env, capture_output=True, text=True)
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if "error" in line.lower()]
        return f"status {done.returncode}: {_cell((lines or ['no message'])[-1])}"
    metrics = [json.loads(line) for line in (run / "metrics.json").read_text().splitlines()]
    loss = next(line["total_loss"] for line in metrics if "total_loss" in line)
    results = json.loads((run / "results.json").read_text())["last"]["results"]
    kinds = {re.sub(r"^[^/]*/", "", key).rpartition("/")[0] for key in results}
    return f"loss {loss:.3g}; {', '.join(sorted(kinds)) or 'no results'}"


def make_coco(root: Path) -> None:
    """Write COCO 2017's files for three photos: boxes, masks, keypoints, stuff, panoptic maps."""
    from detectron2.data.datasets import builtin_meta

    coco = root / "coco"
    things = [
        {"id": c["id"], "name": c["name"], "supercategory": "thing"}
        for c in builtin_meta.COCO_CATEGORIES
        if c["isthing"]
    ]
    person = {
        **things[0],
        "keypoints": list(builtin_meta.COCO_PERSON_KEYPOINT_NAMES),
        "skeleton": [[1, 2]],
    }
    photos = sorted(PHOTOS.glob("*.jpg"))[:3]
    for split in ("train2017", "val2017"):
        for folder in (split, f"panoptic_{split}", f"panoptic_stuff_{split}"):
            (coco / folder).mkdir(parents=True, exist_ok=True)
        images, objects, segments = [], [], []
        for i, photo in enumerate(photos, 1):
            with Image.open(photo) as opened:
                image = opened.convert("RGB").resize((160, 120))
            image.save(coco / split / f"{i:012}.jpg")
            images.append({"id": i, "file_name": f"{i:012}.jpg", "width": 160, "height": 120})
            x, y = 20 + 8 * i, 16
            points = [v for k in range(17) for v in (x + 2 + 3 * k, y + 2 + 3 * k, 2)]
            objects.append(
                {
                    "id": i,
                    "image_id": i,
                    "category_id": 1,
                    "bbox": [x, y, 64, 80],
                    "area": 64 * 80,
                    "iscrowd": 0,
                    "segmentation": [[x, y, x + 64, y, x + 64, y + 80, x, y + 80]],
                    "keypoints": points,
                    "num_keypoints": 17,
                }
            )
            stuff = np.full((120, 160), 21, np.uint8)
            stuff[y : y + 80, x : x + 64] = 0  # things
            Image.fromarray(stuff).save(coco / f"panoptic_stuff_{split}" / f"{i:012}.png")
            colors = np.zeros((120, 160, 3), np.uint8)
            colors[..., 0] = np.where(stuff == 0, 1, 2)
            Image.fromarray(colors).save(coco / f"panoptic_{split}" / f"{i:012}.png")
            parts = [
                {"id": 1, "category_id": 1, "iscrowd": 0, "area": 5120, "bbox": [x, y, 64, 80]}
            ]
            segments.append({"image_id": i, "file_name": f"{i:012}.png", "segments_info": parts})
        content = {"images": images, "annotations": objects}
        folder = coco / "annotations"
        folder.mkdir(exist_ok=True)
        boxes = [{k: v for k, v in o.items() if "keypoints" not in k} for o in objects]
        for name, more in {
            "instances": {"categories": things, "annotations": boxes},
            "person_keypoints": {"categories": [person]},
            "panoptic": {"categories": builtin_meta.COCO_CATEGORIES, "annotations": segments},
        }.items():
            (folder / f"{name}_{split}.json").write_text(json.dumps({**content, **more}))


if __name__ == "__main__":
    main()
