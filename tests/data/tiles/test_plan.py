"""Tiles cover a photo exactly, overlap enough, and have one size."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from d2ext.config.tiles import TileOptions
from d2ext.data.tiles.plan import plan_tiles, tile_starts


@given(st.data())
def test_tiles_cover_the_photo_and_overlap(data):
    height, width, side = (data.draw(st.integers(1, 90)) for _ in range(3))
    side = max(side, 2)
    shared = data.draw(st.integers(1, side - 1))
    tiles = plan_tiles(height, width, side, shared)
    seen = np.zeros((height, width), int)
    for x0, y0, x1, y1 in tiles.tolist():
        assert 0 <= x0 and 0 <= y0 and x1 <= width and y1 <= height
        assert (x1 - x0, y1 - y0) == (min(width, side), min(height, side))
        seen[y0:y1, x0:x1] += 1
    assert seen.min() == 1 or len(tiles) > 1 and seen.min() >= 1
    for length in (height, width):
        starts = tile_starts(length, side, shared)
        steps = np.diff(starts)
        assert (steps > 0).all() and (steps <= side - shared).all()
        assert len(steps) == max(-(-(length - side) // (side - shared)), 0)  # as few as possible


def test_the_last_tile_is_moved_inward():
    """As in SAHI: get_slice_bboxes(641, 1000, slice 640, overlap 0.2)."""
    assert plan_tiles(641, 1000, 640, 128).tolist() == [
        [0, 0, 640, 640],
        [360, 0, 1000, 640],
        [0, 1, 640, 641],
        [360, 1, 1000, 641],
    ]


@pytest.mark.parametrize(
    ("side", "overlap", "shared"), [(640, 0.2, 128), (32, 0.01, 1), (32, 0.999, 31)]
)
def test_the_overlap_is_a_share_of_the_side(side, overlap, shared):
    assert TileOptions(side, overlap).shared == shared
