"""Fixtures: a valid COCO file and its images."""

import copy
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask


def valid_content() -> dict:
    """Return three images with five objects: polygons, both kinds of RLE, a crowd, gaps in ids."""
    image = {"width": 64, "height": 48}
    square = [10, 10, 30, 10, 30, 26, 10, 26]
    pixels = np.zeros((48, 64), np.uint8, order="F")
    pixels[5:15, 20:44] = 1
    text = mask.encode(pixels)
    plain = {"size": [48, 64], "counts": [20 * 48 + 5, 10, 38, 10, 64 * 48 - 20 * 48 - 63]}
    return {
        "info": {"year": 2026},
        "licenses": [],
        "images": [
            {"id": 3, "file_name": "a.jpg", **image, "license": 1},
            {"id": 7, "file_name": "sub/b.jpg", **image},
            {"id": 12, "file_name": "c.png", "width": 40, "height": 60},
        ],
        "categories": [{"id": 2, "name": "cat"}, {"id": 18, "name": "Hündin"}],
        "annotations": [
            annotation(1, 3, 2, [10, 10, 20, 16], 320, [square]),
            annotation(2, 3, 18, [0, 0, 64, 48], 1536, [[0, 0, 64, 0, 0, 48]]),
            annotation(5, 7, 2, [20, 5, 24, 10], 240, {**text, "counts": text["counts"].decode()}),
            annotation(9, 7, 18, [20, 5, 2, 10], 20, plain, iscrowd=1),
            annotation(11, 12, 2, [5, 5, 20.5, 30], 615, [[5, 5, 25.5, 5, 25.5, 35, 5, 35]]),
        ],
    }


def annotation(
    id_: int, image: int, category: int, bbox: list, area: float, shape: object, **more: object
) -> dict:
    """Return an entry of `annotations`."""
    return {
        "id": id_,
        "image_id": image,
        "category_id": category,
        "bbox": bbox,
        "area": area,
        "iscrowd": 0,
        "segmentation": shape,
        **more,
    }


def draw_photos(root: Path) -> None:
    """Write the images of `valid_content` to a folder."""
    (root / "sub").mkdir(parents=True)
    for i, entry in enumerate(valid_content()["images"]):
        size = (entry["width"], entry["height"])
        Image.new("RGB", size, (90 * i, 0, 0)).save(root / entry["file_name"])


@pytest.fixture
def content() -> dict:
    """Return a copy of the valid content, which a test may damage."""
    return copy.deepcopy(valid_content())


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Return the folder with the images of `content`."""
    root = tmp_path / "photos"
    draw_photos(root)
    return root


@pytest.fixture
def write_json(tmp_path: Path) -> Callable[[object], Path]:
    """Return a function that writes a JSON file."""

    def write(what: object, name: str = "coco.json") -> Path:
        path = tmp_path / name
        path.write_text(json.dumps(what))
        return path

    return write
