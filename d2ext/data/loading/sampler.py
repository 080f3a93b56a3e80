"""Choose the images of each training step as a pure function of (seed, iteration, position).

The stream of images is the concatenation of all epochs. Step i uses positions i*A to (i+1)*A - 1,
where A is the number of images per step over all ranks. There is no state, so a run can start at
any iteration.
"""

import itertools
from collections.abc import Iterator

import numpy as np


def epoch_length(repeats: np.ndarray) -> int:
    """Return the number of images in every epoch: the rounded sum of the repeat factors (N,)."""
    whole = np.floor(repeats)
    return int(whole.sum()) + round(float((repeats - whole).sum()))


class EpochOrder:
    """The order of the images in each epoch, which shows each image once or `repeats` times.

    Images are arranged in groups of `group_size` with the same orientation, so that batches need
    little padding with any number of processes. (Detectron2 groups images later, in a stateful
    buffer.) Leftover images of both orientations form mixed groups at the end of the epoch.

    Args:
        portrait: bool array (N,), True for images that are taller than wide.
        group_size: Images per group; batches should hold whole groups.
        seed: Seed of the run.
        repeats: float array (N,), average number of times that an epoch shows each image. Fractions
            are randomly rounded in each epoch such that all epochs have the same length.
    """

    def __init__(
        self,
        portrait: np.ndarray,
        group_size: int,
        seed: int,
        repeats: np.ndarray | None = None,
    ):
        self._portrait = np.asarray(portrait, dtype=bool)
        self._repeats = np.ones(len(self._portrait)) if repeats is None else np.asarray(repeats)
        self._length = epoch_length(self._repeats)
        self._group_size = group_size
        self._seed = seed
        self._number, self._indices = -1, np.empty(0, dtype=np.int64)

    def __len__(self) -> int:
        """Return the number of images in an epoch."""
        return self._length

    def epoch(self, number: int) -> np.ndarray:
        """Return and cache the image indices (len(self),) of epoch `number`, counted from 0."""
        if number != self._number:
            self._number, self._indices = number, self._shuffle(number)
        return self._indices

    def _shuffle(self, number: int) -> np.ndarray:
        rng = np.random.default_rng((self._seed, number))
        shuffled = self._shown(number)[rng.permutation(len(self))]
        # Complete the group that the previous epoch left unfilled, or all groups would shift.
        head, rest = np.split(shuffled, [min(-number * len(self) % self._group_size, len(self))])
        groups, leftover = [], []
        for side in (False, True):
            members = rest[self._portrait[rest] == side]
            whole = len(members) // self._group_size * self._group_size
            groups.append(members[:whole].reshape(-1, self._group_size))
            leftover.append(members[whole:])
        groups = rng.permutation(np.concatenate(groups))  # rows
        return np.concatenate([head, groups.ravel(), rng.permutation(np.concatenate(leftover))])

    def _shown(self, number: int) -> np.ndarray:
        """Return the sorted image indices (len(self),) of an epoch, with repetitions.

        Fractions are rounded by systematic sampling: on a line where each image has the length of
        its fraction, equidistant points after a random start select the images that are rounded
        up. Expected counts are exact except for the rounding of the epoch's length.
        """
        counts = np.floor(self._repeats).astype(np.int64)
        fractions = self._repeats - counts
        extra = len(self) - counts.sum()
        if extra:
            rng = np.random.default_rng((self._seed, number, 1))
            order = rng.permutation(len(counts))
            line = np.cumsum(fractions[order])
            points = np.floor(line / line[-1] * extra + rng.random())
            counts[order] += np.diff(points, prepend=0).astype(np.int64)
        return np.repeat(np.arange(len(counts)), counts)


class BatchSampler:
    """Endless iterator of this rank's micro-batches, which are lists of (image index, position).

    `position` is the place in the stream over all epochs; it seeds the sample's augmentation. A
    global batch is split into world_size * accumulate micro-batches of equal size, and rank r has
    `accumulate` consecutive ones, starting at r * accumulate. Thus N ranks see the same data as one
    rank that accumulates N times.

    Args:
        order: Order of the images.
        total_batch_size: Images per step over all ranks and micro-batches.
        rank: Rank of this process.
        world_size: Number of processes.
        accumulate: Micro-batches per step and rank; world_size * accumulate must divide
            total_batch_size.
        start_iter: First step to yield.
    """

    def __init__(
        self,
        order: EpochOrder,
        total_batch_size: int,
        rank: int = 0,
        world_size: int = 1,
        accumulate: int = 1,
        start_iter: int = 0,
    ):
        self._order = order
        self._total = total_batch_size
        self._size = total_batch_size // (world_size * accumulate)
        self._micro_batches = range(rank * accumulate, (rank + 1) * accumulate)
        self._start_iter = start_iter

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        for step in itertools.count(self._start_iter):
            for number in self._micro_batches:
                first = step * self._total + number * self._size
                yield [(self._image(p), p) for p in range(first, first + self._size)]

    def _image(self, position: int) -> int:
        epoch, place = divmod(position, len(self._order))
        return int(self._order.epoch(epoch)[place])
