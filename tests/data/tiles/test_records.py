"""Tiles as records: columns, counts, datasets and loaders."""

import pickle

import numpy as np
import pytest
from detectron2.data import DatasetCatalog
from detectron2.structures import BoxMode

from d2ext.config.tiles import TileOptions
from d2ext.data.datasets.mixing import evaluation_set, training_set
from d2ext.data.loading.loader import build_test_loader
from d2ext.data.records.columns import Columns, list_columns
from d2ext.data.records.records import columns_of, file_names_of, image_ids_of, select
from d2ext.data.tiles.records import Tiles, tile_with_objects
from d2ext.errors import UserError

OPTIONS = TileOptions(64, 0.25, 0.5)  # tiles start at 0, 36 and 0, 48, 86 in a photo of 100 x 150


def _object(x0, y0, x1, y1, **flags):
    polygon = [float(v) for v in (x0, y0, x1, y0, x1, y1, x0, y1)]
    return {
        "bbox": [float(x0), float(y0), float(x1), float(y1)],
        "bbox_mode": BoxMode.XYXY_ABS,
        "category_id": 0,
        "iscrowd": 0,
        "segmentation": [polygon],
        **flags,
    }


def _photo(number, size, *annotations):
    height, width = size
    name = f"{number}.png"
    record = {"file_name": name, "image_id": number, "height": height, "width": width}
    return {**record, "annotations": list(annotations)}


@pytest.fixture
def photos():
    """Return a small photo, a large one, one without objects, and a small one."""
    return [
        _photo(1, (50, 60), _object(0, 0, 10, 10)),
        _photo(
            2,
            (100, 150),
            _object(0, 0, 10, 10),  # in one tile
            _object(50, 10, 60, 20),  # in two
            _object(0, 20, 150, 60, keypoints=[1.0, 30.0, 2, 149.0, 30.0, 2]),  # larger than a tile
            _object(20, 0, 60, 5, iscrowd=1),
        ),
        _photo(3, (65, 64)),
        _photo(4, (64, 64), _object(5, 5, 9, 9)),
    ]


def test_records_are_those_of_the_plan(photos):
    tiles = Tiles(photos, OPTIONS)
    assert file_names_of(tiles) == ["1.png"] + ["2.png"] * 6 + ["3.png"] * 2 + ["4.png"]
    assert image_ids_of(tiles) == [1, *[2] * 6, 3, 3, 4]
    assert [r["photo_tiles"] for r in tiles] == [1, *[6] * 6, 2, 2, 1]
    assert tiles[0] == {**photos[0], "tile": [0, 0, 60, 50], "photo_size": [50, 60]} | {
        "photo_tiles": 1
    }
    assert [r["tile"] for r in tiles][1:4] == [[0, 0, 64, 64], [48, 0, 112, 64], [86, 0, 150, 64]]
    assert [len(r["annotations"]) for r in tiles] == [1, 3, 1, 0, 0, 0, 0, 0, 0, 1]


def test_columns_are_those_of_the_records(photos):
    tiles = Tiles(photos, OPTIONS)
    for records in (tiles, select(tiles, [1, 0]), pickle.loads(pickle.dumps(tiles))):
        expected, columns = list_columns(list(records)), columns_of(records)
        for name in Columns.NAMES:
            assert np.array_equal(getattr(columns, name), getattr(expected, name)), name


def test_counts_name_what_is_lost(photos):
    counts = Tiles(photos, OPTIONS).counts
    assert (counts.photos, counts.tiles, counts.empty, counts.objects) == (4, 10, 6, 5)
    assert (counts.larger, counts.largest) == (1, (150, 40, "2.png"))
    assert (counts.dropped, counts.dropped_from, counts.cut) == (1, "2.png", 0)
    wide = Tiles([_photo(5, (64, 100), _object(20, 0, 60, 9))], TileOptions(64, 0.25, 0.1)).counts
    assert (wide.cut, wide.larger, wide.dropped) == (0, 0, 0)
    wide = Tiles([_photo(5, (64, 100), _object(30, 0, 70, 9))], TileOptions(64, 0.25, 0.1)).counts
    assert (wide.cut, wide.larger, wide.dropped) == (1, 0, 0)
    both = counts + wide
    assert (both.tiles, both.cut, both.largest) == (12, 1, counts.largest)


def test_the_tile_with_objects_has_most_of_them(photos):
    assert tile_with_objects(photos[1], OPTIONS)["tile"] == [0, 0, 64, 64]


def test_a_photo_without_a_size_is_an_error(photos):
    del photos[1]["height"]
    with pytest.raises(UserError, match=r"2\.png has no height"):
        Tiles(photos, OPTIONS)


@pytest.fixture
def registered(photos):
    """Register the photos."""
    DatasetCatalog.register("photos", lambda: photos)
    yield "photos"
    DatasetCatalog.remove("photos")


def test_training_counts_tiles(registered):
    arguments = {"tiles": 64, "tile_overlap": 0.25, "tile_min_share": 0.5}
    dataset = training_set(registered, **arguments)
    assert str(dataset) == "4 tiles (6 without objects dropped, filter_empty)"
    assert file_names_of(dataset.records) == ["1.png", "2.png", "2.png", "4.png"]
    assert len(training_set(registered, False, 3, **arguments)) == 30
    assert dataset.tile_counts.dropped == 1
    with pytest.raises(UserError, match="cannot cut proposals"):
        training_set(registered, proposal_files=["a.pkl"], **arguments)


def test_an_evaluation_reads_all_tiles_of_photos_with_objects(registered):
    tiles = evaluation_set(registered, filter_empty=True, tiles=64, tile_overlap=0.25)
    assert file_names_of(tiles) == ["1.png"] + ["2.png"] * 6 + ["4.png"]


def test_a_mapper_of_others_is_refused(registered):
    tiles = evaluation_set(registered, tiles=64)
    with pytest.raises(UserError, match=r"data\.tiles: the mapper type does not read tiles"):
        build_test_loader(tiles, dict, num_workers=0)
