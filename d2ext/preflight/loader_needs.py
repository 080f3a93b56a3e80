"""Check that the machine has the shared memory and open files that loader workers need."""

import copy
import io
import itertools
import os
import pickle
from collections.abc import Mapping
from typing import Any

import torch
from detectron2.config import instantiate

from d2ext.data.loading.loader import Loader
from d2ext.errors import config_errors
from d2ext.evaluation.suite import test_sets
from d2ext.limits import SHARED_MEMORY, open_files_allowed, shared_memory_free

_SAMPLES = 4  # samples to measure, because sizes and numbers of objects vary
_MOST_BYTES, _MOST_TENSORS = 2**26, 16  # per sample; if there is room for these, none is measured
_OWN_FILES = 64  # files that a trainer opens anyway


def loader_warnings(
    loaders: Mapping[str, Any], accumulate: int, world_size: int, here: int
) -> list[str]:
    """Return a line for each limit that the loader workers of a run may reach.

    A worker prepares two batches in advance. Each of their tensors takes shared memory and one open
    file.

    Args:
        loaders: Configs of the loaders by split, train, val or test.
        accumulate: Number of micro-batches per training step.
        world_size: Number of processes on all machines.
        here: Number of processes on this machine.
    """
    if "D2EXT_PLAN_GPUS" in os.environ:  # preflight for other machines
        return []
    lines = []
    for split, settings in loaders.items():
        images = 1
        if split == "train":
            images = settings.get("total_batch_size", 1) // (world_size * accumulate)
        lines += _warnings(f"dataloader.{split}", settings, images, here)
    return lines


def _warnings(field: str, settings: Any, images: int, here: int) -> list[str]:
    """Return the lines for one loader, with `images` images in a batch."""
    workers = settings.get("num_workers", 0)
    if not workers or not test_sets(settings):  # a loader of your own
        return []
    samples = images * (2 * workers + 1)  # including the batch in use
    free, allowed = shared_memory_free(), open_files_allowed() - _OWN_FILES
    if free >= samples * here * _MOST_BYTES and allowed >= samples * _MOST_TENSORS:
        return []
    nbytes, tensors = _largest_sample(field, settings)
    remedy = f"or lower {field}.num_workers"
    lines = []
    if (needed := samples * here * nbytes) > free:
        lines.append(
            f"loader      warning: {here * workers} workers may need {needed / 1e6:.1f} MB of"
            f" shared memory, but only {free / 1e6:.1f} MB of {SHARED_MEMORY} are free; start the"
            f" container with more (docker run --shm-size=8g), {remedy}"
        )
    if (files := samples * tensors) > allowed:
        lines.append(
            f"loader      warning: {workers} workers may need {files + _OWN_FILES} open files, but"
            f" only {allowed + _OWN_FILES:g} are allowed; raise the limit (`ulimit -Hn`), {remedy}"
        )
    return lines


def _largest_sample(field: str, settings: Any) -> tuple[int, int]:
    """Return the most bytes and tensors of any of the first samples; 0, 0 for a custom loader."""
    loaders = [settings]
    if field != "dataloader.train":  # each test set has its own loader
        # Copies keep their parent, which interpolations need.
        loaders = [copy.deepcopy(settings) for _ in test_sets(settings)]
        for one, name in zip(loaders, test_sets(settings), strict=True):
            one.dataset.names = name
    sizes = []
    for one in loaders:
        with config_errors(field):
            loader = instantiate(one)
        if isinstance(loader, Loader):
            samples = (sample for _, sample in itertools.islice(loader.pairs(), _SAMPLES))
            sizes += [_tensors_of(sample) for sample in samples if isinstance(sample, dict)]
    return max((n for n, _ in sizes), default=0), max((n for _, n in sizes), default=0)


def _tensors_of(sample: dict) -> tuple[int, int]:
    counter = _TensorCounter(io.BytesIO())
    counter.dump(sample)
    return counter.nbytes, counter.count


class _TensorCounter(pickle.Pickler):
    """Count the tensors in an object by pickling it, as for another process."""

    nbytes = count = 0

    def persistent_id(self, obj: Any) -> int | None:
        if not isinstance(obj, torch.Tensor):
            return None
        self.nbytes += obj.nbytes
        self.count += 1
        return self.count
