"""Image order: every image once per epoch, independent of ranks and of the first iteration."""

from itertools import islice

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from d2ext.data.loading.sampler import BatchSampler, EpochOrder

sizes = st.integers(1, 60)


def _order(data, size: int, group_size: int, seed: int = 0) -> EpochOrder:
    portrait = data.draw(st.lists(st.booleans(), min_size=size, max_size=size))
    return EpochOrder(np.array(portrait), group_size, seed)


@given(st.data(), sizes, st.integers(1, 8), st.integers(0, 50))
def test_epoch_contains_every_image_once(data, size, group_size, epoch):
    order = _order(data, size, group_size)
    assert sorted(order.epoch(epoch)) == list(range(size))


@given(st.data(), st.integers(8, 60), st.integers(1, 8))
def test_groups_share_an_orientation_except_for_leftovers(data, size, group_size):
    portrait = np.array(data.draw(st.lists(st.booleans(), min_size=size, max_size=size)))
    order = EpochOrder(portrait, group_size, seed=0)
    stream = np.concatenate([order.epoch(e) for e in range(4)])
    whole = len(stream) // group_size * group_size
    groups = portrait[stream[:whole]].reshape(-1, group_size)
    mixed = sum(len(set(group)) > 1 for group in groups.tolist())
    # Two orientations leave over at most two groups per epoch.
    assert mixed <= 4 * 2


@given(st.data(), sizes, st.sampled_from([1, 2, 4]), st.integers(1, 3), st.integers(0, 20))
def test_stream_does_not_depend_on_ranks_or_start(data, size, world_size, share, start):
    order = _order(data, size, group_size=2)
    total = world_size * share
    alone = list(islice(BatchSampler(order, total), start + 5))
    ranks = [
        list(islice(BatchSampler(order, total, rank, world_size, start_iter=start), 5))
        for rank in range(world_size)
    ]
    together = [sum(parts, []) for parts in zip(*ranks, strict=True)]
    assert together == alone[start:]
    assert [position for batch in alone for _, position in batch] == list(
        range(total * (start + 5))
    )


def test_seeds_and_epochs_differ():
    flat = np.zeros(50, dtype=bool)
    first = EpochOrder(flat, 1, seed=0)
    assert list(first.epoch(0)) != list(first.epoch(1))
    assert list(first.epoch(0)) != list(EpochOrder(flat, 1, seed=1).epoch(0))
