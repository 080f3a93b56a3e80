"""Assign images to sides, such as training and validation, so that both hold the same mix.

The method is the iterative stratification of Sechidis, Tsoumakas and Vlahavas (On the
Stratification of Multi-label Data, ECML PKDD 2011), with two changes: groups of images are assigned
instead of single images, and a side is chosen by all labels of a group instead of one. The
libraries for it (iterative-stratification, scikit-multilearn) know neither groups nor counts.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from d2ext.errors import UserError
from d2ext.text import plural

_MAX_TRIES, _STEPS = 20, 20_000  # orders to try, and groups to assign in all of them


@dataclass(frozen=True)
class _Labels:
    """Labels of groups: images with a class, objects of a class, and images by number of objects.

    Attributes:
        kinds: Labels of all groups in order, int (L,); the images with a class come first.
        amounts: Number of images or objects with that label in the group, int (L,).
        starts: Index of each group's first label, and L, int (G + 1,).
        totals: Sum of the amounts of each label.
        num_classes: Number of classes with objects.
    """

    kinds: np.ndarray
    amounts: np.ndarray
    starts: np.ndarray
    totals: np.ndarray
    num_classes: int


def assign_sides(
    groups: np.ndarray,
    images: np.ndarray,
    classes: np.ndarray,
    shares: Sequence[float],
    seed: int,
) -> np.ndarray:
    """Assign each image to a side, keeping groups together.

    Three things are balanced: the objects of each class, the images that hold a class, and the
    number of objects per image (none, 1, 2 to 3, 4 to 7, ...). What few groups have is distributed
    first, and a side that lacks a class comes first. The same arguments give the same result.

    Args:
        groups: Group of each image, from 0 without gaps, int (N,).
        images: Index of each object's image, int (M,).
        classes: Class of each object, from 0, int (M,).
        shares: Share of the images for each side; they add up to 1.
        seed: Seed of the order in which groups with the same labels are assigned.

    Returns:
        Index of each image's side, int64 (N,).

    Raises:
        UserError: There are fewer groups than sides.
    """
    sizes = np.bincount(groups)
    if len(sizes) < len(shares):
        parts = plural(len(groups), "image")
        remedies = ["more images"]
        if len(shares) > 2:
            remedies.append("fewer folds")
        if len(sizes) < len(groups):
            parts += f" in {plural(len(sizes), 'group')}"
            remedies.append("smaller groups")
        raise UserError(
            f"{parts} cannot be split into {len(shares)} parts; give {' or '.join(remedies)}"
        )
    labels = _labels(groups, images, classes)
    rng = np.random.default_rng(seed)
    tries = [
        _assign(labels, sizes, np.asarray(shares), rng)
        for _ in range(max(1, min(_MAX_TRIES, _STEPS // len(sizes))))
    ]
    return min(tries, key=lambda made: made[0])[1][groups]


def _assign(
    labels: _Labels, sizes: np.ndarray, shares: np.ndarray, rng: np.random.Generator
) -> tuple[float, np.ndarray]:
    """Assign groups to sides; return how far the labels' shares are from `shares`, and the sides.

    A group goes to the side that, for its size, has the least of what the group holds. Adding half
    of the group makes this Sainte-Lague's rule for the division of whole numbers.
    """
    has = np.zeros((len(shares), len(labels.totals)))
    room, count = _whole(sizes.sum(), shares), np.zeros(len(shares), int)
    sides = np.empty(len(sizes), int)
    weights = 1 / labels.totals**2.0  # shares of a label count, not its amounts
    for done, group in enumerate(_rarest_first(labels, sizes, rng)):
        part = slice(labels.starts[group], labels.starts[group + 1])
        kinds, amounts = labels.kinds[part], labels.amounts[part]
        fill = (has[:, kinds] + amounts / 2) @ (amounts * weights[kinds]) / shares
        lacks = (has[:, kinds[kinds < labels.num_classes]] == 0).sum(1)
        empty = count == 0
        needed = empty & (empty.sum() == len(sizes) - done)  # one group is left for each of them
        overflow = np.maximum(sizes[group] - room, 0)
        side = np.lexsort((room, -fill, lacks, -overflow, needed))[-1]
        sides[group] = side
        has[side, kinds] += amounts
        room[side] -= sizes[group]
        count[side] += 1
    deviation = (has - np.outer(shares, labels.totals)) ** 2 / shares[:, None]
    return float((deviation * weights).sum()), sides


def _labels(groups: np.ndarray, images: np.ndarray, classes: np.ndarray) -> _Labels:
    num_classes = int(classes.max(initial=-1)) + 1
    held = np.unique(np.stack([images, classes]), axis=1)  # pairs of image and class
    bins = np.frexp(np.bincount(images, minlength=len(groups)))[1]  # 0, 1, 2 to 3, 4 to 7, ...
    owners = np.concatenate([groups[held[0]], groups[images], groups])
    kinds = np.concatenate([held[1], num_classes + classes, 2 * num_classes + bins])
    (owners, kinds), amounts = np.unique(np.stack([owners, kinds]), axis=1, return_counts=True)
    _, kinds = np.unique(kinds, return_inverse=True)
    starts = np.searchsorted(owners, np.arange(groups.max() + 2))
    return _Labels(kinds, amounts, starts, np.bincount(kinds, amounts), len(np.unique(classes)))


def _rarest_first(labels: _Labels, sizes: np.ndarray, rng: np.random.Generator) -> Iterator[int]:
    """Yield the groups: those with the label that the fewest remaining groups have come first.

    Among these, large groups come first, which are hard to place later, in powers of two.
    """
    order = rng.permutation(len(sizes))
    order = order[np.argsort(-np.frexp(sizes[order])[1], kind="stable")]
    owners = np.repeat(np.arange(len(sizes)), np.diff(labels.starts))
    members = owners[np.lexsort((np.argsort(order)[owners], labels.kinds))]
    remaining = np.bincount(labels.kinds)
    ends = np.cumsum(remaining)
    starts = ends - remaining
    waiting = np.ones(len(sizes), bool)
    while remaining.any():
        rarest = np.argmin(np.where(remaining, remaining, len(sizes) + 1))
        chosen = members[starts[rarest] : ends[rarest]]
        chosen = chosen[waiting[chosen]]
        waiting[chosen] = False
        for group in chosen.tolist():
            remaining[labels.kinds[labels.starts[group] : labels.starts[group + 1]]] -= 1
            yield group


def _whole(number: int, shares: np.ndarray) -> np.ndarray:
    """Divide a number into whole parts by largest remainder; parts are at least 1."""
    parts = shares * number
    whole = np.maximum(np.floor(parts + 1e-9), 1).astype(int)
    for side in np.argsort(whole - parts, kind="stable")[: number - whole.sum()]:
        whole[side] += 1
    while whole.sum() > number:
        whole[whole.argmax()] -= 1
    return whole
