"""Sets that differ, or share images, are named; sets of one source are not."""

import re

import numpy as np
import pytest

from d2ext.data.validation.between_sets import common_images, compare_sets

CLASSES = ["cat", "dog", "kite"]


def _records(count, rng, folder="photos", sides=(400, 800), relative=(0.1, 0.3), chance=0.5):
    """Return dataset dicts; each class is in an image with the probability `chance`."""
    records = []
    for i in range(count):
        side = int(rng.integers(*sides))
        size = side * rng.uniform(*relative)
        annotations = [
            {"bbox": [0, 0, size, size], "bbox_mode": 0, "category_id": c, "iscrowd": 0}
            for c in range(3)
            if rng.random() < chance
        ]
        record = {"file_name": f"{folder}/{i}.jpg", "image_id": i, "height": side, "width": side}
        records.append({**record, "annotations": annotations})
    return records


def _found(train, val):
    return list(compare_sets(train, val, CLASSES, ("train", "val")))


@pytest.mark.parametrize("sizes", [(8, 2), (61, 13), (500, 100)])
def test_sets_of_one_source_do_not_differ(sizes):
    rng = np.random.default_rng(0)
    for _ in range(100):
        train = _records(sizes[0], rng, "train")
        assert not _found(train, _records(sizes[1], rng, "val"))


def test_large_differences_are_named():
    rng = np.random.default_rng(0)
    train = _records(100, rng, "train")
    (line,) = _found(train, _records(30, rng, "val", sides=(1200, 1600)))
    assert line.startswith("val differs from train: its images have a median size of 1")
    (line,) = _found(train, _records(30, rng, "val", relative=(0.4, 0.6)))
    here, there = map(float, re.findall(r"([\d.]+)%", line))
    assert "objects" in line and abs(here - 50) < 5 and abs(there - 20) < 3
    lines = _found(train, _records(30, rng, "val", chance=0.05))
    assert len(lines) == 3 and "of the images have" in lines[0]
    assert not _found(train, _records(3, rng, "val", relative=(0.4, 0.6)))  # too few to tell


def test_common_images_are_found_by_path_or_by_name_and_size(tmp_path):
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        for i in range(3):
            (tmp_path / folder / f"{i}.jpg").write_bytes(b"x" * (i + (folder == "b" and i == 1)))
    rng = np.random.default_rng(0)
    a, b = (_records(3, rng, str(tmp_path / folder)) for folder in ("a", "b"))
    assert common_images(a, b) == [f"{tmp_path}/b/2.jpg"]  # 0.jpg is empty, 1.jpg differs
    assert common_images(a, a[1:]) == [record["file_name"] for record in a[1:]]
    (line,) = _found(a, a[1:2])
    assert line.startswith("1 image of val") and "is also in train" in line
