"""Joined detections of tiles, with a model that returns exactly what each tile shows."""

import tracemalloc
from collections import Counter

import numpy as np
import pytest
from detectron2.evaluation import DatasetEvaluator
from hypothesis import given, settings
from hypothesis import strategies as st

from d2ext.config.tiles import TileOptions
from d2ext.data.loading.loader import build_test_loader
from d2ext.data.loading.mapper import Mapper
from d2ext.data.tiles.plan import plan_tiles
from d2ext.data.tiles.records import Tiles
from d2ext.errors import UserError
from d2ext.evaluation.instances import Detections
from d2ext.evaluation.predictions import predict
from d2ext.evaluation.tiles.join import JoinedTiles
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


def _loader(records, num_workers=0, **options):
    mapper = Mapper(False, augmentations=[], image_format="RGB")
    return build_test_loader(Tiles(records, OPTIONS), mapper, num_workers=num_workers, **options)


def _found(masks, classes, folder, model=None):
    """Return the detections of a painted photo that is evaluated in tiles."""
    record = record_of(paint(masks, classes, SIZE), masks, classes, folder / "photo.png")
    return predict(model or ColorModel(), _loader([record]), [1]).detections


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


@pytest.mark.parametrize("name", [n for n in SCENES if n not in ("around a corner",)])
def test_boxes_alone_are_joined(name, tmp_path):
    masks = SCENES[name]
    found = _found(masks, [0] * len(masks), tmp_path, ColorModel(masks=False))
    assert found.masks is None
    corners = np.hstack([found.boxes[:, :2], found.boxes[:, :2] + found.boxes[:, 2:]])
    expected = sorted(map(box_of, masks))
    assert sorted(corners.astype(int).tolist()) == [[int(v) for v in box] for box in expected]


def test_each_keypoint_is_that_of_the_best_tile(tmp_path):
    """The object is cut in both tiles, each of which sees one of its corners."""
    found = _found([_rectangle(30, 10, 80, 30)], [0], tmp_path, ColorModel(keypoints=True))
    assert found.keypoints.round(2).tolist() == [[[29.5, 9.5, 1], [79.5, 29.5, 1]]]


def test_workers_and_several_photos_change_nothing(tmp_path):
    records, expected = [], []
    for i, name in enumerate(SCENES):
        masks = SCENES[name]
        image = paint(masks, [0] * len(masks), SIZE)
        record = record_of(image, masks, [0] * len(masks), tmp_path / f"{i}.png")
        records.append({**record, "image_id": i})
        expected += [(i, encoded(mask)["counts"]) for mask in masks]
    found = predict(ColorModel(), _loader(records, num_workers=2), range(len(SCENES))).detections
    counts = [mask["counts"] for mask in found.masks]
    assert sorted(zip(found.image.tolist(), counts, strict=True)) == sorted(expected)


def test_a_photo_that_cannot_be_read_is_skipped_once(tmp_path):
    masks = SCENES["larger than a tile"]
    record = record_of(paint(masks, [0], SIZE), masks, [0], tmp_path / "photo.png")
    missing = {**record, "file_name": str(tmp_path / "none.png"), "image_id": 2}
    loader = _loader([missing, record], bad_images="skip")
    found = predict(ColorModel(), loader, [2, 1]).detections
    assert found.image.tolist() == [1]
    assert loader.left_out == [
        f"image {tmp_path / 'none.png'} is missing; add it, or remove its entry"
    ]


class _OneTileFails(Mapper):
    def __call__(self, record):
        if record["tile"][:2] == [48, 0] and record["image_id"] == 2:
            raise OSError("input/output error")
        return super().__call__(record)


def test_photos_with_missing_tiles_are_named(tmp_path, caplog):
    masks = SCENES["larger than a tile"]
    record = record_of(paint(masks, [0], SIZE), masks, [0], tmp_path / "photo.png")
    tiles = Tiles([{**record, "image_id": 2}, record], OPTIONS)
    mapper = _OneTileFails(False, augmentations=[], image_format="RGB")
    loader = build_test_loader(tiles, mapper, num_workers=0, bad_images="skip")
    found = predict(ColorModel(), loader, [2, 1]).detections
    assert found.image.tolist() == [1]
    named = f"tiles are missing of 1 photo, such as {tmp_path / 'photo.png'}: not evaluated"
    assert named in caplog.text


def test_a_selection_of_tiles_is_refused(tmp_path):
    masks = SCENES["larger than a tile"]
    record = record_of(paint(masks, [0], SIZE), masks, [0], tmp_path / "photo.png")
    mapper = Mapper(False, augmentations=[], image_format="RGB")
    loader = build_test_loader(Tiles([record], OPTIONS)[:3], mapper, num_workers=0)
    with pytest.raises(UserError, match=r"tiles are missing of 1 photo, such as .*photo\.png"):
        predict(ColorModel(), loader, [1])


class _Seen(DatasetEvaluator):
    """Keep the last inputs and outputs, as evaluators of Detectron2 do."""

    def reset(self):
        self.calls = []

    def process(self, inputs, outputs):
        self.calls.append((inputs, outputs))


def test_evaluators_of_detectron2_get_whole_photos(tmp_path):
    masks = [*SCENES["larger than a tile"], _rectangle(0, 0, 20, 8)]
    record = record_of(paint(masks, [0, 1], SIZE), masks, [0, 1], tmp_path / "photo.png")
    seen = _Seen()
    model = ColorModel(keypoints=True)
    predict(model, _loader([record]), [1], evaluators={"seen": seen}, needs_instances=False)
    (((sample,), (output,)),) = seen.calls
    assert sample["image_id"] == 1 and (sample["height"], sample["width"]) == SIZE
    assert "image" not in sample and "tile" not in sample
    found = output["instances"]
    assert found.image_size == SIZE and found.pred_classes.tolist() == [0, 1]
    assert np.array_equal(found.pred_masks.numpy(), masks)
    assert found.pred_boxes.tensor.tolist() == [box_of(mask) for mask in masks]
    assert found.pred_keypoints.shape == (2, 2, 3)


class _Panoptic(ColorModel):
    def forward(self, inputs):
        return [{**output, "sem_seg": None} for output in super().forward(inputs)]


def test_regions_are_not_joined(tmp_path):
    masks = SCENES["across two tiles"]
    with pytest.raises(UserError, match=r"data\.tiles joins only objects, .* instances, sem_seg"):
        _found(masks, [0] * 3, tmp_path, _Panoptic())


# Two tiles next to each other, which share the columns 48 to 64.
LEFT, RIGHT = [0, 0, 64, 64], [48, 0, 112, 64]


def _joined(*sides):
    """Return boxes x0 y0 x1 y1 (in the photo) and scores, joined from those of tiles in a row."""
    photo = JoinedTiles(64, 64 + 48 * (len(sides) - 1))
    for i, found in enumerate(sides):
        tile = [48 * i, 0, 48 * i + 64, 64]
        rows = np.array(found, float).reshape(-1, 5)
        rows[:, :4:2] -= tile[0]
        rows[:, 2:4] -= rows[:, :2]
        count = len(rows)
        labels = np.zeros(count, np.int64)
        photo.add(tile, Detections(labels, labels, rows[:, :4], rows[:, 4], None))
    joined = photo.joined()
    corners = joined.boxes + np.pad(joined.boxes[:, :2], ((0, 0), (2, 0)))
    return sorted(map(tuple, np.hstack([corners, joined.scores[:, None]]).tolist()))


def test_the_highest_score_counts():
    found = _joined([(30, 10, 64, 30, 0.6)], [(48, 10, 80, 30, 0.9)])
    assert found == [(30, 10, 80, 30, 0.9)]


def test_parts_that_disagree_are_two_objects():
    left, right = (30, 10, 64, 30, 0.9), (48, 25, 80, 45, 0.9)
    assert _joined([left], [right]) == [left, right]


def test_an_unlikely_detection_joins_no_likely_ones():
    """A box around both objects is as unlikely as without tiles, and does not enlarge them."""
    left, both = (30, 10, 64, 30, 0.9), (30, 10, 64, 60, 0.1)
    right = (48, 10, 80, 30, 0.8)
    assert _joined([left, both], [right]) == [(30, 10, 64, 60, 0.1), (30, 10, 80, 30, 0.9)]
    assert _joined([both], [right]) == [both, right]


def test_a_remnant_at_the_border_is_a_part():
    """The left tile sees the whole object; a bad box of the rest of it is not a second one."""
    whole = (30, 10, 58, 50, 0.9)
    assert _joined([whole], [(48, 10, 58, 20, 0.4)]) == [whole]
    within = (50, 10, 58, 20, 0.4)  # is not cut: another object in front of the first one
    assert _joined([whole], [within]) == sorted([whole, within])


def test_a_remnant_may_be_larger_than_the_object_there():
    whole = (30, 10, 58, 50, 0.9)
    for right in (57, 59):
        assert _joined([whole], [(48, 10, right, 50, 0.4)]) == [whole]


def test_the_same_object_with_another_score_is_counted_once():
    """Both tiles see the object whole, or the one with the higher score sees a part of it."""
    found = (50, 10, 60, 30, 0.9)
    assert _joined([found], [(50, 11, 60, 30, 0.3)]) == [found]
    remnant = (48, 10, 58, 50, 0.9)
    assert _joined([(30, 10, 58, 50, 0.4)], [remnant]) == [remnant]


def test_a_small_object_beside_a_large_one_stays():
    """Only one tile finds the large object."""
    large, small = (10, 5, 64, 60, 0.9), (50, 20, 60, 30, 0.8)
    assert _joined([large, small], [(50, 20, 60, 30, 0.7)]) == [large, small]


def test_a_whole_object_in_front_of_a_large_one_stays():
    large, small = (10, 5, 64, 60, 0.9), (50, 20, 60, 30, 0.8)
    assert _joined([large, small], [(48, 5, 100, 60, 0.9)]) == [(10, 5, 100, 60, 0.9), small]


def test_scores_may_decrease_along_an_object():
    """Each tile's score is alike that of the next one, but not that of the first one."""
    found = _joined([(10, 10, 64, 30, 0.95)], [(48, 10, 112, 30, 0.6)], [(96, 10, 150, 30, 0.4)])
    assert found == [(10, 10, 150, 30, 0.95)]


def test_many_tiles_take_little_memory():
    tiles = plan_tiles(10000, 10000, 256, 51)
    assert len(tiles) > 2000
    photo, label = JoinedTiles(10000, 10000), np.zeros(1, np.int64)
    for tile in tiles.tolist():
        box = np.array([[100.0, 100, 20, 20]])
        photo.add(tile, Detections(label, label, box, np.ones(1), None))
    tracemalloc.start()
    found = photo.joined()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(found.scores) == len(tiles) and peak < 30 * 2**20


def test_neighbors_are_paired_one_to_one():
    """All boxes overlap in the shared region."""
    left = [(30, 10, 64, 30, 0.9), (30, 18, 64, 38, 0.8)]
    right = [(48, 11, 80, 31, 0.7), (48, 19, 80, 39, 0.9)]
    assert _joined(left, right) == [(30, 10, 80, 31, 0.9), (30, 18, 80, 39, 0.9)]


def test_tiles_without_detections_are_joined():
    assert _joined([], []) == []
    assert _joined([], [(90, 5, 95, 9, 0.5)]) == [(90, 5, 95, 9, 0.5)]


BOXES = st.tuples(
    st.lists(st.integers(0, 64), min_size=2, max_size=2, unique=True),
    st.lists(st.integers(0, 64), min_size=2, max_size=2, unique=True),
    st.floats(0.05, 1),
)


@settings(max_examples=200)
@given(st.lists(BOXES, max_size=4), st.lists(BOXES, max_size=4))
def test_every_object_contains_one_of_its_detections(left, right):
    sides = [
        [(min(xs) + tile[0], min(ys), max(xs) + tile[0], max(ys), score) for xs, ys, score in found]
        for tile, found in ((LEFT, left), (RIGHT, right))
    ]
    every, joined = sum(sides, []), _joined(*sides)
    assert max((o[4] for o in joined), default=0) == max((o[4] for o in every), default=0)
    for x0, y0, x1, y1, score in joined:
        assert any(score == other[4] for other in every)
        assert any(x0 <= o[0] and y0 <= o[1] and o[2] <= x1 and o[3] <= y1 for o in every)
