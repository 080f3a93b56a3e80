"""Data loaders for training and evaluation."""

import contextlib
import copy
import itertools
import logging
import multiprocessing
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import cv2
import numpy as np
import torch
from detectron2.data import DatasetFromList
from detectron2.data.samplers import InferenceSampler
from detectron2.utils import comm
from torch.utils.data import DataLoader, Dataset

from d2ext.data.datasets.mixing import TrainingSet
from d2ext.data.loading.augment.copy_paste import CopyPaste
from d2ext.data.loading.sample_errors import Failure, Replaced, ReportFailures, RleAsBitmaps
from d2ext.data.loading.sampler import BatchSampler, EpochOrder
from d2ext.data.loading.tiles import mapper_of_tiles, tiles_of_rank
from d2ext.data.loading.workers import (
    WorkerContext,
    deaths_of_workers,
    end_workers,
    kill,
    last_words,
    report_errors,
)
from d2ext.data.records.records import Records, View, columns_of
from d2ext.data.tiles.records import Tiles
from d2ext.errors import UserError, format_exception
from d2ext.guard import die_with_parent
from d2ext.heap import return_freed_memory
from d2ext.limits import SHARED_MEMORY, check_open_files, exhausted, raise_open_files
from d2ext.seeding import generators_seeded
from d2ext.waiting import waiting_for

logger = logging.getLogger(__name__)

# Signals reach the whole process group; workers leave the reaction to the trainer.
_IGNORED = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2)
_TIMEOUT_S = 600  # seconds for a batch, after which the storage is assumed to hang
_LATE = 1.0  # seconds after which a batch is late
_GRACE = 2.0  # seconds for workers to exit before they are killed
_REPLACEMENTS = 20  # images to try in place of one that cannot be read


def build_train_loader(
    dataset: TrainingSet | Sequence[dict],
    mapper: Callable[[dict], dict],
    *,
    total_batch_size: int,
    num_workers: int,
    seed: int,
    reference_batch_size: int,
    reference_world_size: int,
    accumulate: int = 1,
    start_iter: int = 0,
    bad_images: str = "stop",
    aspect_ratio_grouping: bool = True,
    copy_paste: CopyPaste | None = None,
) -> "Loader":
    """Build the infinite loader of this rank's micro-batches, starting at step `start_iter`.

    Images, their order and their augmentation depend only on (seed, iteration, position), so the
    model sees the same data with any number of processes and loader workers.

    Args:
        dataset: Result of `training_set`, or Detectron2 dataset dicts.
        mapper: Function that maps a dataset dict to the model's input, and may use any of the
            global random generators. A mapper with polygon masks produces bitmaps for images with
            RLE, which cannot be stored as polygons.
        total_batch_size: Images per optimizer step over all ranks and micro-batches.
        num_workers: Number of loader processes of this rank.
        seed: Seed of the run.
        reference_batch_size: Batch size that the recipe was written for. Divided by
            `reference_world_size`, it gives the size of the groups that share an orientation.
        reference_world_size: Number of processes that the recipe was written for.
        accumulate: Micro-batches per step; each next() returns one of them.
        start_iter: First iteration; set by the run.
        bad_images: `stop` at an image that cannot be read, or `skip` it: another image replaces
            it, so that all ranks have the same number.
        aspect_ratio_grouping: Whether the images of a worker share an orientation, which saves
            padding.
        copy_paste: How objects of another image are pasted into a sample; None: nothing is pasted.
            The other image is drawn uniformly, whatever its repeat factor.

    Raises:
        UserError: During iteration, if an image cannot be read.
    """
    if isinstance(dataset, TrainingSet):
        records, repeats = dataset.records, dataset.repeats
    else:
        records, repeats = dataset, None
    columns = columns_of(records)
    portrait = columns.heights > columns.widths
    group_size = max(reference_batch_size // reference_world_size, 1)
    if not aspect_ratio_grouping:
        group_size = 1
    sampler = BatchSampler(
        EpochOrder(portrait, group_size, seed, repeats),
        total_batch_size,
        comm.get_rank(),
        comm.get_world_size(),
        accumulate,
        start_iter,
    )
    made = RleAsBitmaps(mapper_of_tiles(mapper, records))
    loader = DataLoader(
        _SeededDataset(records, made, seed, bad_images == "skip", copy_paste),
        batch_sampler=sampler,
        num_workers=num_workers,
        **_worker_options(num_workers),
        collate_fn=_as_list,
        pin_memory=torch.cuda.is_initialized(),  # by now the model is on a GPU, or never will be
    )
    return Loader(loader)


def build_test_loader(
    dataset: Sequence[dict],
    mapper: Callable[[dict], dict],
    *,
    num_workers: int,
    bad_images: str = "stop",
) -> "Loader":
    """Build a loader with one image per batch; ranks read consecutive parts, each image once.

    Each tile of a photo is an image; one rank reads all those of a photo, in order.

    It differs from Detectron2's test loader in its workers, which survive signals to the process
    group.

    Args:
        dataset: Detectron2 dataset dicts.
        mapper: Function that maps a dataset dict to the model's input.
        num_workers: Number of loader processes of this rank.
        bad_images: `stop` at an image that cannot be read, or `skip` it: its batch is empty.

    Raises:
        UserError: During iteration, if an image cannot be read.
    """
    sampler: Any = InferenceSampler(len(dataset))
    if isinstance(dataset, Tiles):
        sampler = tiles_of_rank(dataset)
    loader = DataLoader(
        _MappedDataset(dataset, mapper_of_tiles(mapper, dataset)),
        sampler=sampler,
        num_workers=num_workers,
        **_worker_options(num_workers),
        collate_fn=_as_list,
    )
    return Loader(loader, leaves_out=bad_images == "skip")


def build_loss_loader(
    dataset: Sequence[dict],
    mapper: Callable[[dict], dict],
    *,
    num_workers: int,
    bad_images: str = "stop",
) -> "Loader":
    """Build a loader of training samples with one image per batch, for the loss on a test set.

    The ranks take turns. All get the same number of batches, because a model may communicate in its
    forward pass; the first images follow the last ones where this requires more. Random generators
    are seeded by position.

    Args:
        dataset: Detectron2 dataset dicts.
        mapper: Argument of `build_train_loader`.
        num_workers: Number of loader processes of this rank.
        bad_images: Argument of `build_train_loader`.

    Raises:
        UserError: During iteration, if an image cannot be read.
    """
    world_size = comm.get_world_size()
    end = -(-len(dataset) // world_size) * world_size
    positions = range(comm.get_rank(), end, world_size)
    made = RleAsBitmaps(mapper_of_tiles(mapper, dataset))
    loader = DataLoader(
        _SeededDataset(dataset, made, seed=0, replaces=bad_images == "skip"),
        batch_sampler=[[(position % len(dataset), position)] for position in positions],
        num_workers=num_workers,
        **_worker_options(num_workers),
        collate_fn=_as_list,
        generator=torch.Generator(),  # by default, each pass draws a seed from the run's generator
    )
    return Loader(loader)


class _MappedDataset(Dataset):
    """Samples by index."""

    def __init__(self, records: Sequence[dict], mapper: Callable[[dict], dict]):
        self.records = _shared(records)
        self._mapper = ReportFailures(mapper)

    def __len__(self) -> int:
        return len(self.records)

    def record(self, key: Any) -> dict:
        """Return a copy of the dataset dict of the sample at `key`."""
        return self.records[key]

    def __getitem__(self, key: Any) -> dict | Failure | Replaced:
        return self.sample(key)

    def sample(self, key: Any) -> dict | Failure | Replaced:
        """Return the sample at `key`, or why there is none."""
        return self._mapper(self.record(key))


class _SeededDataset(_MappedDataset):
    """Samples by (index, position), each with separately seeded random generators.

    Detectron2's transforms draw from numpy's global generator; torch's and Python's are seeded as
    well, for custom transforms. All are restored afterwards, because without loader workers they
    are the trainer's generators.
    """

    def __init__(
        self,
        records: Sequence[dict],
        mapper: Callable[[dict], dict],
        seed: int,
        replaces: bool = False,
        copy_paste: CopyPaste | None = None,
    ):
        super().__init__(records, mapper)
        self._seed = seed
        self._replaces = replaces
        self._copy_paste = copy_paste

    def record(self, key: tuple[int, int]) -> dict:
        return super().record(key[0])

    def __getitem__(self, key: tuple[int, int]) -> dict | Failure | Replaced:
        sample = self.sample(key)
        if not self._replaces or not isinstance(sample, Failure):
            return sample
        # Drawn from seed and position, so that a resumed run picks the same replacements.
        others = np.random.default_rng((self._seed, key[1], 2))
        for other in others.integers(len(self), size=_REPLACEMENTS):
            found = self.sample((int(other), key[1]))
            if isinstance(found, Replaced):  # the source of its pasted objects was replaced
                return Replaced(found.sample, [sample.message, *found.messages])
            if not isinstance(found, Failure):
                return Replaced(found, [sample.message])
        return Failure(f"{sample.message} (and {_REPLACEMENTS} replacements failed as well)")

    def sample(self, key: tuple[int, int]) -> dict | Failure | Replaced:
        with generators_seeded(self._seed, key[1]):
            sample = self._mapper(self.record(key))
            if self._copy_paste is None or isinstance(sample, Failure):
                return sample
            return self._pasted(sample, key[0], self._copy_paste)

    def _pasted(self, sample: dict, index: int, copy_paste: CopyPaste) -> dict | Failure | Replaced:
        """Return a sample, with objects of another one if the draw says so.

        Args:
            sample: The sample.
            index: Its index, which is not drawn unless there is no other.
            copy_paste: How objects are pasted.
        """
        if np.random.random() >= copy_paste.prob:
            return sample
        failures: list[Failure] = []
        tries = _REPLACEMENTS if self._replaces else 1
        for draw in np.random.randint(max(len(self) - 1, 1), size=tries).tolist():
            other = draw + (draw >= index and len(self) > 1)
            source = self._mapper(super().record(other))
            if not isinstance(source, Failure):
                made = copy_paste(sample, source)
                return Replaced(made, [failures[0].message]) if failures else made
            failures.append(source)
        return failures[0]


def _shared(records: Sequence[dict]) -> Sequence[dict]:
    """Return the records in memory that worker processes share.

    Lists are serialized; otherwise reference counts would copy every page into each worker.
    """
    if isinstance(records, Records):
        return records
    if isinstance(records, View):
        shared = copy.copy(records)
        shared.parts = list(map(_shared, records.parts))
        return shared
    return DatasetFromList(records, copy=False)


class Loader:
    """A DataLoader that raises the first failure of a batch in the trainer's process.

    Attributes:
        replaced: Number of replacements by error message of the replaced image.
        left_out: Error messages of the images that were skipped in the last pass.
    """

    def __init__(self, loader: DataLoader, leaves_out: bool = False):
        self._loader = loader
        self._dataset: Any = loader.dataset
        self._leaves_out = leaves_out
        self.replaced: Counter[str] = Counter()
        self.left_out: list[str] = []

    def __len__(self) -> int:
        return len(self._loader)

    def __iter__(self) -> Iterator[list[dict]]:
        """Start the workers on the first batches, and return the batches."""
        batches = self._batches()
        next(batches)
        return batches

    def _batches(self) -> Iterator[list[dict]]:
        # Block signals until the workers ignore them.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, _IGNORED)
        try:
            batches = self._started()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        self.left_out = []
        try:
            yield []  # where `__iter__` stops
            while (batch := _next(batches)) is not None:
                if self._leaves_out:
                    messages = [s.message for s in batch if isinstance(s, Failure)]
                    if messages != self.left_out[-1:]:  # every tile of a photo fails
                        self.left_out += messages
                    batch = [s for s in batch if not isinstance(s, Failure)]
                yield [self._checked(sample) for sample in batch]
        finally:
            # The garbage collector may run too late, and Python would wait for workers at exit.
            if self._loader.num_workers:
                end_workers(batches, _GRACE)

    def _started(self) -> Iterator[list]:
        if not self._loader.num_workers:
            return iter(self._loader)
        raise_open_files()
        return_freed_memory()  # which the workers would inherit
        # If the start fails halfway, torch keeps the files open, and the functions that run at exit
        # cannot open any. Each worker needs four; the results and a worker's start need two each.
        check_open_files(4 * self._loader.num_workers + 4)
        before = set(multiprocessing.active_children())
        handler = signal.getsignal(signal.SIGCHLD)
        try:
            return iter(self._loader)
        except BaseException as e:
            for worker in set(multiprocessing.active_children()) - before:
                kill(worker)  # Python would wait for it at exit
            if not isinstance(e, OSError) or exhausted(str(e)):
                raise
            # The remaining cause is the queues' semaphores, which are files in shared memory.
            raise OSError(e.errno, e.strerror, str(SHARED_MEMORY)) from e
        finally:
            # When a worker dies, torch's handler raises in whatever the process is doing, such as
            # writing a file. `_next` detects dead workers soon enough.
            if threading.current_thread() is threading.main_thread():
                signal.signal(signal.SIGCHLD, handler)

    def _checked(self, sample: dict | Failure | Replaced) -> dict:
        if isinstance(sample, Failure):
            raise UserError(sample.message)
        if not isinstance(sample, Replaced):
            return sample
        for message in sample.messages:
            self.replaced[message] += 1
            if self.replaced[message] == 1:
                logger.warning("%s; it is replaced by another image every time", message)
        return sample.sample

    @property
    def records(self) -> Sequence[dict]:
        """Return the dataset dicts of the loader."""
        return self._dataset.records

    @property
    def images(self) -> int:
        """Return the number of images in an epoch."""
        return len(self._dataset)

    def pairs(
        self, skip: int = 0, mapped: bool = True
    ) -> Iterator[tuple[dict, dict | UserError | None]]:
        """Yield dataset dicts with their samples, which are created one by one in this process.

        Args:
            skip: Number of samples to skip first, without reading their images.
            mapped: Whether to create samples; otherwise they are None, and no image is read.

        Yields:
            In the loader's order, a dataset dict and its sample, or the error if the sample cannot
            be created; iteration continues after errors.
        """
        batches: Any = self._loader.batch_sampler
        keys = itertools.chain.from_iterable(batches)
        dataset = self._dataset
        for key in itertools.islice(keys, skip, None):
            sample = None
            if mapped:
                try:
                    sample = dataset[key]
                except Exception as e:  # any error in a mapper, which would stop a training
                    sample = UserError(f"{dataset.record(key)['file_name']}: {format_exception(e)}")
            if isinstance(sample, Failure):
                sample = UserError(sample.message)
            elif isinstance(sample, Replaced):
                sample = UserError("; ".join(sample.messages))
            yield dataset.record(key), sample


def _next(batches: Iterator[list]) -> list | None:
    """Return the next batch, or None after the last one; announce long waits.

    Raises:
        RuntimeError: No batch arrived within ten minutes, or a worker failed.
    """
    since, late = time.monotonic(), False
    with contextlib.ExitStack() as stack:
        while True:
            try:
                return next(batches, None)
            except RuntimeError as e:
                if deaths := deaths_of_workers(batches):
                    raise RuntimeError(f"DataLoader worker {deaths}") from e
                if not str(e).startswith("DataLoader timed out"):
                    raise
            if words := last_words():
                raise RuntimeError(f"DataLoader worker: {words}")
            waited = time.monotonic() - since
            if waited > _TIMEOUT_S:
                raise RuntimeError(f"DataLoader timed out after {waited:.0f} seconds")
            if not late:
                what = "the loader workers' next batch (slow storage, or too few workers)"
                stack.enter_context(waiting_for(what, since=since))
            late = True


def _worker_options(num_workers: int) -> dict[str, Any]:
    """Return DataLoader's arguments for forked workers that ignore signals and report errors.

    By default, a spawned rank spawns its workers, which takes seconds of imports for each, and a
    signal during that time ends them.
    """
    if not num_workers:
        return {}
    return dict(multiprocessing_context=WorkerContext(), timeout=_LATE, worker_init_fn=_init_worker)


def _as_list(samples: list) -> list:
    return samples


def _init_worker(worker_id: int) -> None:
    # If its rank were killed, the worker would wait for work indefinitely.
    die_with_parent()
    report_errors()
    for number in _IGNORED:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _IGNORED)
    torch.set_num_threads(1)
    cv2.setNumThreads(0)  # OpenCV's threads do not survive a fork
    logging.getLogger("PIL").setLevel(logging.WARNING)
