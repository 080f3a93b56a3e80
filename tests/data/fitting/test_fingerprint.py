"""The fingerprint of a training set equals a slow count, from any source of its objects."""

import json
import math
import statistics

import numpy as np
import pytest

from d2ext.config.tiles import TileOptions
from d2ext.data.fitting.fingerprint import PERCENTS, fingerprint
from d2ext.data.fitting.fit import columns_fingerprint
from d2ext.data.records.cache import cached_coco_records
from d2ext.data.records.records import columns_of, join, relabeled, select
from d2ext.data.tiles.records import Tiles
from d2ext.data.validation.coco.fingerprint import table_fingerprint
from d2ext.data.validation.coco.table import coco_table

CLASSES = 3


def _records(seed=0, images=40):
    """Return dataset dicts with crowds, objects without a size, and images without objects."""
    rng = np.random.default_rng(seed)
    records = []
    for i in range(images):
        width, height = rng.integers(200, 900, 2).tolist()
        annotations = []
        for _ in range(int(rng.integers(0, 5))):
            x, y, w, h = (rng.random(4) * [100, 100, 90, 90]).tolist()
            mode = int(rng.integers(0, 2))
            box = [x, y, w, h] if mode else [x, y, x + w, y + h]
            crowd = int(rng.random() < 0.2)
            label = int(rng.integers(0, CLASSES))
            annotations.append(
                {"bbox": box, "bbox_mode": mode, "category_id": label, "iscrowd": crowd}
            )
        records.append(
            {"file_name": f"{i}.jpg", "image_id": i, "width": width, "height": height}
            | {"annotations": annotations}
        )
    records[0]["annotations"].append(
        {"bbox": [5, 5, 0, 4], "bbox_mode": 1, "category_id": 0, "iscrowd": 0}
    )
    return records


def _slow(records):
    """Return the fingerprint, counted object by object."""
    sizes, lengths, images_of, used = [], [], [set() for _ in range(CLASSES)], {}
    for i, record in enumerate(records):
        for a in record["annotations"]:
            x, y, w, h = a["bbox"]
            if a["bbox_mode"] == 0:
                w, h = w - x, h - y
            if a["iscrowd"] or w <= 0 or h <= 0:
                continue
            short = min(record["width"], record["height"])
            sizes.append(math.sqrt(w * h) / short)
            lengths.append(max(w, h) / short)
            images_of[a["category_id"]].add(i)
            used[i] = record
    sides = [sorted((r["width"], r["height"])) for r in used.values()]
    return {
        "images": len(used),
        "objects": len(sizes),
        "images_of_class": [len(images) for images in images_of],
        "short_side": _quantiles([short for short, _ in sides]),
        "aspect": _quantiles([long / short for short, long in sides]),
        "size": _quantiles(sizes),
        "length": _quantiles(lengths),
    }


def _quantiles(values):
    cuts = statistics.quantiles(values, n=100, method="inclusive")
    return {percent: pytest.approx(cuts[percent - 1], abs=1e-4) for percent in PERCENTS}


def _fields(found):
    return {name: getattr(found, name) for name in found.__struct_fields__}


def test_the_fingerprint_equals_a_slow_count():
    records = _records()
    assert _fields(columns_fingerprint(columns_of(records, boxes=True), CLASSES)) == _slow(records)


def test_selected_joined_and_relabeled_records_have_their_own_fingerprint():
    first, second = _records(1), _records(2)
    chosen = select(join([first, second]), np.arange(5, 60))
    records = [*first, *second][5:60]
    assert _fields(columns_fingerprint(columns_of(chosen, boxes=True), CLASSES)) == _slow(records)
    other = relabeled(chosen, [1, None, 0])  # class 1 is dropped
    changed = [
        [{**a, "category_id": {0: 1, 2: 0}[a["category_id"]]} for a in kept]
        for kept in ([a for a in r["annotations"] if a["category_id"] != 1] for r in records)
    ]
    records = [{**r, "annotations": a} for r, a in zip(records, changed, strict=True)]
    assert _fields(columns_fingerprint(columns_of(other, boxes=True), CLASSES)) == _slow(records)


def test_tiles_have_their_own_fingerprint():
    tiles = Tiles(_records(4), TileOptions(200))
    found = _fields(columns_fingerprint(columns_of(tiles, boxes=True), CLASSES))
    assert found == _slow([tiles[i] for i in range(len(tiles))])
    assert found["images"] > _slow(_records(4))["images"]


def test_a_cached_file_and_the_checker_agree(tmp_path, monkeypatch):
    """`d2ext check` reads the file with another reader than training."""
    monkeypatch.setenv("D2EXT_CACHE", str(tmp_path / "cache"))
    records = _records(3)
    records[0]["annotations"].pop()  # a box without a size, which is an error in a file
    content = {
        "images": [
            {"id": r["image_id"], "file_name": r["file_name"]}
            | {"width": r["width"], "height": r["height"]}
            for r in records
        ],
        "categories": [{"id": i, "name": f"class {i}"} for i in range(CLASSES)],
        "annotations": [],
    }
    for record in records:
        for a in record["annotations"]:
            x, y, w, h = a["bbox"]
            if a["bbox_mode"] == 0:
                w, h = w - x, h - y
            content["annotations"].append(
                {"id": len(content["annotations"]) + 1, "image_id": record["image_id"]}
                | {"category_id": a["category_id"], "bbox": [x, y, w, h], "area": w * h}
                | {"iscrowd": a["iscrowd"], "segmentation": []}
            )
    file = tmp_path / "a.json"
    file.write_text(json.dumps(content))
    cached = cached_coco_records(file, tmp_path)
    assert _fields(columns_fingerprint(columns_of(cached, boxes=True), CLASSES)) == _slow(records)
    assert _fields(table_fingerprint(coco_table(content))) == _slow(records)


def test_without_objects_there_is_no_fingerprint():
    records = [{"width": 100, "height": 100, "annotations": []}]
    assert columns_fingerprint(columns_of(records, boxes=True), CLASSES) is None


def test_objects_of_unknown_classes_and_images_of_unknown_size_do_not_count():
    boxes = np.array([[0.0, 0, 10, 10], [0, 0, 20, 20], [0, 0, 30, 30], [0, 0, np.nan, 1]])
    found = fingerprint(
        np.array([100, -1]),
        np.array([200, -1]),
        np.array([0, 1, 0, 0]),
        boxes,
        np.array([0, 0, 7, 0]),
        1,
    )
    assert (found.images, found.objects, found.size[50]) == (1, 1, 0.1)
    assert found.lines()[1] == (
        "objects   1, 1.0 per image; size 10 %, 10 % and 10 % of the short side (5, 50 and 95 % of"
        " them)"
    )


def test_many_objects_are_thinned_out_for_quantiles_only():
    count = 500_000
    sizes = np.linspace(10, 110, count)
    boxes = np.stack([np.zeros(count), np.zeros(count), sizes, sizes], axis=1)
    images = np.arange(count) // 5
    sides = np.full(count // 5, 1000)
    found = fingerprint(sides, sides, images, boxes, np.arange(count) % 2, 2)
    assert (found.images, found.objects) == (count // 5, count)
    assert found.images_of_class == [count // 5] * 2
    assert found.size[50] == pytest.approx(0.06, abs=1e-3)
