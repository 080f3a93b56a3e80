"""Sets that differ, or share images, are named; sets of one source are not."""

import re

import numpy as np
import pytest

from d2ext.data.validation.between_sets import common_images, compare_sets

CLASSES = ["cat", "dog", "kite"]


def _records(count, rng, folder="photos", sides=(400, 800), relative=(0.1, 0.3), chance=(0.5,) * 3):
    """Return dataset dicts; each class is in an image with its probability in `chance`."""
    records = []
    for i in range(count):
        side = int(rng.integers(*sides))
        size = side * rng.uniform(*relative)
        annotations = [
            {"bbox": [0, 0, size, size], "bbox_mode": 0, "category_id": c, "iscrowd": 0}
            for c in np.flatnonzero(rng.random(len(chance)) < chance).tolist()
        ]
        record = {"file_name": f"{folder}/{i}.jpg", "image_id": i, "height": side, "width": side}
        records.append({**record, "annotations": annotations})
    return records


def _found(train, val):
    return list(compare_sets(train, val, CLASSES, ("train", "val")))


@pytest.mark.parametrize("sizes", [(61, 13), (300, 75)])
def test_sets_of_one_source_do_not_differ(sizes):
    """Many rare classes make many comparisons, of numbers that are far from normal."""
    rng = np.random.default_rng(0)
    shares = 0.5 / np.arange(1, 81)
    classes = [f"class {i}" for i in range(80)]
    for _ in range(30):
        train, val = (
            _records(count, rng, folder, chance=shares)
            for count, folder in zip(sizes, ("train", "val"), strict=True)
        )
        assert not list(compare_sets(train, val, classes, ("train", "val")))


def test_a_rare_class_in_one_set_only_is_named():
    rng = np.random.default_rng(0)
    shares = 0.5 / np.arange(1, 81)
    classes = [f"class {i}" for i in range(80)]
    train = _records(400, rng, "train", chance=np.where(np.arange(80) == 40, 0, shares))
    val = _records(100, rng, "val", chance=np.where(np.arange(80) == 40, 0.2, shares))
    (line,) = compare_sets(train, val, classes, ("train", "val"))
    assert re.fullmatch(
        r"val differs from train: class 40 is in \d+% of its images, but in 0% of train's", line
    )


def test_large_differences_are_named():
    rng = np.random.default_rng(0)
    train = _records(100, rng, "train")
    (line,) = _found(train, _records(30, rng, "val", sides=(1200, 1600)))
    assert line.startswith("val differs from train: the median size of its images is 1")
    (line,) = _found(train, _records(30, rng, "val", relative=(0.4, 0.6)))
    here, there = map(float, re.findall(r"([\d.]+)%", line))
    assert "objects" in line and abs(here - 50) < 5 and abs(there - 20) < 3
    lines = _found(train, _records(60, rng, "val", chance=[0.05] * 3))
    assert len(lines) == 3 and "% of its images, but in " in lines[0]
    assert not _found(train, _records(3, rng, "val", relative=(0.4, 0.6)))  # too few to tell


def _files(tmp_path, contents):
    """Write images 0, 1, ... of both sets; return their dataset dicts."""
    rng = np.random.default_rng(0)
    sets = []
    for folder, files in zip("ab", zip(*contents, strict=True), strict=True):
        (tmp_path / folder).mkdir()
        for i, content in enumerate(files):
            (tmp_path / folder / f"{i}.jpg").write_bytes(content)
        sets.append(_records(len(contents), rng, str(tmp_path / folder)))
    return sets


def test_common_images_are_found_by_path_or_by_name_and_contents(tmp_path):
    contents = [(b"", b""), (b"one", b"three"), (b"two", b"owt"), (b"equal", b"equal")]
    a, b = _files(tmp_path, contents)
    assert common_images(a, b) == ([f"{tmp_path}/b/3.jpg"], False)
    assert common_images(a, a[1:]) == ([record["file_name"] for record in a[1:]], False)
    (line,) = _found(a, a[1:2])
    assert line.startswith("1 image of val") and "is also in train" in line


def test_contents_of_a_sample_of_many_images_are_compared(tmp_path):
    a, b = _files(tmp_path, [(b"equal", b"equal")] * 300)
    found, more = common_images(a, b)
    assert len(set(found)) == 200 and more
    assert any(line.startswith("at least 200 images of val") for line in _found(a, b))
