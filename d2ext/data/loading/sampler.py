"""Which images each training step sees: a pure function of (seed, iteration, position).

The stream of images is the concatenation of epochs; step i takes places i*A to (i+1)*A - 1, where A
is the images per step over all ranks. No state: starting at any iteration only counts integers.
"""

import itertools
from collections.abc import Iterator

import numpy as np


def epoch_length(repeats: np.ndarray) -> int:
    """Images in each epoch, the same for all of them: the sum of the factors (N,), rounded."""
    whole = np.floor(repeats)
    return int(whole.sum()) + round(float((repeats - whole).sum()))


class EpochOrder:
    """The order of the images in each epoch, every image once, or as often as `repeats` says.

    Images come in groups of `group_size` that share an orientation, so that padding a batch wastes
    little whatever the number of processes (Detectron2 groups later, in a stateful buffer).
    Members left over of both orientations form mixed groups at the end of the epoch.

    Args:
        portrait: bool array (N,), True where an image is higher than wide.
        group_size: images per group; batches should hold whole groups.
        seed: of the run.
        repeats: float array (N,), how often an epoch shows each image on average. What is behind
            the point is rounded anew in each epoch, so that all have the same length.
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
        """Images in an epoch."""
        return self._length

    def epoch(self, number: int) -> np.ndarray:
        """Return the image indices (len(self),) of epoch `number`, from 0; cache the last one."""
        if number != self._number:
            self._number, self._indices = number, self._shuffle(number)
        return self._indices

    def _shuffle(self, number: int) -> np.ndarray:
        rng = np.random.default_rng((self._seed, number))
        shuffled = self._shown(number)[rng.permutation(len(self))]
        # The epoch before may have left a group unfilled: fill it first, or all groups would shift.
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
        """Return the sorted image indices (len(self),) of an epoch, each as often as it appears.

        Systematic sampling: on a line where each image is as long as its fraction, points at equal
        distances behind a random start choose who is rounded up. Expected counts are exact but for
        the rounding of the epoch's length.
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
    """Yields this rank's micro-batches, for ever: lists of (image index, position).

    `position` is the place in the stream over all epochs; it seeds the sample's augmentation. A
    global batch falls into world_size * accumulate micro-batches of equal size; rank r has the
    consecutive ones from r * accumulate on. So N ranks see what one rank accumulating N times sees.

    Args:
        order: of the images.
        total_batch_size: images per step over all ranks and micro-batches.
        rank: of this process.
        world_size: number of processes.
        accumulate: micro-batches per step and rank; world_size * accumulate must divide
            total_batch_size.
        start_iter: the first step to yield.
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
