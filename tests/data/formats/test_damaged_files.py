"""Annotation files damaged at random give one clear error or a correct result, quickly."""

import copy
import json
import math
import os
import random
import time

import numpy as np
import pytest
from pycocotools import mask

from d2ext.data.formats.coco import coco_classes, read_coco, to_coco
from d2ext.data.formats.detect_format import detect_format
from d2ext.data.formats.middle import middle_classes, read_middle
from d2ext.errors import UserError

ODD = [
    None,
    True,
    -1,
    0,
    0.5,
    10**400,
    1e308,
    -1e308,
    float("nan"),
    float("inf"),
    10**9,
    2**31,
    "",
    "7",
    "../../etc/passwd",
    "/etc/passwd",
    "a\0b",
    "sub/../../x.jpg",
    "\ud800",
    "ÄÖ猫",
    [],
    {},
    [[]],
    [None],
    {"size": [8, 10], "counts": "0" * 50},
    {"size": [8, 10], "counts": [2**40, -(2**40) + 80]},
    {"size": [8, 10], "counts": [0] * 1000},
    {"size": [2**31, 2**31], "counts": [2**62]},
]


def _coco():
    pixels = np.zeros((8, 10), np.uint8, order="F")
    pixels[2:5, 3:9] = 1
    rle = mask.encode(pixels)
    rle["counts"] = rle["counts"].decode()
    annotation = {"iscrowd": 0, "area": 16, "bbox": [1, 1, 4, 4], "image_id": 7}
    masks = [[[1, 1, 5, 1, 5, 5]], rle, {"size": [8, 10], "counts": [9, 4, 67]}]
    return {
        "info": {},
        "images": [
            {"id": 7, "file_name": "sub/a.jpg", "height": 8, "width": 10},
            {"id": 9, "file_name": "b.jpg", "height": 8, "width": 10},
        ],
        "categories": [{"id": 18, "name": "dog"}, {"id": 3, "name": "cat"}],
        "annotations": [
            {**annotation, "id": i + 1, "category_id": 3, "segmentation": m}
            for i, m in enumerate(masks)
        ],
    }


def _middle():
    coco = _coco()
    instances = [
        {"bbox": [1, 1, 5, 5], "bbox_label": i % 2, "ignore_flag": 0, "mask": a["segmentation"]}
        for i, a in enumerate(coco["annotations"])
    ]
    size = {"height": 8, "width": 10}
    return {
        "metainfo": {"classes": ["cat", "dog"]},
        "data_list": [
            {"img_path": "sub/a.jpg", **size, "instances": instances},
            {"img_path": "b.jpg", **size, "instances": []},
        ],
    }


def _places(node):
    """Yield (container, key) of everything below `node`."""
    items = node.items() if isinstance(node, dict) else enumerate(node)
    for key, value in list(items):
        yield node, key
        if isinstance(value, dict | list):
            yield from _places(value)


def _damage(content, rng):
    """Return the file's bytes with damage to some of its values or its text."""
    content = copy.deepcopy(content)
    for _ in range(rng.choice([0, 1, 1, 1, 2, 5])):
        places = list(_places(content))
        if not places:
            break
        node, key = rng.choice(places)
        action = rng.randrange(4)
        if action == 0:
            del node[key]
        elif action == 1:
            other, name = rng.choice(places)
            if name in other if isinstance(other, dict) else name < len(other):
                node[key] = copy.deepcopy(other[name])
        elif action == 2 and isinstance(node, list):
            node.append(copy.deepcopy(node[key]))
        else:
            node[key] = copy.deepcopy(rng.choice(ODD))
    text = json.dumps(content).encode()
    action = rng.randrange(12)
    if action == 0:
        return text[: rng.randrange(len(text))]
    if action == 1:
        return text.decode().encode(rng.choice(["utf-16", "utf-32", "utf-8-sig", "cp500"]))
    if action == 2:
        at = rng.randrange(len(text))
        return text[:at] + bytes([rng.randrange(256)]) + text[at + 1 :]
    if action == 3:
        at, depth = rng.randrange(len(text)), rng.choice([50, 100_000])
        return text[:at] + b"[" * depth + b"]" * depth * rng.randrange(2) + text[at:]
    return text


def _check(records, classes, root):
    """Check the type of every value, and that to_coco and pycocotools accept the result."""
    for record in records:
        assert record["file_name"].startswith(f"{root}/")
        assert os.path.normpath(record["file_name"]).startswith(f"{root}/")
        assert type(record["image_id"]) is int
        assert type(record["height"]) is type(record["width"]) is int
        for a in record["annotations"]:
            x0, y0, x1, y1 = a["bbox"]
            assert x1 > x0 and y1 > y0 and math.isfinite(x0 + y0 + x1 + y1)
            assert 0 <= a["category_id"] < len(classes) and a["iscrowd"] in (0, 1)
            segmentation = a.get("segmentation")
            if isinstance(segmentation, dict):
                assert segmentation["size"] == [record["height"], record["width"]]
                if record["height"] * record["width"] < 10**6:
                    mask.decode(segmentation)
            elif segmentation:
                for polygon in segmentation:
                    assert len(polygon) >= 6 and len(polygon) % 2 == 0
                    assert all(type(c) in (int, float) and abs(c) < 1e6 for c in polygon)
    made = to_coco(records, classes, root)
    json.dumps(made, allow_nan=False)


@pytest.mark.parametrize(
    "seeds",
    [range(100), pytest.param(range(100, 1000), marks=pytest.mark.nightly)],
    ids=["100", "1000"],
)
@pytest.mark.parametrize("format_", ["coco", "middle"])
def test_a_damaged_file_gives_an_error_or_a_correct_result(tmp_path, format_, seeds):
    file, root, outcomes = tmp_path / "a.json", tmp_path / "photos", {True: 0, False: 0}
    content = {"coco": _coco, "middle": _middle}[format_]()
    for seed in seeds:
        file.write_bytes(_damage(content, random.Random(seed)))
        start = time.perf_counter()
        try:
            detect_format(file)
            if format_ == "coco":
                classes = coco_classes(file)
                records, ids = read_coco(file, root)
                assert sorted(ids.values()) == list(range(len(classes)))
            else:
                classes = middle_classes(file)
                records = read_middle(file, root)
            _check(records, classes, root)
            outcomes[True] += 1
        except UserError as e:
            assert len(str(e)) < 2000 and "\n" not in str(e), f"seed {seed}: {e}"
            assert str(file) in str(e), f"seed {seed}: {e}"
            outcomes[False] += 1
        except Exception as e:
            raise AssertionError(f"seed {seed}: {e!r}: {file.read_bytes()[:3000]}") from e
        assert time.perf_counter() - start < 2, f"seed {seed}"
    assert min(outcomes.values()) > len(seeds) / 10, outcomes  # the cases include both
