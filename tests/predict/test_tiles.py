"""Photos that a Predictor cuts into tiles: exact objects, and memory that does not grow."""

import functools
import tracemalloc

import numpy as np
import pytest
from PIL import Image

import d2ext
from d2ext.config.tiles import TileOptions
from d2ext.data.loading.loader import build_test_loader
from d2ext.data.loading.mapper import Mapper
from d2ext.data.tiles.records import Tiles
from d2ext.evaluation.predictions import predict
from tests.painted import ColorModel, paint, record_of

RECIPE = "custom/mask_rcnn_lite0_fpn.py"
UNCHANGED = ["dataloader.val.mapper.augmentations=[]", "model.input_format=RGB"]


def _predictor(model, side, *overrides, **arguments):
    cfg = d2ext.get_config(RECIPE, [f"data.tiles={side}", *UNCHANGED, *overrides])
    return d2ext.Predictor(model, cfg, ["a", "b"], **arguments)


def _scene(height, width):
    """Return an image, and the masks of an object in each corner and of a large one."""
    rows, columns = np.indices((height, width))
    centers = [(y, x) for y in (40, height - 40) for x in (40, width - 40)]
    masks = [(rows - y) ** 2 + (columns - x) ** 2 < 30**2 for y, x in centers]
    large = (abs(rows - height // 2) < 100) & (abs(columns - width // 2) < 120)
    masks.append(large)
    return paint(masks, [0, 0, 1, 1, 0], (height, width)), masks


@pytest.mark.parametrize("batch_size", [1, 5])
def test_objects_are_exact(batch_size):
    image, masks = _scene(500, 700)
    model = ColorModel()
    predictor = _predictor(model, 128, score_threshold=0)
    small = image[:90, :100]
    found, other = predictor.predict([image, Image.fromarray(small)], batch_size)
    assert found.image is image and len(found.scores) == 5
    assert np.array_equal(np.sort(found.all_scores)[::-1], found.scores)
    for mask, label, k in zip(found.masks, found.classes, range(5), strict=True):
        assert np.array_equal(mask, masks[k]) and label == (0, 0, 1, 1, 0)[k]
    assert model.largest == 128 * 128
    assert len(other.scores) == 1 and np.array_equal(other.masks[0], masks[0][:90, :100])


def test_classes_and_the_threshold_choose_joined_objects():
    image, masks = _scene(500, 700)
    threshold = 1 - 3.5 / 2**16  # ColorModel's scores are 1 - k / 2**16
    found = _predictor(ColorModel(), 128, score_threshold=threshold, keep=["b"])(image)
    assert found.classes.tolist() == [1] and np.array_equal(found.masks[0], masks[2])
    assert len(found.all_scores) == 2


def _peak(run):
    """Return the result of a function, and the most bytes that Python and numpy had in it."""
    tracemalloc.start()
    try:
        return run(), tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_memory_of_a_prediction_does_not_grow_with_the_photo():
    """9 times the pixels take the same memory; a single bitmap of the photo would take 4 MB."""
    peaks = []
    for side in (700, 2100):
        image, masks = _scene(side, side)
        model = ColorModel()
        found, peak = _peak(functools.partial(_predictor(model, 256), image))
        assert len(found.scores) == 5 and model.largest == 256 * 256
        assert [o["segmentation"]["size"] for o in found.objects] == [[side, side]] * 5
        peaks.append(peak)
    assert peaks[1] < 1.2 * peaks[0] and peaks[1] < image[..., 0].nbytes


def test_memory_of_an_evaluation_does_not_grow_with_the_photo(tmp_path):
    """The decoded photos are memory-mapped."""
    peaks = []
    for side in (700, 2100):
        image, masks = _scene(side, side)
        record = record_of(image, masks, [0, 0, 1, 1, 0], tmp_path / f"{side}.png")
        mapper = Mapper(False, augmentations=[], image_format="RGB", cache=True)
        mapper({**record, "tile": [0, 0, 1, 1], "photo_size": [side, side]})  # fills the cache
        del record["annotations"]
        tiles = Tiles([record], TileOptions(256))
        loader = build_test_loader(tiles, mapper, num_workers=0)
        found, peak = _peak(functools.partial(predict, ColorModel(), loader, [1]))
        assert len(found.detections.scores) == 5
        peaks.append(peak)
    assert peaks[1] < 1.2 * peaks[0] and peaks[1] < image[..., 0].nbytes
