"""Joined detections of tiles, with a model that returns exactly what each tile shows."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from d2ext.config.tiles import TileOptions
from d2ext.data.loading.loader import build_test_loader
from d2ext.data.loading.mapper import Mapper
from d2ext.data.tiles.records import Tiles
from d2ext.evaluation.predictions import predict
from tests.painted import ColorModel, box_of, encoded, paint, record_of

SIZE = 100, 150  # height and width of a photo
OPTIONS = TileOptions(64, 0.25)  # tiles start at 0, 36 and 0, 48, 86


def _disk(x, y, radius):
    rows, columns = np.indices(SIZE)
    return (columns - x) ** 2 + (rows - y) ** 2 <= radius**2


def _rectangle(x0, y0, x1, y1):
    mask = np.zeros(SIZE, bool)
    mask[y0:y1, x0:x1] = True
    return mask


def _found(masks, classes, folder, model=None):
    """Return the detections of a painted photo that is evaluated in tiles."""
    record = record_of(paint(masks, classes, SIZE), masks, classes, folder / "photo.png")
    mapper = Mapper(False, augmentations=[], image_format="RGB")
    loader = build_test_loader(Tiles([record], OPTIONS), mapper, num_workers=0)
    return predict(model or ColorModel(), loader, [1]).detections


def _check(masks, classes, detections):
    """Check that the detections are the masks to the pixel, each one once."""
    expected = Counter(
        (label, tuple(box_of(mask)), encoded(mask)["counts"])
        for mask, label in zip(masks, classes, strict=True)
    )
    boxes = np.hstack([detections.boxes[:, :2], detections.boxes[:, :2] + detections.boxes[:, 2:]])
    assert expected == Counter(
        (label, tuple(box), rle["counts"])
        for label, box, rle in zip(
            detections.label.tolist(), boxes.astype(int).tolist(), detections.masks, strict=True
        )
    )


SCENES = {
    "smaller than a tile": [_disk(20, 20, 9), _disk(75, 50, 9), _disk(130, 85, 9)],
    "across two tiles": [_disk(50, 20, 12), _disk(96, 20, 12), _disk(20, 50, 12)],
    "across four tiles": [_disk(56, 50, 14)],
    "larger than a tile": [_disk(75, 50, 45)],
    "through all tiles of a row": [_rectangle(0, 45, 150, 52)],
    "the entire photo": [_rectangle(0, 0, *SIZE[::-1])],
    "a single pixel": [_rectangle(50, 40, 51, 41)],
    "in the shared region": [_rectangle(50, 10, 62, 30)],
    "up to the border of a tile": [_rectangle(30, 10, 48, 30), _rectangle(64, 10, 80, 30)],
    "neighbors": [_rectangle(40, 10, 56, 30), _rectangle(56, 10, 70, 30)],
    "neighbors along the seam": [_rectangle(40, 0, 70, 20), _rectangle(40, 20, 70, 40)],
    "around a corner": [_rectangle(50, 0, 56, 80) | _rectangle(50, 74, 150, 80)],
    "two arms in one tile": [
        _rectangle(10, 5, 20, 35) | _rectangle(10, 5, 100, 12) | _rectangle(10, 28, 100, 35)
    ],
}


@pytest.mark.parametrize("name", SCENES)
def test_objects_are_found_once_and_to_the_pixel(name, tmp_path):
    masks = SCENES[name]
    _check(masks, [0] * len(masks), _found(masks, [0] * len(masks), tmp_path))


@settings(max_examples=40)
@given(st.data())
def test_any_rectangles_are_found_once_and_to_the_pixel(tmp_path_factory, data):
    """They touch each other, have one class or two, and are smaller or larger than a tile."""
    taken, masks = np.zeros(SIZE, bool), []
    for _ in range(data.draw(st.integers(1, 8))):
        xs, ys = (sorted(data.draw(st.tuples(*[st.integers(0, n)] * 2))) for n in SIZE[::-1])
        mask = _rectangle(xs[0], ys[0], xs[1], ys[1])
        if mask.any() and not (mask & taken).any():
            masks.append(mask)
            taken |= mask
    classes = data.draw(st.lists(st.integers(0, 1), min_size=len(masks), max_size=len(masks)))
    _check(masks, classes, _found(masks, classes, tmp_path_factory.mktemp("photo")))
