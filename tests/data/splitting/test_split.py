"""Properties of a split: whole, repeatable, by group, and with the same mix on all sides."""

import collections

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest

from d2ext.data.splitting.split import SplitOptions, split_images
from d2ext.errors import UserError


@st.composite
def _datasets(draw):
    """Return file names `clip_number` and the classes of the objects in each image."""
    images = draw(st.lists(st.lists(st.integers(0, 4), max_size=6), min_size=12, max_size=40))
    clips = draw(st.integers(5, 12))
    return [f"{i % clips}_{i}.jpg" for i in range(len(images))], images


def _split(names, images, **options):
    owners = np.repeat(np.arange(len(images)), [len(classes) for classes in images])
    classes = np.array([c for image in images for c in image], int)
    return split_images(names, owners, classes, None, SplitOptions(**options))[0]


@hypothesis.given(_datasets(), st.integers(0, 5), st.sampled_from([0.1, 0.25, 0.5]))
def test_the_validation_set_has_its_share_of_the_images(dataset, seed, val):
    names, images = dataset
    sides = _split(names, images, val=val, seed=seed)
    assert abs(sides.sum() - val * len(names)) <= 0.5 + 1e-9
    assert sides.tolist() == _split(names, images, val=val, seed=seed).tolist()


@hypothesis.given(_datasets(), st.integers(2, 5), st.randoms(use_true_random=False))
def test_the_order_in_the_file_does_not_matter(dataset, folds, random):
    names, images = dataset
    order = list(range(len(names)))
    random.shuffle(order)
    sides = _split(names, images, folds=folds)
    shuffled = _split([names[i] for i in order], [images[i] for i in order], folds=folds)
    assert shuffled.tolist() == sides[order].tolist()
    assert set(sides) == set(range(folds))


@hypothesis.given(_datasets(), st.integers(0, 5))
def test_groups_stay_together(dataset, seed):
    names, images = dataset
    for pattern in (r"^(\d+)_", r"^\d+_"):
        sides = _split(names, images, val=0.3, seed=seed, group_by=pattern)
        of_clip = collections.defaultdict(set)
        for name, side in zip(names, sides, strict=True):
            of_clip[name.split("_")[0]].add(side)
        assert all(len(found) == 1 for found in of_clip.values())
        assert set(sides) == {0, 1}


@hypothesis.given(_datasets(), st.integers(0, 5))
def test_classes_in_two_images_are_on_both_sides(dataset, seed):
    names, images = dataset
    sides = _split(names, images, val=0.5, seed=seed)
    for label in range(5):
        having = [side for side, image in zip(sides, images, strict=True) if label in image]
        if len(having) >= 2:
            assert set(having) == {0, 1}


def test_the_mix_is_closer_than_by_chance():
    rng = np.random.default_rng(0)
    images = [
        rng.choice(8, rng.geometric(0.3) - 1, p=np.arange(1, 9) / 36).tolist() for _ in range(400)
    ]
    names = [f"{i}.jpg" for i in range(400)]
    counts = np.array([np.bincount(image, minlength=8) for image in images])
    empty = counts.sum(1) == 0

    def deviation(val):
        """Return how far the shares of classes, objects and empty images are from 0.25."""
        shares = counts[val].sum(0) / counts.sum(0)
        return max(*abs(shares - 0.25), abs(empty[val].sum() / empty.sum() - 0.25))

    chance = [deviation(rng.permutation(400) < 100) for _ in range(100)]
    ours = [deviation(_split(names, images, val=0.25, seed=seed) == 1) for seed in range(5)]
    assert max(ours) < np.quantile(chance, 0.05)
    assert len({tuple(_split(names, images, val=0.25, seed=seed)) for seed in range(5)}) == 5


def test_one_large_group_leaves_the_other_for_validation():
    names = [f"a{i}" for i in range(30)] + ["b0", "b1"]
    sides = _split(names, [[0]] * 32, val=0.2, group_by="^[ab]")
    assert sides.tolist() == [0] * 30 + [1] * 2


def test_fewer_groups_than_sides_are_an_error():
    with pytest.raises(UserError, match="4 images in 2 groups cannot be split into 3 parts"):
        _split(["a0", "a1", "b0", "b1"], [[0]] * 4, folds=3, group_by="^[ab]")
    with pytest.raises(UserError, match="matches no file name, such as a0"):
        _split(["a0", "b1"], [[0]] * 2, group_by="^c")
    with pytest.raises(UserError, match="not a regular expression"):
        _split(["a0", "b1"], [[0]] * 2, group_by="(")
