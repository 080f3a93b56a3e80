"""Measure the drawing of detections against Detectron2's Visualizer, and its share of a prediction.

    python benchmarks/overlays.py [--options KEY=VALUE ...]

Both draw 100 detections in a balloon photo with a long side of 1024 pixels, in turn: masks as run
lengths, boxes, class names and scores. The masks are outlines of the balloon photos, scaled to
this one. Then lite0, trained for a few iterations and with up to 100 detections per frame,
predicts a video of 30 frames of 640 x 480 pixels, and the same objects are drawn again.
"""

import argparse
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pycocotools.mask as mask_util
from common import ORIGINALS, paired, record
from detectron2.data.datasets.builtin_meta import COCO_CATEGORIES
from detectron2.utils.visualizer import Visualizer
from inference import LITE0, train

from d2ext import Predictor
from d2ext.data.formats.via import read_via
from d2ext.predict.writers import predict_files
from d2ext.visualize.overlay import draw_instances

ROUNDS, OBJECTS, SIDE = 5, 100, 1024
FRAMES, WIDTH, HEIGHT = 30, 640, 480
THINGS = [category for category in COCO_CATEGORIES if category["isthing"]]
METADATA = SimpleNamespace(
    thing_classes=[thing["name"] for thing in THINGS],
    thing_colors=[thing["color"] for thing in THINGS],
)


def crowded(records: list[dict]) -> tuple[np.ndarray, list[dict]]:
    """Return a photo and COCO results with objects of all photos."""
    photo = cv2.cvtColor(cv2.imread(records[0]["file_name"]), cv2.COLOR_BGR2RGB)
    zoom = SIDE / max(photo.shape)
    photo = cv2.resize(photo, None, fx=zoom, fy=zoom, interpolation=cv2.INTER_AREA)
    height, width = photo.shape[:2]
    rng = np.random.default_rng(0)
    results: list[dict] = []
    for source in records:
        scale = [width / source["width"], height / source["height"]]
        for x in source["annotations"]:
            polygons = [(np.reshape(p, (-1, 2)) * scale).ravel() for p in x["segmentation"]]
            mask = mask_util.merge(mask_util.frPyObjects(polygons, height, width))
            results.append(
                {
                    "category_id": len(results) % len(THINGS),
                    "bbox": mask_util.toBbox(mask).tolist(),
                    "segmentation": mask,
                    "score": float(rng.uniform(0.5, 1)),
                }
            )
    return photo, results[:OBJECTS]


def measure_photo(records: list[dict]) -> None:
    """Record the times to draw a crowded photo."""
    photo, results = crowded(records)
    size = photo.shape[1], photo.shape[0]
    x, y, w, h = np.array([r["bbox"] for r in results]).T
    boxes = np.stack([x, y, x + w, y + h], axis=1)
    labels = [f"{METADATA.thing_classes[r['category_id']]} {r['score']:.2f}" for r in results]
    colors = [np.array(METADATA.thing_colors[r["category_id"]]) / 255 for r in results]
    masks = [r["segmentation"] for r in results]

    def ours() -> float:
        start = time.perf_counter()
        draw_instances(photo, results, METADATA, size)
        return time.perf_counter() - start

    def theirs() -> float:
        start = time.perf_counter()
        drawn = Visualizer(photo).overlay_instances(
            boxes=boxes, masks=masks, labels=labels, assigned_colors=colors
        )
        drawn.get_image()
        return time.perf_counter() - start

    record("overlays", paired(ours, theirs, ROUNDS), "s")


def measure_video(records: list[dict], options: list[str]) -> None:
    """Record the times to draw the objects of a video, and to predict and write it."""
    photo = cv2.imread(records[0]["file_name"])
    with tempfile.TemporaryDirectory() as folder:
        film, run = Path(folder) / "film.mp4", Path(folder) / "run"
        writer = cv2.VideoWriter(str(film), cv2.VideoWriter.fourcc(*"mp4v"), 10, (WIDTH, HEIGHT))
        frames = [photo[8 * k :, 8 * k :][:HEIGHT, :WIDTH] for k in range(FRAMES)]
        for frame in frames:
            writer.write(frame)
        writer.release()
        train(LITE0, str(run), options)
        predictor = Predictor.from_run(run, score_threshold=0.05)
        found = list(predictor.predict(frame[..., ::-1] for frame in frames))
        print(f"{sum(len(f.objects) for f in found) / FRAMES:.0f} objects per frame", flush=True)

        def drawing() -> float:
            start = time.perf_counter()
            for f in found:
                draw_instances(f.image, f.objects, predictor.metadata, (WIDTH, HEIGHT))
            return time.perf_counter() - start

        def predicting() -> float:
            start = time.perf_counter()
            assert predict_files(predictor, [film], Path(folder) / "out") == 0
            return time.perf_counter() - start

        record("overlays_video", paired(drawing, predicting, ROUNDS), "s")


def main() -> None:
    """Record the figures."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--options", nargs="*", default=[])
    folder = ORIGINALS / "balloon/train"
    records = read_via(folder / "via_region_data.json", folder, ["balloon"])
    measure_photo(records)
    measure_video(records, [f"data.root={ORIGINALS}", *parser.parse_args().options])


if __name__ == "__main__":
    main()
