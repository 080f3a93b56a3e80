"""Cached datasets: created once, found, created again, with the same records as the readers."""

import functools
import json
import logging
import multiprocessing
import os
import pickle
import signal
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from d2ext.data.formats.coco import read_coco
from d2ext.data.formats.coco_file import CocoColumns, read_repaired
from d2ext.data.records import cache as record_cache
from d2ext.data.records.cache import cached_coco_records, cached_records, cached_value
from d2ext.data.records.columns import Columns
from d2ext.data.records.records import Records, applied, columns_of, join, relabeled, select
from d2ext.errors import UserError
from d2ext.files import cache_dir

SPAWN = multiprocessing.get_context("spawn")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Set up an empty cache, and reset the state of this process."""
    monkeypatch.setenv("D2EXT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(record_cache._Place, "_in_memory", {})
    monkeypatch.setattr(record_cache._Place, "_said", set())
    return cache_dir() / "datasets"


class Reader:
    """Read a file of JSON records, optionally slowly, and count the calls."""

    def __init__(self, file: Path, seconds: float = 0, log: Path | None = None):
        self.file, self.seconds, self.log = file, seconds, log
        self.calls = 0

    def __call__(self) -> tuple[list[dict], dict]:
        self.calls += 1
        if self.log:
            with open(self.log, "a") as f:
                f.write("built\n")
        records = json.loads(self.file.read_text())
        time.sleep(self.seconds)
        logging.getLogger("d2ext.data.formats.test").warning("one label is invalid")
        return records, {"classes": ["cat"]}


def record(number: int = 1, **more: object) -> dict:
    annotation = {"bbox": [1, 2.5, 3, 4], "bbox_mode": 0, "category_id": 0}
    return {
        "file_name": f"imgs/ü {number}.jpg",
        "image_id": number,
        "height": 10,
        "width": 20,
        "annotations": [
            {**annotation, "segmentation": [[0, 0, 1.5, 0, 1, 1]], "keypoints": [1, 2, 2]},
            {**annotation, "iscrowd": 1, "segmentation": {"size": [10, 20], "counts": "x"}},
            annotation,
        ],
        **more,
    }


@pytest.fixture
def reader(tmp_path: Path) -> Reader:
    file = tmp_path / "records.json"
    file.write_text(json.dumps([record(i) for i in range(1, 4)]))
    return Reader(file)


def load(reader: Reader, **options: object) -> Records:
    return cached_records(reader.file, {"reader": "test", **options}, reader)


def entries(cache: Path) -> list[Path]:
    return sorted(cache.glob("*.pages"))


def test_the_second_load_does_not_read_the_file(
    reader: Reader, caplog: pytest.LogCaptureFixture
) -> None:
    first = load(reader)
    record_cache._Place._said.clear()  # like a new process
    caplog.clear()
    again = load(reader)
    assert list(again) == list(first) == [record(i) for i in range(1, 4)]
    assert again.info["classes"] == ["cat"]
    assert reader.calls == 1
    assert caplog.messages == [
        "one label is invalid"
    ]  # the reader's message, logged without calling it
    caplog.clear()
    load(reader)
    assert not caplog.messages


def test_each_set_of_options_has_its_own_entry(reader: Reader, cache: Path) -> None:
    for classes in (["cat"], ["dog"], ["cat"]):
        load(reader, classes=classes)
    assert reader.calls == len(entries(cache)) == 2


def test_a_touched_file_is_recognized_by_its_content(
    reader: Reader, monkeypatch: pytest.MonkeyPatch
) -> None:
    load(reader)
    os.utime(reader.file, (1, 1))
    assert len(load(reader)) == 3
    assert reader.calls == 1
    # The new times are stored now, so nothing is hashed again.
    monkeypatch.setattr(record_cache, "_sha256", lambda file: pytest.fail("hashed"))
    load(reader)


def test_a_changed_file_is_read_again(reader: Reader) -> None:
    before, times = load(reader), os.stat(reader.file)
    content = reader.file.read_text()
    reader.file.write_text(content.replace('"image_id": 1', '"image_id": 9'))
    os.utime(reader.file, ns=(times.st_atime_ns, times.st_mtime_ns))  # the same size and time
    assert load(reader)[0]["image_id"] == 9
    assert before[0]["image_id"] == 1  # open records do not change
    reader.file.write_text(content)
    assert load(reader)[0]["image_id"] == 1
    assert reader.calls == 2  # the first entry is still there


def test_a_file_that_changes_while_it_is_read_is_refused(reader: Reader, cache: Path) -> None:
    def build() -> tuple[list[dict], dict]:
        records, info = reader()
        reader.file.write_text("[]")
        return records, info

    with pytest.raises(UserError, match=r"records.json changed while it was read"):
        cached_records(reader.file, {}, build)
    assert not entries(cache)


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: b"",
        lambda data: data[:-1],
        lambda data: data[: len(data) // 2],
        lambda data: data[:-30] + bytes(30),
        lambda data: bytes(len(data)),
        lambda data: data + b"more",
        lambda data: data.replace(b'"heights"', b'"weights"'),
    ],
)
def test_a_damaged_entry_is_created_again(
    reader: Reader, cache: Path, damage: object, caplog: pytest.LogCaptureFixture
) -> None:
    load(reader)
    [entry] = entries(cache)
    whole = entry.read_bytes()
    entry.write_bytes(damage(whole))
    assert list(load(reader)) == [record(i) for i in range(1, 4)]
    assert reader.calls == 2
    assert f"{entry} is damaged" in caplog.text
    assert entry.read_bytes() == whole


def test_a_damaged_index_is_created_again(reader: Reader, cache: Path) -> None:
    load(reader)
    for text in ("", "[]", "{", '{"stamp": 1}', "null"):
        for index in cache.glob("*.json"):
            index.write_text(text)
        assert len(load(reader)) == 3
    assert reader.calls == 1  # the entry itself was found by its content


def test_a_flipped_bit_is_detected(reader: Reader, cache: Path) -> None:
    load(reader)
    [entry] = entries(cache)
    data = bytearray(entry.read_bytes())
    data[40] ^= 1  # in the first record
    entry.write_bytes(data)
    records = load(reader)
    assert records[1] == record(2)
    with pytest.raises(UserError, match=f"{entry} is damaged; delete it"):
        records[0]


def test_a_cache_that_cannot_be_written(
    reader: Reader, cache: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    cache.parent.write_text("a file where the folder should be")  # permissions would not stop root
    records = load(reader)
    assert list(records) == list(load(reader)) == [record(i) for i in range(1, 4)]
    assert list(pickle.loads(pickle.dumps(records))) == list(records)
    assert reader.calls == 1  # this process keeps the records in memory
    load(reader, other=1)
    warnings = [m for m in caplog.messages if "datasets cannot be cached" in m]
    assert len(warnings) == 1 and str(cache) in warnings[0] and "D2EXT_CACHE" in warnings[0]


def test_a_full_disk(
    reader: Reader, cache: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(fd: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    assert list(load(reader)) == [record(i) for i in range(1, 4)]
    assert "No space left on device" in caplog.text
    assert not entries(cache) and not list(cache.glob(".*"))


def test_a_read_only_cache_serves_its_entries(
    reader: Reader, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    load(reader)

    def refuse(*args: object, **kwargs: object) -> None:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(os, "utime", refuse)
    load(reader)
    reader.file.touch()
    monkeypatch.setattr(record_cache._Place, "_locked", refuse)
    monkeypatch.setattr(record_cache, "atomic_write", refuse)
    monkeypatch.setattr("d2ext.files.open", refuse, raising=False)
    assert len(load(reader)) == 3
    assert reader.calls == 1


def _build(reader: Reader, barrier: object, queue: object) -> None:
    barrier.wait(30)
    queue.put([list(load(reader)), os.getpid()])


def test_two_processes_build_once(reader: Reader, tmp_path: Path) -> None:
    reader.seconds, reader.log = 1, tmp_path / "log"
    barrier, queue = SPAWN.Barrier(2), SPAWN.Queue()
    processes = [SPAWN.Process(target=_build, args=(reader, barrier, queue)) for _ in range(2)]
    for p in processes:
        p.start()
    results = [queue.get(timeout=60) for _ in processes]
    for p in processes:
        p.join()
    assert results[0][0] == results[1][0] == [record(i) for i in range(1, 4)]
    assert reader.log.read_text() == "built\n"


def test_two_processes_without_a_lock(
    reader: Reader, monkeypatch: pytest.MonkeyPatch, cache: Path
) -> None:
    """Simulate two machines that share the folder: the other one finishes while this one reads."""
    import contextlib

    monkeypatch.setattr(record_cache._Place, "_locked", contextlib.nullcontext)
    cache.mkdir(parents=True)

    def build() -> tuple[list[dict], dict]:
        assert list(load(reader)) == reader()[0]
        return reader()

    records = cached_records(reader.file, {"reader": "test"}, build)
    assert list(records) == [record(i) for i in range(1, 4)]
    assert len(entries(cache)) == 1


def _kill_while_writing(reader: Reader) -> None:
    os.fsync = lambda fd: os.kill(os.getpid(), signal.SIGKILL)
    load(reader)


def test_the_partial_file_of_a_killed_writer_is_not_read(reader: Reader, cache: Path) -> None:
    p = SPAWN.Process(target=_kill_while_writing, args=(reader,))
    p.start()
    p.join(60)
    assert p.exitcode == -signal.SIGKILL
    [left] = cache.glob(".*.tmp")
    assert not entries(cache)
    os.utime(left, (1, 1))  # older than an hour
    assert list(load(reader)) == [record(i) for i in range(1, 4)]  # the lock is released as well
    assert reader.calls == 1
    assert not left.exists()


def test_unused_entries_are_removed(reader: Reader, cache: Path) -> None:
    load(reader, classes=["a"])
    [old] = entries(cache)
    load(reader, classes=["b"])
    used = [entry for entry in entries(cache) if entry != old]
    for entry in entries(cache):
        os.utime(entry, (1, 1))
    load(reader, classes=["b"])  # in use again
    load(reader, classes=["c"])
    assert not old.exists() and all(entry.exists() for entry in used)


def test_errors_of_the_reader_are_raised(tmp_path: Path, cache: Path) -> None:
    with pytest.raises(UserError, match="absent.json does not exist"):
        cached_coco_records(tmp_path / "absent.json", "imgs")
    (tmp_path / "bad.json").write_text('{"images": 3}')
    with pytest.raises(UserError, match="bad.json is not a COCO annotation file"):
        cached_coco_records(tmp_path / "bad.json", "imgs")
    assert not entries(cache)


def test_values_that_cannot_be_stored_are_refused(reader: Reader) -> None:
    build = lambda: ([record(mask=np.zeros(3))], {})  # noqa: E731
    with pytest.raises(UserError, match="cannot be cached.*plain"):
        cached_records(reader.file, {}, build)


def test_unusual_values_are_preserved(reader: Reader) -> None:
    odd = [
        record(1, image_id="a/ü", note="\ud800", large=10**400, big=1e308, none=None),
        record(2, height="ten", width=True, x=float("inf")),
        {"file_name": Path("a.jpg")},
    ]
    records = cached_records(reader.file, {}, lambda: (odd, {}))
    assert list(records) == [odd[0], odd[1], {"file_name": "a.jpg"}]
    assert records.image_ids() == ["a/ü", 2, None]
    assert records.columns.heights.tolist() == [10, -1, -1]
    assert records.columns.widths.tolist() == [20, -1, -1]
    nan = cached_records(reader.file, {"x": 1}, lambda: ([record(x=float("nan"))], {}))[0]["x"]
    assert nan != nan


def test_a_pickle_holds_only_the_path(reader: Reader, cache: Path) -> None:
    records = load(reader)
    pickled = pickle.dumps(records)
    assert len(pickled) < 500
    assert list(pickle.loads(pickled)) == list(records)
    chosen = select(join([records, records]), np.arange(6) % 5 == 0)
    assert list(pickle.loads(pickle.dumps(chosen))) == [record(1), record(3)]


def _renamed(record: dict) -> dict:
    return {**record, "file_name": "x.jpg"}


def test_views_and_their_columns(reader: Reader) -> None:
    records = load(reader)
    view = applied(select(join([records, [record(7, annotations=[])]]), [3, 0, 0, -2]), _renamed)
    plain = [_renamed(record(i)) for i in (7, 1, 1, 3)]
    plain[0]["annotations"] = []
    assert list(view) == plain
    assert [view[-1], *view[1:3]] == [plain[3], *plain[1:3]]
    for name in Columns.NAMES:
        ours, theirs = getattr(columns_of(view), name), getattr(columns_of(plain), name)
        assert ours.tolist() == theirs.tolist() and ours.dtype == theirs.dtype, name
    counts = [c.tolist() for c in columns_of(view).category_counts(2)]
    assert counts == [[6, 0], [3, 0]]
    with pytest.raises(IndexError):
        view[4]


def test_relabeled(reader: Reader) -> None:
    records = load(reader)
    both = join([records, relabeled(records, [1]), relabeled(records, [None])])
    classes = [[a["category_id"] for a in r["annotations"]] for r in both]
    assert classes == [[0] * 3] * 3 + [[1] * 3] * 3 + [[]] * 3
    for name in Columns.NAMES:
        ours, theirs = getattr(columns_of(both), name), getattr(columns_of(list(both)), name)
        assert ours.tolist() == theirs.tolist() and ours.dtype == theirs.dtype, name


def coco(**more: object) -> dict:
    return {
        "images": [
            {"id": i, "file_name": f"sub/ü{i}.jpg", "height": 10, "width": 20} for i in (30, 7)
        ],
        "annotations": [],
        "categories": [{"id": 3, "name": "cat"}, {"id": 1, "name": "dog"}],
        **more,
    }


number = st.one_of(
    st.integers(-3, 60),
    st.floats(-3, 60),
    st.sampled_from([1e-7, 1e5, 0.0, 2**60, 1e999, -1e999, float("nan"), None, "4", True]),
)
fine = st.one_of(st.integers(0, 60), st.floats(0, 60), st.sampled_from([1e-07, 1e5, 12345678]))
polygon = st.integers(3, 5).flatmap(lambda n: st.lists(fine, min_size=2 * n, max_size=2 * n))
good_masks = st.one_of(
    st.lists(polygon, min_size=1, max_size=2),
    st.lists(st.lists(fine, max_size=8), max_size=3),  # some are too short or have an odd length
    st.just({"size": [10, 20], "counts": [30, 10, 160]}),
    st.just({"size": [10, 20], "counts": "n0:V6"}),
    st.none(),
)
bad_masks = st.one_of(
    st.just({"size": [20, 10], "counts": [200]}),
    st.lists(number, max_size=7),
    st.lists(st.lists(number, min_size=6, max_size=6), max_size=2),
)


def _annotations(masks: st.SearchStrategy, area: st.SearchStrategy) -> st.SearchStrategy:
    side = st.one_of(st.integers(1, 60), st.floats(0.5, 60), st.sampled_from([0, 1e-30, 1e7]))
    one = st.fixed_dictionaries(
        {
            "image_id": st.sampled_from([30, 30, 30, 7]),
            "category_id": st.sampled_from([3, 1]),
            "bbox": st.tuples(fine, fine, side, side).map(list),
        },
        optional={
            "segmentation": masks,
            "area": area,
            "iscrowd": st.sampled_from([0, 0, 1]),
            "ignore": st.sampled_from([0, 0, 1]),
            "difficult": st.sampled_from([0, 0, 1]),
            "is_group_of": st.sampled_from([False, 0, 0, 1, True]),
            "id": st.integers(),
            "attributes": st.just({"x": [1, "\u20ac\\"]}),
            "keypoints": st.sampled_from([[], [1, 2, 2], [0.5, 3, 0] * 2, [1, 2], "none", None]),
        },
    )
    return st.lists(one, max_size=6)


annotations = st.one_of(
    _annotations(good_masks, fine),
    _annotations(good_masks, fine),
    _annotations(bad_masks, fine),
    _annotations(good_masks, number),
)


@settings(max_examples=300, deadline=None)
@given(
    annotations,
    st.sampled_from([None, None, ["dog"], ["dog"], ["cat", "dog"], ["cat", "dog"], ["cow"]]),
    st.sampled_from([*[{}] * 20, {"image_id": 8}, {"category_id": 4}, {"bbox": [1, 2, 3]}]),
    st.booleans(),
)
def test_a_stored_coco_file_gives_the_reader_s_records(
    tmp_path_factory: pytest.TempPathFactory,
    annotations: list,
    classes: list | None,
    oddity: dict,
    ascii_only: bool,
) -> None:
    file = tmp_path_factory.getbasetemp() / "generated.json"
    if annotations:
        annotations = [*annotations[:-1], {**annotations[-1], **oddity}]
    text = json.dumps(coco(annotations=annotations), ensure_ascii=ascii_only)
    file.write_text(text.replace("Infinity", "1e999"))
    outcomes, info = [], {}
    for read in (functools.partial(read_coco, info=info), cached_coco_records):
        try:
            records = read(file, "imgs", classes)
        except UserError as e:
            records = str(e)
        outcomes.append(records)
    if isinstance(outcomes[0], str):
        assert outcomes[1] == outcomes[0]
        return
    (plain, ids), records = outcomes
    assert json.dumps(list(records)) == json.dumps(list(records))
    assert repr(_sorted(list(records))) == repr(_sorted(plain))
    assert dict(records.info["category_ids"]) == ids
    assert {key: records.info[key] for key in info} == info
    kept = sum(len(r["annotations"]) for r in plain)
    assert kept + sum(info["left_out"].values()) == len(annotations)
    assert records.image_ids() == [r["image_id"] for r in plain]
    assert records.file_names() == [r["file_name"] for r in plain]
    expected = columns_of(plain)
    for name in Columns.NAMES:
        assert getattr(records.columns, name).tolist() == getattr(expected, name).tolist()


def _sorted(value: object) -> object:
    """Convert numbers to floats and sort keys, so that equal values have equal texts."""
    if isinstance(value, dict):
        return {k: _sorted(value[k]) for k in sorted(value)}
    if isinstance(value, list):
        return [_sorted(v) for v in value]
    return float(value) if isinstance(value, int) and abs(value) < 2**53 else value


_OBJECT = {"image_id": 7, "category_id": 3, "bbox": [1, 2, 3, 4]}


@pytest.mark.parametrize(
    ("text", "fast"),
    [
        (json.dumps(coco()), True),
        (json.dumps(coco(), indent=1), True),
        (json.dumps(coco(info="x")).encode("utf-16"), False),
        (json.dumps(coco()).encode("utf-8-sig"), False),
        (b'{"info": "\xff",' + json.dumps(coco()).encode()[1:], False),  # read_coco refuses it
        (json.dumps(coco(images=[{"id": 1, "file_name": "a", "height": 2.5, "width": 1}])), False),
        (json.dumps(coco(images=[{"id": 1, "file_name": "../a", "height": 2, "width": 1}])), False),
        (json.dumps(coco(images=coco()["images"] * 2)), False),
        (json.dumps(coco(categories=[])), True),
        (json.dumps(coco(images=[], annotations=[_OBJECT])), False),
        (json.dumps(coco(annotations=[{"image_id": 7, "category_id": 3}])), False),  # no bbox
        ("[]", False),
        ("", False),
    ],
)
def test_which_files_the_fast_reader_accepts(tmp_path: Path, text: str | bytes, fast: bool) -> None:
    file = tmp_path / "coco.json"
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    assert _is_fast(file, "imgs") == fast


def test_an_annotation_without_its_image_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "coco.json"
    file.write_text(json.dumps(coco(images=[], annotations=[_OBJECT])))
    with pytest.raises(UserError, match="refers to the image 7, which `images` lacks"):
        cached_coco_records(file, "imgs")


def _is_fast(file: Path, images: str | Path) -> bool:
    try:
        return isinstance(read_repaired(file, images)[0], CocoColumns)
    except UserError:
        return False


def test_dropped_annotations_are_counted_like_in_the_reader(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    box = _OBJECT
    bad = [{**box, "bbox": [1, 1, 0, 5]}] * 2 + [{**box, "bbox": [0, 0, 1e20, 5]}]
    bad += [{**box, "segmentation": [[1, 2, 3, 4]]}]
    file = tmp_path / "coco.json"
    file.write_text(json.dumps(coco(annotations=[*bad, box])))
    caplog.set_level(logging.INFO)
    read_coco(file, "imgs")
    expected = caplog.messages[:]
    assert "skipped" in expected[0] and "repaired" in expected[1]
    caplog.clear()
    assert _is_fast(file, "imgs")
    assert caplog.messages == expected


def test_the_balloon_annotations_as_coco(tmp_path: Path, real_balloon: Path) -> None:
    from d2ext.data.formats.coco import to_coco
    from d2ext.data.formats.via import read_via

    folder = real_balloon / "train"
    records = read_via(folder / "via_region_data.json", folder, ["balloon"])
    file = tmp_path / "balloon.json"
    file.write_text(json.dumps(to_coco(records, ["balloon"], folder)))
    assert _is_fast(file, folder)
    assert list(cached_coco_records(file, folder)) == read_coco(file, folder)[0]


def test_a_value_is_computed_once_per_file(reader: Reader, cache: Path) -> None:
    calls = []

    def value() -> list[str]:
        calls.append(1)
        return ["cat"]

    assert [cached_value(reader.file, "classes", value) for _ in range(3)] == [["cat"]] * 3
    assert len(calls) == 1
    reader.file.touch()
    assert cached_value(reader.file, "classes", value) == ["cat"]
    assert len(calls) == 2
    for entry in cache.glob("*.json"):
        entry.write_text("{")
    assert cached_value(reader.file, "other", value) == cached_value(reader.file, "classes", value)
    assert len(calls) == 4
    with pytest.raises(FileNotFoundError):
        cached_value(cache / "absent", "x", lambda: open(cache / "absent"))
