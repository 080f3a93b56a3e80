"""What a training step sees depends on seed and position only."""

import errno
import itertools
import multiprocessing
import multiprocessing.queues
import os
import random
import signal
import threading
import time

import numpy as np
import pycocotools.mask
import pytest
import torch
from detectron2.data import DatasetMapper
from detectron2.structures import BitMasks, BoxMode, PolygonMasks, polygons_to_bitmask
from torch.utils.data import DataLoader

from d2ext._compat import loader_workers
from d2ext.data.formats.via import read_via
from d2ext.data.loading.loader import build_test_loader, build_train_loader
from d2ext.data.loading.sample_errors import generators_seeded
from d2ext.data.loading.workers import WorkerContext, end_workers, last_words
from d2ext.data.records.cache import cached_records
from d2ext.data.records.records import select
from d2ext.errors import UserError
from d2ext.launch.spawn import exit_process

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


@pytest.mark.parametrize("mask_format", ["polygon", "bitmask"])
def test_polygons_and_rle_in_one_image_train(tiny_root, mask_format):
    """Detectron2's mapper raises there. Only the image with an RLE gets bitmaps."""
    folder = tiny_root / "balloon" / "train"
    records = read_via(folder / "via_region_data.json", folder, ["balloon"])
    records = sorted(records, key=lambda r: -len(r["annotations"]))[:2]
    for annotation in (a for r in records for a in r["annotations"]):
        annotation["bbox_mode"] = BoxMode.XYXY_ABS
    mapper = DatasetMapper(
        is_train=True,
        augmentations=[],
        image_format="BGR",
        use_instance_mask=True,
        instance_mask_format=mask_format,
        recompute_boxes=True,
    )

    def masks(records):
        options = dict(total_batch_size=2, num_workers=0, seed=0)
        options |= dict(reference_batch_size=1, reference_world_size=1)
        samples = next(iter(build_train_loader(records, mapper, **options)))
        by_id = {s["image_id"]: s["instances"].gt_masks for s in samples}
        return [by_id[r["image_id"]] for r in records]

    polygons = masks(records)
    size = records[0]["height"], records[0]["width"]
    first = records[0]["annotations"][0]
    (rle,) = pycocotools.mask.frPyObjects(first["segmentation"], *size)
    first["segmentation"] = {**rle, "counts": rle["counts"].decode()}
    mixed, other = masks(records)
    assert isinstance(mixed, BitMasks) and isinstance(other, type(polygons[1]))
    if mask_format == "polygon":
        assert isinstance(other, PolygonMasks)
        before = [polygons_to_bitmask(p, *size) for p in polygons[0].polygons]
    else:
        before = polygons[0].tensor.numpy()
    assert (mixed.tensor.numpy() == before).all()


def _rank(rank, store, results):
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{store}", rank=rank, world_size=2
    )
    results.put((rank, {n: _take(6, num_workers=n) for n in (0, 1, 3)}))
    torch.distributed.barrier()
    exit_process(0)


@pytest.mark.slow
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


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_broken_image_of_an_evaluation_is_left_out(num_workers):
    loader = build_test_loader(RECORDS, Once(), num_workers=num_workers, bad_images="skip")
    for _ in range(2):
        seen = [sample["image_id"] for batch in loader for sample in batch]
        assert seen == [r["image_id"] for r in RECORDS if r["image_id"] != 1]
        assert loader.left_out == [
            "image 1.jpg cannot be read: image file is truncated; replace or unlist it"
        ]


class Hangs:
    def __call__(self, record):
        time.sleep(3)


def test_a_disk_that_hangs_ends_an_evaluation(monkeypatch):
    monkeypatch.setattr("d2ext.data.loading.loader._TIMEOUT_S", 0.5)
    with pytest.raises(RuntimeError, match="DataLoader timed out"):
        next(iter(build_test_loader(RECORDS, Hangs(), num_workers=1)))


class Once(Noise):
    """One image is broken."""

    def __call__(self, record):
        if record["image_id"] == 1:
            raise OSError("image file is truncated")
        return super().__call__(record)


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


def test_workers_start_with_the_iterator_and_end_with_it():
    before = set(multiprocessing.active_children())
    batches = iter(build_test_loader(RECORDS, Noise(), num_workers=1))
    (worker,) = set(multiprocessing.active_children()) - before
    batches.close()
    worker.join(timeout=20)
    assert not worker.is_alive()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2])
def test_signals_leave_the_workers_of_a_test_loader_working(number):
    before = set(multiprocessing.active_children())
    batches = iter(build_test_loader(RECORDS, Noise(), num_workers=1))
    seen = [next(batches)]
    (worker,) = set(multiprocessing.active_children()) - before
    os.kill(worker.pid, number)  # most of its images are still to come
    seen += batches
    assert [[sample["image_id"] for sample in batch] for batch in seen] == [[i] for i in range(7)]


@pytest.mark.parametrize("num_workers", [0, 2])
def test_stored_records_are_lists_to_the_loaders(tmp_path, monkeypatch, num_workers):
    monkeypatch.setenv("D2EXT_CACHE", str(tmp_path / "cache"))
    file = tmp_path / "a.json"
    file.write_text("anything")
    records = cached_records(file, {}, lambda: (RECORDS, {}))
    options = dict(total_batch_size=4, num_workers=num_workers, seed=1)
    options |= dict(reference_batch_size=4, reference_world_size=2)

    def both(data):
        train = list(itertools.islice(build_train_loader(data, Noise(), **options), 5))
        return train, list(build_test_loader(data, _same, num_workers=num_workers))

    expected = both(RECORDS)
    assert both(records) == both(select(records, range(7))) == expected


def _same(record):
    return record


class SomeBroken:
    """A mapper that cannot read images 1 and 4, or none at all."""

    def __init__(self, broken=(1, 4)):
        self._broken = broken

    def __call__(self, record):
        if record["image_id"] in self._broken:
            raise OSError("image file is truncated (3 bytes not processed)")
        return {"image_id": record["image_id"], "draw": np.random.rand()}


def _skipping(broken=(1, 4), **options):
    defaults = dict(total_batch_size=4, num_workers=0, seed=1, bad_images="skip")
    defaults |= dict(reference_batch_size=2, reference_world_size=1)
    return build_train_loader(RECORDS, SomeBroken(broken), **defaults | options)


def test_bad_images_are_replaced_by_others_that_the_position_gives():
    """As many in each batch, the same ones for any workers and any start; and they are counted."""
    loader = _skipping()
    batches = list(itertools.islice(loader, 6))
    assert all(len(batch) == 4 for batch in batches)
    assert not {1, 4} & {sample["image_id"] for batch in batches for sample in batch}
    assert {m.split()[1] for m in loader.replaced} == {"1.jpg", "4.jpg"}
    assert list(itertools.islice(_skipping(num_workers=2), 6)) == batches
    assert list(itertools.islice(_skipping(start_iter=3), 3)) == batches[3:]
    # What can be read is what it would be without the others.
    whole = list(itertools.islice(_skipping(broken=()), 6))
    bad = sum(sample["image_id"] in (1, 4) for batch in whole for sample in batch)
    assert sum(loader.replaced.values()) == bad > 5
    pairs = [(a, b) for x, y in zip(batches, whole, strict=True) for a, b in zip(x, y, strict=True)]
    assert all(a == b for a, b in pairs if b["image_id"] not in (1, 4))


def test_where_no_image_can_be_read_it_ends():
    with pytest.raises(UserError, match="cannot be read.*nor could 20 others"):
        next(iter(_skipping(broken=range(7))))


class Dies:
    def __call__(self, record):
        os.kill(os.getpid(), signal.SIGKILL)


def test_a_worker_that_is_killed_is_named():
    from d2ext.engine.resource_errors import resource_errors_explained

    loader = build_train_loader(
        RECORDS,
        Dies(),
        total_batch_size=2,
        num_workers=1,
        seed=0,
        reference_batch_size=2,
        reference_world_size=1,
    )
    with pytest.raises(UserError, match="a loader worker died .*lower dataloader.train.num_wor"):
        with resource_errors_explained(str, "", "dataloader.train.num_workers"):
            next(iter(loader))


class Unsendable:
    def __call__(self, record):
        return {"image": lambda: record}  # no process can send a function of a function


class ManyFiles:
    def __call__(self, record):
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE), record["file_name"])


@pytest.mark.parametrize(
    ("mapper", "words"),
    [
        (Unsendable(), "a loader worker cannot send its batch .*num_workers=0 needs none"),
        # The image is not to blame, and none is skipped for it.
        (ManyFiles(), "ran out of open files .*Too many open files.*ulimit -n"),
    ],
)
def test_what_a_worker_cannot_do_ends_the_run_at_once(mapper, words, capfd):
    from d2ext.engine.resource_errors import resource_errors_explained

    options = dict(total_batch_size=2, num_workers=1, seed=0, bad_images="skip")
    options |= dict(reference_batch_size=2, reference_world_size=1)
    start = time.monotonic()
    with pytest.raises(UserError, match=words):
        with resource_errors_explained(str, "", "dataloader.train.num_workers"):
            next(iter(build_train_loader(RECORDS, mapper, **options)))
    assert time.monotonic() - start < 10
    assert "Traceback" not in capfd.readouterr().err


def test_a_thread_that_reads_batches_ends_quietly(capfd):
    """Torch's for pinned memory, whose end the trainer would not notice."""
    batches = WorkerContext().Queue()
    batches.put(Unreadable())

    def read():
        with pytest.raises(SystemExit):  # which Python's threads do not print
            batches.get()

    reader = threading.Thread(target=read)
    reader.start()
    reader.join()
    assert last_words(5) == "OSError: received nothing" and last_words() == ""
    assert "Traceback" not in capfd.readouterr().err


class Unreadable:
    def __reduce__(self):
        return _fail, ()


def _fail():
    raise OSError("received nothing")


def test_the_death_of_a_worker_interrupts_nothing_else():
    """Torch's own handler would raise here, in whatever the trainer does."""
    batches = iter(build_test_loader(RECORDS, Noise(), num_workers=1))
    next(batches)
    (worker,) = multiprocessing.active_children()
    worker.kill()
    worker.join()
    assert signal.getsignal(signal.SIGCHLD) == signal.SIG_DFL
    with pytest.raises(RuntimeError, match="DataLoader worker .*SIGKILL"):
        list(batches)


def test_workers_end():
    loader = DataLoader(RECORDS, num_workers=2)
    batches = iter(loader)
    workers = set(loader_workers(batches))
    assert workers == set(multiprocessing.active_children())
    end_workers(batches, patience=20)
    assert not any(worker.is_alive() for worker in workers)
    assert not [t for t in threading.enumerate() if isinstance(t, threading.Timer)]
    assert loader_workers(iter(DataLoader(RECORDS))) == []


def test_workers_that_hang_are_killed(monkeypatch):
    monkeypatch.setattr("d2ext.data.loading.loader._FAREWELL", 0.2)
    batches = iter(build_test_loader(RECORDS, Hangs(), num_workers=2))
    start = time.monotonic()
    batches.close()
    assert time.monotonic() - start < 2 and not multiprocessing.active_children()
