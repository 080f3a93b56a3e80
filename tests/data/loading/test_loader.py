"""Loaders: the images of a step depend only on seed and position, and failures are reported."""

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
from d2ext.data.loading.workers import WorkerContext, end_workers, last_words
from d2ext.data.records.cache import cached_records
from d2ext.data.records.records import select
from d2ext.errors import UserError
from d2ext.launch.spawn import exit_process
from d2ext.seeding import generators_seeded

RECORDS = [dict(file_name=f"{i}.jpg", height=1 + i % 2, width=1, image_id=i) for i in range(7)]


class Noise:
    """A mapper that draws from every global generator, as custom augmentations may."""

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


def test_batches_do_not_depend_on_workers_or_earlier_draws():
    batches = _take(6)
    np.random.seed(0)
    assert _take(6) == batches
    assert _take(6, num_workers=2) == batches
    assert _take(3, start_iter=3) == batches[3:]
    assert _take(6, seed=2) != batches


@pytest.mark.parametrize("mask_format", ["polygon", "bitmask"])
def test_image_with_polygons_and_rle_is_loaded(tiny_root, mask_format):
    """Detectron2's mapper raises an error in this case. Only images with an RLE get bitmaps."""
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
def test_every_layout_sees_the_same_data(tmp_path):
    """1 process, 2 processes, or 1 that accumulates, with 0, 1 or 3 workers, draw the same."""
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


def test_global_generators_are_restored():
    np.random.seed(5), random.seed(5), torch.manual_seed(5)
    expected = np.random.rand(), random.random(), float(torch.rand(1))
    np.random.seed(5), random.seed(5), torch.manual_seed(5)
    with generators_seeded(1, 2):
        np.random.rand(), random.random(), torch.rand(1)
    assert (np.random.rand(), random.random(), float(torch.rand(1))) == expected


def test_seeding_does_not_prepare_gpus_that_are_not_used(monkeypatch):
    """That takes `torch.manual_seed` 0.2 ms; the CPU's numbers are the same."""
    calls = []
    monkeypatch.setattr("torch.cuda.manual_seed_all", calls.append)
    with generators_seeded(1, 2):
        found = torch.rand(3)
    assert calls == []
    monkeypatch.setattr("torch.cuda.is_initialized", lambda: True)
    with generators_seeded(1, 2):
        assert torch.equal(torch.rand(3), found)
    assert len(calls) == 1


@pytest.mark.parametrize("num_workers", [0, 1])
def test_broken_image_is_named(num_workers):
    options = dict(total_batch_size=1, num_workers=num_workers, seed=0)
    options |= dict(reference_batch_size=1, reference_world_size=1)
    with pytest.raises(UserError, match=r"\d.jpg cannot be read: image file is truncated"):
        next(iter(build_train_loader(RECORDS, Broken(), **options)))
    with pytest.raises(UserError, match="0.jpg cannot be read"):
        next(iter(build_test_loader(RECORDS, Broken(), num_workers=num_workers)))


@pytest.mark.parametrize("num_workers", [0, 1])
def test_broken_image_is_skipped_in_evaluation(num_workers):
    loader = build_test_loader(RECORDS, OneBroken(), num_workers=num_workers, bad_images="skip")
    for _ in range(2):
        seen = [sample["image_id"] for batch in loader for sample in batch]
        assert seen == [r["image_id"] for r in RECORDS if r["image_id"] != 1]
        assert loader.left_out == [
            "image 1.jpg cannot be read: image file is truncated; replace it, or remove its entry"
        ]


class Hangs:
    def __call__(self, record):
        time.sleep(3)


def test_hanging_disk_ends_evaluation(monkeypatch):
    monkeypatch.setattr("d2ext.data.loading.loader._TIMEOUT_S", 0.5)
    with pytest.raises(RuntimeError, match="DataLoader timed out"):
        next(iter(build_test_loader(RECORDS, Hangs(), num_workers=1)))


class OneBroken(Noise):
    """A mapper that cannot read one image."""

    def __call__(self, record):
        if record["image_id"] == 1:
            raise OSError("image file is truncated")
        return super().__call__(record)


class Picky(Noise):
    """A mapper that fails on two images, with a known and an unknown kind of error."""

    def __call__(self, record):
        if record["image_id"] == 1:
            raise OSError("image file is truncated")
        if record["image_id"] == 2:
            raise KeyError("custom error")
        return super().__call__(record)


def test_pairs_match_training_and_continue_after_failures():
    options = dict(total_batch_size=4, num_workers=0, seed=1)
    options |= dict(reference_batch_size=2, reference_world_size=1)
    trained = [sample for batch in _take(5) for sample in batch][3:]
    loader = build_train_loader(RECORDS, Picky(), **options)
    assert loader.images == 7
    pairs = list(itertools.islice(loader.pairs(skip=3), 17))
    assert [record["image_id"] for record, _ in pairs] == [t["image_id"] for t in trained]
    errors = {1: "1.jpg cannot be read: image file is truncated", 2: "2.jpg: KeyError: 'custom"}
    for (record, sample), other in zip(pairs, trained, strict=True):
        if words := errors.get(record["image_id"]):
            assert isinstance(sample, UserError) and words in str(sample)
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
def test_workers_of_a_test_loader_survive_signals(number):
    before = set(multiprocessing.active_children())
    batches = iter(build_test_loader(RECORDS, Noise(), num_workers=1))
    seen = [next(batches)]
    (worker,) = set(multiprocessing.active_children()) - before
    os.kill(worker.pid, number)  # most of its images are still to be read
    seen += batches
    assert [[sample["image_id"] for sample in batch] for batch in seen] == [[i] for i in range(7)]


@pytest.mark.parametrize("num_workers", [0, 2])
def test_loaders_accept_cached_records(tmp_path, monkeypatch, num_workers):
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
    """A mapper that cannot read the images in `broken`."""

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


def test_bad_images_are_replaced_deterministically():
    """Batches stay full, replacements do not depend on workers or start, and they are counted."""
    loader = _skipping()
    batches = list(itertools.islice(loader, 6))
    assert all(len(batch) == 4 for batch in batches)
    assert not {1, 4} & {sample["image_id"] for batch in batches for sample in batch}
    assert {m.split()[1] for m in loader.replaced} == {"1.jpg", "4.jpg"}
    assert list(itertools.islice(_skipping(num_workers=2), 6)) == batches
    assert list(itertools.islice(_skipping(start_iter=3), 3)) == batches[3:]
    # Readable images give the same samples as without broken ones.
    whole = list(itertools.islice(_skipping(broken=()), 6))
    bad = sum(sample["image_id"] in (1, 4) for batch in whole for sample in batch)
    assert sum(loader.replaced.values()) == bad > 5
    pairs = [(a, b) for x, y in zip(batches, whole, strict=True) for a, b in zip(x, y, strict=True)]
    assert all(a == b for a, b in pairs if b["image_id"] not in (1, 4))


def test_only_unreadable_images_are_an_error():
    with pytest.raises(UserError, match="cannot be read.*and 20 replacements failed as well"):
        next(iter(_skipping(broken=range(7))))


class Dies:
    def __call__(self, record):
        os.kill(os.getpid(), signal.SIGKILL)


def test_killed_worker_is_reported():
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
        return {"image": lambda: record}  # local functions cannot be pickled


class ManyFiles:
    def __call__(self, record):
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE), record["file_name"])


@pytest.mark.parametrize(
    ("mapper", "words"),
    [
        (Unsendable(), "a loader worker cannot send its batch .*num_workers=0 needs none"),
        # This is not the image's fault, so it must not be skipped.
        (ManyFiles(), "ran out of open files .*Too many open files.*ulimit -n"),
    ],
)
def test_worker_errors_end_the_run_at_once(mapper, words, capfd):
    from d2ext.engine.resource_errors import resource_errors_explained

    options = dict(total_batch_size=2, num_workers=1, seed=0, bad_images="skip")
    options |= dict(reference_batch_size=2, reference_world_size=1)
    start = time.monotonic()
    with pytest.raises(UserError, match=words):
        with resource_errors_explained(str, "", "dataloader.train.num_workers"):
            next(iter(build_train_loader(RECORDS, mapper, **options)))
    assert time.monotonic() - start < 10
    assert "Traceback" not in capfd.readouterr().err


def test_reader_thread_ends_without_a_traceback(capfd):
    """An example is torch's pin-memory thread; the trainer would not notice its end."""
    batches = WorkerContext().Queue()
    batches.put(Unreadable())

    def read():
        with pytest.raises(SystemExit):  # threads end silently on it
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


def test_death_of_a_worker_does_not_interrupt_other_code():
    """The signal handler of torch would raise an error here, in whatever the trainer is doing."""
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
    monkeypatch.setattr("d2ext.data.loading.loader._GRACE", 0.2)
    batches = iter(build_test_loader(RECORDS, Hangs(), num_workers=2))
    start = time.monotonic()
    batches.close()
    assert time.monotonic() - start < 2 and not multiprocessing.active_children()
