"""Measure predictions in tiles: AP on a mosaic, and time and memory for large photos.

    python benchmarks/tiles.py work_dirs/mask_rcnn_lite0_fpn_balloon [--megapixels 4 25 100]

The mosaic holds the validation photos of a run, each with half a tile's side as its short side. The
model predicts on the photos one by one, and on the mosaic with `data.tiles`, at the same scale;
both are compared with the same objects. *Twice* counts the objects with several detections (score
0.5, IoU 0.5), and *split* those with several detections that lie mostly inside of them.

Large photos are mosaics of the same photos, repeated. Each size is measured in its own process:
*photo* is the decoded photo, and *memory* what the prediction adds to the highest resident memory
of the process, which already holds the photo and has predicted on a small one.
"""

import argparse
import itertools
import resource
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence

import numpy as np
import pycocotools.mask
from common import machine
from detectron2.data import DatasetCatalog
from PIL import Image

from d2ext import Predictor
from d2ext.config.load import load_config
from d2ext.data.datasets.class_mapping import register_run_datasets
from d2ext.data.loading.image_io import read_photo
from d2ext.data.tiles.runs import decoded
from d2ext.evaluation.coco import CocoMetric
from d2ext.evaluation.instances import Detections, ground_truth_columns
from d2ext.evaluation.suite import test_sets

_WIDTH = 2600  # pixels of the mosaic for AP
_LIKELY = 0.5  # score of the detections that are counted


def photos(run: str, short: int) -> tuple[list[np.ndarray], list[dict]]:
    """Return the validation photos of a run with this short side, and their records."""
    cfg = load_config(f"{run}/config.yaml")
    register_run_datasets(cfg)
    images, records = [], []
    for name in test_sets(cfg.dataloader.val):
        for record in DatasetCatalog.get(name):
            photo = Image.fromarray(read_photo(record["file_name"], "RGB"))
            scale = short / min(photo.size)
            size = tuple(round(side * scale) for side in photo.size)
            images.append(np.asarray(photo.resize(size, Image.Resampling.BILINEAR)))
            factors = size[0] / photo.size[0], size[1] / photo.size[1]
            records.append(_scaled(record, factors))
    return images, records


def _scaled(record: dict, factors: Sequence[float]) -> dict:
    annotations = [
        {
            **{key: value for key, value in a.items() if key != "area"},
            "bbox": [v * factors[i % 2] for i, v in enumerate(a["bbox"])],
            "segmentation": [
                [v * factors[i % 2] for i, v in enumerate(p)] for p in a["segmentation"]
            ],
        }
        for a in record["annotations"]
    ]
    return {**record, "annotations": annotations}


def mosaic(
    images: Sequence[np.ndarray], width: int, height: int | None = None
) -> tuple[np.ndarray, list[tuple[int, int]]]:
    """Arrange images in rows.

    Args:
        images: Images (h, w, 3).
        width: Width of the mosaic in pixels.
        height: Height; images are repeated until it is reached. None uses each image once.

    Returns:
        The mosaic, and the left upper corner of each image in it.
    """
    rows: list[list[np.ndarray]] = [[]]
    for image in images if height is None else itertools.cycle(images):
        if rows[-1] and sum(i.shape[1] for i in rows[-1]) + image.shape[1] > width:
            if height and sum(max(i.shape[0] for i in row) for row in rows) >= height:
                break
            rows.append([])
        rows[-1].append(image)
    tops = np.cumsum([0, *(max(i.shape[0] for i in row) for row in rows)]).tolist()
    made = np.zeros((height or tops[-1], width, 3), np.uint8)
    corners = []
    for top, row in zip(tops, rows, strict=False):
        left = 0
        for image in row:
            place = made[top : top + image.shape[0], left : left + image.shape[1]]
            place[:] = image[: place.shape[0], : place.shape[1]]
            corners.append((left, top))
            left += image.shape[1]
    return made, corners


def accuracy(run: str, side: int, overlap: float) -> Iterator[str]:
    """Yield the rows of the table with AP on single photos and in tiles."""
    images, records = photos(run, side // 2)
    whole, corners = mosaic(images, _WIDTH)
    size = whole.shape[:2]
    annotations = [
        _moved_annotation(a, corner)
        for record, corner in zip(records, corners, strict=True)
        for a in record["annotations"]
    ]
    record = {"file_name": "mosaic", "image_id": 1, "height": size[0], "width": size[1]}
    single = _predictor(run, side // 2, score_threshold=0)
    truth = ground_truth_columns([{**record, "annotations": annotations}], single.classes)
    crops = [
        _moved(single(image).to_coco(1), corner, size)
        for image, corner in zip(images, corners, strict=True)
    ]
    options = [f"data.tiles={side}", f"data.tile_overlap={overlap}"]
    tiled = _predictor(run, side, options, score_threshold=0)
    joined = _moved(tiled(whole).to_coco(1), (0, 0), size)
    yield "| | bbox AP | segm AP | objects | detections | twice | split |"
    yield "|---|---|---|---|---|---|---|"
    tiles = f"tiles of {side}, overlap {overlap:g}"
    for name, found in (("photos", sum(crops, [])), (tiles, joined)):
        detections = _columns(found)
        results = CocoMetric()(truth, detections)
        twice, split = _counted(truth, detections, size)
        likely = int((detections.scores >= _LIKELY).sum())
        yield (
            f"| {name} | {results['bbox/AP']:.2f} | {results['segm/AP']:.2f} |"
            f" {len(annotations)} | {likely} | {twice} | {split} |"
        )


def _predictor(run: str, short: int, options: Sequence[str] = (), **arguments: float) -> Predictor:
    """Return a predictor that resizes images to a short side, at any length."""
    resize = "dataloader.val.mapper.augmentations[0]"
    sides = [f"{resize}.short_edge_length={short}", f"{resize}.max_size={4 * short}"]
    return Predictor.from_run(run, None, [*sides, *options], **arguments)


def _moved_annotation(annotation: dict, corner: tuple[int, int]) -> dict:
    polygons = [
        [v + corner[i % 2] for i, v in enumerate(polygon)] for polygon in annotation["segmentation"]
    ]
    box = [v + corner[i % 2] for i, v in enumerate(annotation["bbox"])]
    return {**annotation, "bbox": box, "segmentation": polygons}


def _moved(results: list[dict], corner: tuple[int, int], size: tuple[int, int]) -> list[dict]:
    made = []
    for result in results:
        x, y, width, height = result["bbox"]
        (runs,) = decoded([result["segmentation"]])
        mask = runs.moved(*corner).encoded(*size)
        box = [x + corner[0], y + corner[1], width, height]
        made.append({**result, "bbox": box, "segmentation": mask})
    return made


def _columns(results: list[dict]) -> Detections:
    return Detections(
        np.zeros(len(results), np.int64),
        np.array([r["category_id"] - 1 for r in results], np.int64),
        np.array([r["bbox"] for r in results], float).reshape(-1, 4),
        np.array([r["score"] for r in results]),
        [r["segmentation"] for r in results],
    )


def _counted(truth: object, found: Detections, size: tuple[int, int]) -> tuple[int, int]:
    """Return how many objects are detected twice, and how many are split."""
    masks = [m for m, s in zip(found.masks, found.scores, strict=True) if s >= _LIKELY]
    objects = [
        pycocotools.mask.merge(pycocotools.mask.frPyObjects(polygons, *size))
        for polygons in truth.segmentations
    ]
    iou = pycocotools.mask.iou(masks, objects, [0] * len(objects))
    inside = pycocotools.mask.iou(masks, objects, [1] * len(objects))  # over the detection's area
    twice = int(((iou >= 0.5).sum(axis=0) > 1).sum())
    split = int(((inside >= 0.5).sum(axis=0) > 1).sum())
    return twice, split


def cost(run: str, side: int, megapixels: float) -> None:
    """Print seconds, detections, and resident memory in MB for a photo of this size."""
    images, _ = photos(run, side // 2)
    tiled = _predictor(run, side, [f"data.tiles={side}"])
    length = round((megapixels * 1e6) ** 0.5)
    whole, _ = mosaic(images, length, length)
    tiled(whole[: 2 * side, : 2 * side])
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    start = time.perf_counter()
    prediction = tiled(whole)
    seconds = time.perf_counter() - start
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    found, photo = len(prediction.scores), whole.nbytes / 2**20
    print(f"| {megapixels:g} | {seconds:.1f} | {found} | {photo:.0f} | {after - before:.0f} |")


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", help="run directory of a model with masks, trained on polygons")
    parser.add_argument("--tiles", type=int, default=640, help="side of a tile (640)")
    parser.add_argument("--overlap", type=float, default=0.5, help="for the mosaic (0.5)")
    parser.add_argument("--megapixels", type=float, nargs="*", default=[4, 25, 100])
    parser.add_argument("--cost", type=float, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.cost:
        cost(args.run, args.tiles, args.cost)
        return
    print(f"{machine()}\n", flush=True)
    for line in accuracy(args.run, args.tiles, args.overlap):
        print(line, flush=True)
    if args.megapixels:
        print(
            "\n| megapixels | seconds | detections | photo MB | memory MB |\n|---|---|---|---|---|"
        )
    for size in args.megapixels:
        command = [sys.executable, __file__, args.run, "--tiles", str(args.tiles)]
        subprocess.run([*command, "--cost", str(size)], check=True)


if __name__ == "__main__":
    main()
