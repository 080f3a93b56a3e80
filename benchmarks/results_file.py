"""Generate a COCO results file of any size, with detections like those of a detector.

python benchmarks/results_file.py ANNOTATIONS.json PATH [DETECTIONS]
"""

import json
import sys
from pathlib import Path

import msgspec
import numpy as np
import pycocotools.mask

DETECTIONS = 500_000  # 100 for each image of COCO's val2017
_CHUNK = 20_000  # detections that are in memory at once
_CORNERS = np.exp(2j * np.pi * np.arange(24) / 24)


def make_results(
    annotations: str | Path, path: str | Path, detections: int = DETECTIONS, seed: int = 0
) -> None:
    """Write detections of the objects of a COCO file, with boxes and masks.

    Every object has three detections, each worse than the one before. The other detections are
    anywhere in the images, with low scores. Masks are ellipses in their boxes, as compressed RLE.

    Args:
        annotations: Path of the COCO file.
        path: Path of the results file; its folder must exist.
        detections: Number of detections.
        seed: The same seed gives the same file.
    """
    rng = np.random.default_rng(seed)
    content = json.loads(Path(annotations).read_bytes())
    sizes = {image["id"]: (image["height"], image["width"]) for image in content["images"]}
    ids = np.array(list(sizes))
    objects = [a for a in content["annotations"] if not a["iscrowd"]]
    columns = ("image_id", "category_id", "bbox")
    image, label, boxes = (np.array([a[name] for a in objects]) for name in columns)
    found = np.tile(np.arange(len(objects)), 3)[:detections]
    others = detections - len(found)
    picked = rng.integers(0, len(objects), others)  # sizes and classes are those of objects
    which = np.concatenate([found, picked])
    image, label, boxes = image[which], label[which], boxes[which]
    image[len(found) :] = rng.choice(ids, others)
    wrong = rng.normal(0, 1, boxes.shape) * np.tile(boxes[:, 2:], 2)
    wrong[: len(found)] *= np.repeat([0.05, 0.15, 0.3], len(objects))[: len(found), None]
    boxes = boxes + wrong
    scores = np.concatenate([rng.beta(4, 2, len(found)), rng.beta(1, 6, others)])
    height, width = np.array([sizes[i] for i in image.tolist()]).T
    x0, x1 = (np.clip(v, 0, width) for v in (boxes[:, 0], boxes[:, 0] + np.abs(boxes[:, 2])))
    y0, y1 = (np.clip(v, 0, height) for v in (boxes[:, 1], boxes[:, 1] + np.abs(boxes[:, 3])))
    boxes = np.round(np.stack([x0, y0, x1 - x0, y1 - y0], 1), 2)
    order = np.lexsort([-scores, image])
    with open(path, "wb") as f:
        for first in range(0, detections, _CHUNK):
            rows = order[first : first + _CHUNK]
            masks = _ellipses(boxes[rows], height[rows], width[rows])
            columns = (image[rows], label[rows], boxes[rows], np.round(scores[rows], 6))
            made = [
                {"image_id": i, "category_id": c, "bbox": box, "score": s, "segmentation": mask}
                for i, c, box, s, mask in zip(*(v.tolist() for v in columns), masks, strict=True)
            ]
            f.write((b", " if first else b"[") + msgspec.json.encode(made)[1:-1])
        f.write(b"]")


def _ellipses(boxes: np.ndarray, heights: np.ndarray, widths: np.ndarray) -> list[dict]:
    masks = []
    rows = zip(boxes.tolist(), heights.tolist(), widths.tolist(), strict=True)
    for (x, y, w, h), height, width in rows:
        xs, ys = x + w / 2 * (1 + _CORNERS.real), y + h / 2 * (1 + _CORNERS.imag)
        polygon = np.stack([xs, ys], 1).reshape(1, -1)
        (rle,) = pycocotools.mask.frPyObjects(polygon.tolist(), height, width)
        masks.append({"size": [height, width], "counts": rle["counts"].decode("ascii")})
    return masks


if __name__ == "__main__":
    make_results(sys.argv[1], sys.argv[2], *map(int, sys.argv[3:4]))
