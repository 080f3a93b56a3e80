"""Masks as runs equal bitmaps, pixel by pixel."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from d2ext.data.tiles.runs import decoded, united
from tests.painted import box_of, encoded

BITMAPS = arrays(bool, st.tuples(st.integers(1, 9), st.integers(1, 9)))


@given(BITMAPS)
def test_runs_keep_every_pixel(bitmap):
    rle = encoded(bitmap)
    (runs,) = decoded([rle])
    assert runs.encoded(*bitmap.shape) == rle and runs.area == bitmap.sum()
    assert runs.box == (tuple(box_of(bitmap)) if bitmap.any() else (0, 0, 0, 0))


@given(st.data())
def test_masks_are_united_clipped_and_moved(data):
    size = data.draw(st.tuples(st.integers(1, 9), st.integers(1, 9)))
    bitmaps = data.draw(st.lists(arrays(bool, size), min_size=1, max_size=4))
    xs, ys = (sorted(data.draw(st.tuples(*[st.integers(0, n)] * 2))) for n in size[::-1])
    union = np.any(bitmaps, axis=0)
    runs = united(decoded([encoded(b) for b in bitmaps]))
    assert runs.encoded(*size) == encoded(union)
    clipped = np.zeros((size[0] + 3, size[1] + 2), bool)
    part = union[ys[0] : ys[1], xs[0] : xs[1]]
    clipped[ys[0] + 3 : ys[1] + 3, xs[0] + 2 : xs[1] + 2] = part
    runs = runs.clipped(xs[0], ys[0], xs[1], ys[1]).moved(2, 3)
    assert runs.encoded(*clipped.shape) == encoded(clipped)


def test_counts_may_be_numbers_and_end_early():
    (runs,) = decoded([{"size": [4, 2], "counts": [1, 2]}])
    assert (runs.column.tolist(), runs.top.tolist(), runs.bottom.tolist()) == ([0], [1], [3])


@given(BITMAPS)
def test_counts_may_be_bytes(bitmap):
    """pycocotools.mask.encode returns bytes, which datasets that are registered in code keep."""
    rle = encoded(bitmap)
    as_bytes = {**rle, "counts": rle["counts"].encode("ascii")}
    (runs,) = decoded([as_bytes])
    assert runs.encoded(*bitmap.shape) == rle


@pytest.mark.parametrize("counts", ["~", b"~", b"\xff", [3, -1]])
def test_damaged_counts_are_an_error(counts):
    with pytest.raises(ValueError, match="damaged"):
        decoded([{"size": [4, 2], "counts": counts}])
