"""What a training step sees depends on seed and position only."""

import itertools
import multiprocessing
import os
import random
import signal

import numpy as np
import pytest
import torch

from d2ext.data.loader import build_test_loader, build_train_loader, generators_seeded
from d2ext.errors import UserError

RECORDS = [dict(file_name=f"{i}.jpg", height=1 + i % 2, width=1, image_id=i) for i in range(7)]


class Noise:
    """A mapper that draws from every global generator, as augmentations of users do."""

    def __call__(self, record):
        draws = np.random.rand(), random.random(), float(torch.rand(1))
        return {"image_id": record["image_id"], "draws": draws}


class Broken:
    def __call__(self, record):
        raise OSError("image file is truncated")


def _take(steps, **options):
    defaults = dict(total_batch_size=4, num_workers=0, seed=1)
    defaults |= dict(reference_batch_size=2, reference_world_size=1)
    loader = iter(build_train_loader(RECORDS, Noise(), **defaults | options))
    return [next(loader) for _ in range(steps)]


def test_neither_workers_nor_the_past_matter():
    batches = _take(6)
    np.random.seed(0)
    assert _take(6) == batches
    assert _take(6, num_workers=2) == batches
    assert _take(3, start_iter=3) == batches[3:]
    assert _take(6, seed=2) != batches


def _rank(rank, store, results):
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{store}", rank=rank, world_size=2
    )
    results.put((rank, {n: _take(6, num_workers=n) for n in (0, 1, 3)}))
    torch.distributed.barrier()


def test_any_layout_sees_the_same(tmp_path):
    """1 process, 2 processes, 1 that accumulates; 0, 1 or 3 workers: the same draws in order."""
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    processes = [
        context.Process(target=_rank, args=(rank, tmp_path / "store", results)) for rank in (0, 1)
    ]
    for process in processes:
        process.start()
    ranks = dict(results.get(timeout=120) for _ in processes)
    for process in processes:
        process.join(timeout=60)
        assert process.exitcode == 0
    whole = _take(6)
    for workers in (0, 1, 3):
        parts = zip(ranks[0][workers], ranks[1][workers], strict=True)
        assert [a + b for a, b in parts] == whole
        micro = _take(12, num_workers=workers, accumulate=2)
        assert [a + b for a, b in zip(micro[::2], micro[1::2], strict=True)] == whole


def test_the_trainer_s_generators_stay_as_they_were():
    np.random.seed(5), random.seed(5), torch.manual_seed(5)
    expected = np.random.rand(), random.random(), float(torch.rand(1))
    np.random.seed(5), random.seed(5), torch.manual_seed(5)
    with generators_seeded(1, 2):
        np.random.rand(), random.random(), torch.rand(1)
    assert (np.random.rand(), random.random(), float(torch.rand(1))) == expected


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_broken_image_is_named(num_workers):
    options = dict(total_batch_size=1, num_workers=num_workers, seed=0)
    options |= dict(reference_batch_size=1, reference_world_size=1)
    with pytest.raises(UserError, match=r"\d.jpg cannot be read: image file is truncated"):
        next(iter(build_train_loader(RECORDS, Broken(), **options)))
    with pytest.raises(UserError, match="0.jpg cannot be read"):
        next(iter(build_test_loader(RECORDS, Broken(), num_workers=num_workers)))


class Picky(Noise):
    """Fails on some images, in ways that are known and in others."""

    def __call__(self, record):
        if record["image_id"] == 1:
            raise OSError("image file is truncated")
        if record["image_id"] == 2:
            raise KeyError("a mapper's own")
        return super().__call__(record)


def test_pairs_are_what_a_training_sees_and_go_on_behind_a_failure():
    options = dict(total_batch_size=4, num_workers=0, seed=1)
    options |= dict(reference_batch_size=2, reference_world_size=1)
    trained = [sample for batch in _take(5) for sample in batch][3:]
    loader = build_train_loader(RECORDS, Picky(), **options)
    assert loader.images == 7
    pairs = list(itertools.islice(loader.pairs(skip=3), 17))
    assert [record["image_id"] for record, _ in pairs] == [t["image_id"] for t in trained]
    said = {1: "1.jpg cannot be read: image file is truncated", 2: "2.jpg: KeyError: 'a mapper's"}
    for (record, sample), other in zip(pairs, trained, strict=True):
        if words := said.get(record["image_id"]):
            assert isinstance(sample, UserError) and words in str(sample).replace('"', "'")
        else:
            assert sample == other
    tested = list(build_test_loader(RECORDS, Picky(), num_workers=0).pairs(mapped=False))
    assert tested == [(record, None) for record in RECORDS]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2])
def test_signals_leave_the_workers_of_a_test_loader_working(number):
    before = set(multiprocessing.active_children())
    batches = iter(build_test_loader(RECORDS, Noise(), num_workers=1))
    seen = [next(batches)]
    (worker,) = set(multiprocessing.active_children()) - before
    os.kill(worker.pid, number)  # most of its images are still to come
    seen += batches
    assert [[sample["image_id"] for sample in batch] for batch in seen] == [[i] for i in range(7)]
