"""Annotations of a photo in a tile, compared with the pixels that the tile has."""

import numpy as np
import pycocotools.mask
import pytest
import shapely
from detectron2.structures import BoxMode
from hypothesis import assume, given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from d2ext.data.tiles.cut import Photo
from d2ext.errors import UserError
from tests.painted import box_of, encoded

SIZE = 10, 12  # height and width


def _photo(annotations, min_share=0.0):
    for a in annotations:
        a.setdefault("bbox_mode", BoxMode.XYXY_ABS)
        a |= {"category_id": 0, "iscrowd": 0}
    height, width = SIZE
    record = {"file_name": "a.png", "image_id": 7, "height": height, "width": width}
    return Photo({**record, "annotations": annotations}, min_share)


@st.composite
def _tile(draw):
    xs, ys = (
        sorted(draw(st.lists(st.integers(0, n), min_size=2, max_size=2, unique=True)))
        for n in SIZE[::-1]
    )
    return [xs[0], ys[0], xs[1], ys[1]]


@given(arrays(bool, SIZE).filter(np.any), _tile(), st.floats(0, 1))
def test_bitmaps_are_those_of_the_pixels(bitmap, tile, min_share):
    x0, y0, x1, y1 = tile
    box = [float(v) for v in box_of(bitmap)]
    photo = _photo([{"bbox": box, "segmentation": encoded(bitmap), "area": 1.0}], min_share)
    part, total = bitmap[y0:y1, x0:x1], bitmap.sum()
    cuts = photo.cut(tile)
    if not part.any() or part.sum() < min_share * total:
        assert not cuts
        return
    ((row, made, whole),) = cuts
    assert row == 0 and whole == (part.sum() == total)
    assert made["segmentation"] == encoded(part) and made["bbox_mode"] == BoxMode.XYXY_ABS
    assert made["bbox"] == box_of(part)
    assert made["area"] == (1.0 if whole else part.sum())


@given(st.lists(st.tuples(st.integers(0, 12), st.integers(0, 10)), min_size=3, max_size=3), _tile())
def test_polygons_are_clipped(points, tile):
    shape = shapely.Polygon(points)
    assume(shape.area)
    part = shapely.intersection(shape, shapely.box(*tile))
    polygon = [float(v) for point in points for v in point]
    box = list(shape.bounds)
    cuts = _photo([{"bbox": box, "segmentation": [polygon]}]).cut(tile)
    if part.area < 1e-6:
        assert not cuts
        return
    ((_, made, whole),) = cuts
    assert whole == (part.area == pytest.approx(shape.area))
    moved = [shapely.Polygon(np.reshape(p, (-1, 2)) + tile[:2]) for p in made["segmentation"]]
    assert shapely.symmetric_difference(shapely.union_all(moved), part).area < 1e-9
    expected = np.subtract(part.bounds, [*tile[:2], *tile[:2]])
    assert made["bbox"] == pytest.approx(list(expected))


def test_boxes_are_clipped_and_kept_by_share():
    """A half of the first box is inside; the second one, x y width height, is whole."""
    boxes = [
        {"bbox": [2.0, 2.0, 6.0, 4.0]},
        {"bbox": [0.0, 1.0, 2.0, 1.0], "bbox_mode": BoxMode.XYWH_ABS},
    ]
    tile = [0, 0, 4, 10]
    kept = [cut.annotation["bbox"] for cut in _photo(boxes, 0.5).cut(tile)]
    assert kept == [[2, 2, 4, 4], [0, 1, 2, 2]]
    assert [cut.row for cut in _photo(boxes, 0.51).cut(tile)] == [1]


def test_a_part_outside_of_the_box_does_not_count_as_the_object():
    """The share is that of the mask, if there is one: a quarter of this box, but all pixels."""
    bitmap = np.zeros(SIZE, bool)
    bitmap[2:4, 2:4] = True
    loose = {"bbox": [0.0, 0.0, 12.0, 10.0], "segmentation": encoded(bitmap)}
    ((_, made, whole),) = _photo([loose], 1.0).cut([0, 0, 6, 5])
    assert whole and made["bbox"] == [0, 0, 6, 5]
    assert pycocotools.mask.area(made["segmentation"]) == 4


def test_an_outline_without_an_area_counts_as_its_box():
    line = [2.0, 2, 8, 8, 2, 2]
    photo = _photo([{"bbox": [2, 2, 8, 8], "segmentation": [line]}], 0.5)
    ((_, made, whole),) = photo.cut([0, 0, 9, 9])
    assert whole and made["segmentation"] == [line] and made["bbox"] == [2, 2, 8, 8]
    ((_, made, whole),) = photo.cut([0, 2, 7, 9])
    assert not whole and made["bbox"] == [2, 0, 7, 6]
    assert made["segmentation"] == [[2, 0, 7, 6, 2, 0]]
    assert not photo.cut([0, 0, 4, 4])


def test_keypoints_outside_become_unlabeled():
    points = [3.0, 3.0, 2, 9.0, 3.0, 2, 0.0, 0.0, 0, 6.0, 4.0, 1]
    ((_, made, _),) = _photo([{"bbox": [2.0, 2.0, 10.0, 6.0], "keypoints": points}]).cut(
        [2, 1, 6, 8]
    )
    assert made["keypoints"] == [1, 2, 2, 0, 0, 0, 0, 0, 0, 4, 3, 1]


def test_the_dataset_dict_of_a_tile():
    photo = _photo([{"bbox": [2.0, 2.0, 6.0, 4.0]}])
    made = photo.tile([1, 2, 9, 8])
    assert (made["height"], made["width"], made["tile"]) == (6, 8, [1, 2, 9, 8])
    assert made["photo_size"] == [10, 12] and made["image_id"] == 7
    assert made["annotations"][0]["bbox"] == [1, 0, 5, 2]


def test_rotated_boxes_are_refused():
    with pytest.raises(UserError, match="rotated"):
        _photo([{"bbox": [5.0, 5.0, 2.0, 2.0, 30.0], "bbox_mode": BoxMode.XYWHA_ABS}])
