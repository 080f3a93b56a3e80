"""Generate a COCO file of any size, realistic enough to be parsed and checked like COCO's.

python benchmarks/coco_file.py PATH [IMAGES OBJECTS]
"""

import sys
from pathlib import Path

import msgspec
import numpy as np

IMAGES, OBJECTS = 118_287, 860_000  # of COCO's train2017
CLASSES = 80
_CHUNK = 20_000  # objects that are in memory at once


def make_coco(
    path: str | Path, images: int = IMAGES, objects: int = OBJECTS, seed: int = 0
) -> None:
    """Write a COCO file with as many bytes per object as COCO's train2017 (about 550).

    Each object is a polygon in its image that rarely crosses itself. More than half of them are
    bent, so that their outlines turn both ways around their centers, as in COCO. One in a hundred
    is a crowd with an uncompressed RLE. Area and box are the mask's, ids start at 1.

    Args:
        path: Path of the file; its folder must exist.
        images: Number of images, 640 x 480 or upright.
        objects: Number of annotations, a few of them crowds.
        seed: The same seed gives the same file.
    """
    rng = np.random.default_rng(seed)
    upright = rng.random(images) < 0.25
    sizes = np.where(upright[:, None], [480, 640], [640, 480])
    categories = [{"supercategory": "thing", "id": i + 1, "name": f"class{i}"} for i in range(80)]
    with open(path, "wb") as f:
        f.write(b'{"info": {"description": "made for benchmarks"}, "licenses": [], "images": [')
        entries = (
            msgspec.json.encode(
                {
                    "license": 1,
                    "file_name": f"{i + 1:012d}.jpg",
                    "coco_url": f"http://images.example.org/train2017/{i + 1:012d}.jpg",
                    "height": h,
                    "width": w,
                    "date_captured": "2013-11-14 11:18:45",
                    "id": i + 1,
                }
            )
            for i, (w, h) in enumerate(sizes.tolist())
        )
        f.write(b", ".join(entries))
        f.write(b'], "annotations": [')
        for first in range(0, objects, _CHUNK):
            count = min(_CHUNK, objects - first)
            made = _annotations(rng, first, count, sizes)
            f.write((b", " if first else b"") + msgspec.json.encode(made)[1:-1])
        f.write(b'], "categories": ' + msgspec.json.encode(categories) + b"}")


def _annotations(rng: np.random.Generator, first: int, count: int, sizes: np.ndarray) -> list:
    image = rng.integers(0, len(sizes), count)
    width, height = sizes[image].T
    category = (rng.zipf(1.3, count) - 1) % CLASSES + 1  # few frequent classes, many rare ones
    # Sides spread over four octaves, as photos have them.
    radius = np.minimum(5 * 2 ** rng.uniform(0, 5, count), np.minimum(width, height) / 2 - 1)
    x, y = (rng.uniform(radius + 1, side - radius - 1) for side in (width, height))
    corners = rng.geometric(1 / 22, count) + 5
    starts = np.concatenate([[0], np.cumsum(corners)[:-1]])
    owner = np.repeat(np.arange(count), corners)
    angle = 2 * np.pi * (np.arange(corners.sum()) - starts[owner]) / corners[owner]
    reach = radius[owner] * rng.uniform(0.6, 1, len(owner))
    dx, dy = reach * np.cos(angle), reach * np.sin(angle)
    bent = (rng.random(count) < 0.7)[owner] * 2.0
    dx = (dx + bent * dy**2 / radius[owner]) / (1 + bent)
    points = np.stack([x[owner] + dx, y[owner] + dy], 1)
    points = np.round(points, 2)
    low, high = np.minimum.reduceat(points, starts), np.maximum.reduceat(points, starts)
    after = np.arange(len(owner)) + 1
    after[starts + corners - 1] = starts
    cross = points[:, 0] * points[after, 1] - points[after, 0] * points[:, 1]
    areas = np.round(np.abs(np.add.reduceat(cross, starts)) / 2, 4)
    flat, boxes = points.ravel().tolist(), np.round(np.hstack([low, high - low]), 2).tolist()
    columns = zip(
        image.tolist(), category.tolist(), boxes, areas.tolist(), starts.tolist(), corners.tolist(),
        strict=True,
    )  # fmt: skip
    made = []
    for i, (index, class_id, box, area, start, n) in enumerate(columns, start=first):
        crowd = i % 100 == 99
        segmentation = [flat[2 * start : 2 * (start + n)]]
        if crowd:
            segmentation, box, area = _crowd(box, *sizes[index].tolist())
        made.append(
            {
                "segmentation": segmentation,
                "area": area,
                "iscrowd": int(crowd),
                "image_id": index + 1,
                "bbox": box,
                "category_id": class_id,
                "id": i + 1,
            }
        )
    return made


def _crowd(box: list[float], width: int, height: int) -> tuple[dict, list[float], float]:
    """Return a box in whole pixels as an uncompressed RLE (columns, background first)."""
    x, y, w, h = (int(v) for v in box)
    w, h = max(w, 1), max(h, 1)
    counts = [x * height + y, *([h, height - h] * w)][:-1]
    counts.append(width * height - sum(counts))
    return {"counts": counts, "size": [height, width]}, [x, y, w, h], float(w * h)


if __name__ == "__main__":
    make_coco(sys.argv[1], *map(int, sys.argv[2:4]))
