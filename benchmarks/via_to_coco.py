"""Measure the conversion of the balloon annotations to COCO by the guide's script and d2ext.

    python benchmarks/via_to_coco.py

The script is that of MMDetection's guide, line by line, with cv2.imread in place of mmcv.imread,
and json.load and json.dump in place of mmengine's load and dump, which call them. It decodes every
photo to find its size. The annotations are those of the original photos.
"""

import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import cv2
from common import ORIGINALS, record

from d2ext.data.convert import convert_to_coco

ROUNDS = 15


def guide(ann_file: Path, out_file: Path, image_prefix: Path) -> None:
    """Convert like `convert_balloon_to_coco` in the guide."""
    with open(ann_file) as f:
        data_infos = json.load(f)
    annotations, images, obj_count = [], [], 0
    for idx, v in enumerate(data_infos.values()):
        filename = v["filename"]
        height, width = cv2.imread(str(image_prefix / filename)).shape[:2]
        images.append(dict(id=idx, file_name=filename, height=height, width=width))
        for _, obj in v["regions"].items():
            assert not obj["region_attributes"]
            obj = obj["shape_attributes"]
            px, py = obj["all_points_x"], obj["all_points_y"]
            poly = [(x + 0.5, y + 0.5) for x, y in zip(px, py, strict=True)]
            poly = [p for x in poly for p in x]
            x_min, y_min, x_max, y_max = (min(px), min(py), max(px), max(py))
            annotations.append(
                dict(
                    image_id=idx,
                    id=obj_count,
                    category_id=0,
                    bbox=[x_min, y_min, x_max - x_min, y_max - y_min],
                    area=(x_max - x_min) * (y_max - y_min),
                    segmentation=[poly],
                    iscrowd=0,
                )
            )
            obj_count += 1
    categories = [{"id": 0, "name": "balloon"}]
    content = dict(images=images, annotations=annotations, categories=categories)
    with open(out_file, "w") as f:
        json.dump(content, f)


def seconds(function: Callable, *args: object) -> float:
    """Return the seconds that a call takes."""
    start = time.perf_counter()
    function(*args)
    return time.perf_counter() - start


def main() -> None:
    """Run both in turn."""
    folder = ORIGINALS / "balloon/train"
    via = folder / "via_region_data.json"
    theirs, ours = [], []
    with tempfile.TemporaryDirectory() as out:
        for i in range(ROUNDS):  # each to a new file, like a first conversion
            theirs.append(seconds(guide, via, Path(out) / f"guide{i}.json", folder))
            made = Path(out) / f"d2ext{i}.json"
            ours.append(seconds(convert_to_coco, "via", via, folder, made, ["balloon"]))
        count = len(json.loads(made.read_text())["images"])
    print(f"{count} images")
    record("via_convert", list(zip(ours, theirs, strict=True)), "s")


if __name__ == "__main__":
    main()
