"""Datasets parsed once and memory-mapped by every process.

An entry of the cache ($D2EXT_CACHE/datasets) is named by what it was made of: the content of the
annotation file, the options and the version of this format. A small file beside it, named by the
path and the options, remembers the content by size and times, so that a start hashes nothing.
"""

import concurrent.futures
import contextlib
import hashlib
import io
import json
import logging
import os
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any

from filelock import FileLock, Timeout

from d2ext.data.formats.coco_file import CocoColumns, read_repaired
from d2ext.data.records.array_file import Damaged
from d2ext.data.records.coco_store import write_store
from d2ext.data.records.records import Records, write_records
from d2ext.errors import UserError
from d2ext.files import atomic_write, cache_dir, write_json
from d2ext.waiting import waiting_for

logger = logging.getLogger(__name__)

_VERSION = 3  # of the records in the entries; a new one makes old entries unknown
_KEPT = 30 * 24 * 3600  # seconds after which an entry that nobody opened is removed

Build = Callable[[], tuple[list[dict], dict[str, Any]]]
_Write = Callable[[IO[bytes], dict[str, Any]], None]


def cached_records(file: str | Path, options: Mapping[str, Any], build: Build) -> Records:
    """Return the records of an annotation file, parsed only where the cache does not hold them yet.

    One process of a machine parses while the others wait. What the reader warns of is logged again
    by processes that find its work done. Where nothing can be cached, the records are in memory.

    Args:
        file: the annotation file, all that the records depend on beside the options.
        options: JSON values that the records depend on, the reader's name among them.
        build: reads the file: dataset dicts of JSON values, and JSON values for `Records.info`.

    Raises:
        UserError: what `build` raises, or the file was changed while it was read.
    """

    def make() -> _Write:
        records, info = build()
        return lambda out, more: write_records(out, records, info | more)

    return _Place(file, options).load(make)


def cached_coco_records(
    json_file: str | Path, image_root: str | Path, classes: list[str] | None = None
) -> Records:
    """`cached_records` for `read_coco`: the same records, parsed without a dict of the whole file.

    Its `info` is that of `read_repaired`.

    Raises:
        UserError: as `read_coco` does.
    """

    def make() -> _Write:
        coco, info = read_repaired(json_file, image_root, classes)
        if isinstance(coco, CocoColumns):
            return lambda out, more: write_store(out, coco, info | more)
        return lambda out, more: write_records(out, coco, info | more)

    names = None if classes is None else list(classes)
    options = {"reader": "coco", "image_root": os.fspath(image_root), "classes": names}
    return _Place(json_file, options).load(make)


def cached_value(file: str | Path, what: str, compute: Callable[[], Any]) -> Any:
    """Return a JSON value that depends on an annotation file alone, computed once for it.

    Args:
        file: the annotation file.
        what: the value's name.
        compute: gives the value; may raise what it likes.
    """
    place = _Place(file, {"value": what})
    try:
        stamp = _stamp(place.file)
    except OSError:
        return compute()
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        known = json.loads(place.index.read_bytes())
        if known["stamp"] == stamp:
            return known["value"]
    value = compute()
    with contextlib.suppress(UserError):  # nothing can be written: computed the next time, too
        write_json(place.index, {"file": place.file, "stamp": stamp, "value": value})
    return value


class _Place:
    """Where the entry for one annotation file and options is, or will be."""

    _in_memory: dict[str, tuple[list[int], Records]] = {}  # by key: the file's stamp, its records
    _said: set[tuple] = set()  # what this process has warned of

    def __init__(self, file: str | Path, options: Mapping[str, Any]):
        self.file = os.path.realpath(file)
        self.options = json.dumps([_VERSION, options], sort_keys=True)
        self.key = _hash(f"{self.file}\0{self.options}")
        self.folder = cache_dir() / "datasets"
        self.index = self.folder / f"{self.key}.json"

    def load(self, make: Callable[[], _Write]) -> Records:
        """Find the records, or make them."""
        if found := self._find():
            return found
        with contextlib.ExitStack() as stack:
            trouble = None
            try:
                stack.enter_context(self._locked())
            except OSError as e:
                trouble = e
            # The others waited for this: the first one has made it.
            if found := self._find() or self._find_by_content():
                return found
            return self._make(make, trouble)

    def _find(self) -> Records | None:
        """Return the entry, if the file has the size and times that it had."""
        try:
            stamp = _stamp(self.file)
            kept_stamp, records = self._in_memory.get(self.key, (None, None))
            if kept_stamp == stamp:
                return records
            known = json.loads(self.index.read_bytes())
            if known["stamp"] == stamp:
                return self._open(known["sha256"])
        except (OSError, ValueError, KeyError, TypeError):
            pass  # absent, or damaged
        return None

    def _find_by_content(self) -> Records | None:
        """Return the entry for the same content, by whatever time or name the file had it."""
        if not self.index.exists():
            return None  # never seen: the hash is taken while it is read
        stamp, sha256 = _stamp(self.file), _sha256(self.file)
        if (found := self._open(sha256)) and _stamp(self.file) == stamp:
            with contextlib.suppress(UserError):  # a cache that can only be read
                self._remember(stamp, sha256)
        return found

    def _open(self, sha256: str) -> Records | None:
        entry = self._entry(sha256)
        try:
            records = Records(str(entry))
        except FileNotFoundError:
            return None
        except (OSError, Damaged) as e:
            self._say(logging.WARNING, f"{entry} is damaged ({e}); it is made again")
            return None
        with contextlib.suppress(OSError):
            os.utime(entry)  # in use: see _remove_old
        for level, message in records.info["messages"]:
            self._say(level, message)
        return records

    def _make(self, make: Callable[[], _Write], trouble: Exception | None) -> Records:
        try:
            stamp = _stamp(self.file)
        except OSError:
            make()  # says what is wrong with the file
            raise
        with concurrent.futures.ThreadPoolExecutor(1) as pool, _messages() as messages:
            hashing = pool.submit(_sha256, self.file)
            write = make()
            sha256 = hashing.result()
        if _stamp(self.file) != stamp:
            raise UserError(f"{self.file} was changed while it was read; start again")
        self._said.update((self.key, message) for _, message in messages)
        more = {"messages": messages}
        if trouble is None:
            entry = self._entry(sha256)
            try:
                self._remove_old()
                with atomic_write(entry, "wb") as f:
                    write(f, more)
                self._remember(stamp, sha256)
                return Records(str(entry))
            except (OSError, Damaged) as e:
                trouble = e
            except UserError as e:  # of `atomic_write`; others are the user's
                if not isinstance(e.__cause__, OSError):
                    raise
                trouble = e.__cause__
        self._say(
            logging.WARNING,
            f"{self.folder} cannot hold data sets ({trouble.strerror or trouble}); each process"
            " parses them anew and keeps them in memory; set D2EXT_CACHE to a folder with space",
            once_for="the cache",
        )
        memory = io.BytesIO()
        write(memory, more)
        records = Records(memory.getbuffer())
        self._in_memory[self.key] = stamp, records
        return records

    def _entry(self, sha256: str) -> Path:
        return self.folder / f"{_hash(sha256 + self.options)}.pages"

    def _remember(self, stamp: list[int], sha256: str) -> None:
        write_json(self.index, {"file": self.file, "stamp": stamp, "sha256": sha256})

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        """Hold this machine's other processes off; a killed one leaves no lock."""
        self.folder.mkdir(parents=True, exist_ok=True)
        # Where the file system has no locks, filelock would make a file that outlives its process.
        lock = FileLock(self.folder / f"{self.key}.lock", fallback_to_soft=False)
        try:
            lock.acquire(blocking=False)
        except Timeout:
            with waiting_for(f"another process, which reads {self.file}"):
                lock.acquire()
        try:
            yield
        finally:
            lock.release()

    def _remove_old(self) -> None:
        """Remove entries unused for a month, and what killed processes left."""
        for pattern, age in (("*.pages", _KEPT), (".*.tmp", 3600)):
            for old in self.folder.glob(pattern):
                with contextlib.suppress(OSError):
                    if time.time() - old.stat().st_mtime > age:
                        old.unlink()

    def _say(self, level: int, message: str, once_for: str = "") -> None:
        """Log a message once a process: one on this file, or the first one of `once_for`."""
        said = (once_for,) if once_for else (self.key, message)
        if said not in self._said:
            self._said.add(said)
            logger.log(level, "%s", message)


@contextlib.contextmanager
def _messages() -> Iterator[list[tuple[int, str]]]:
    """Collect the levels and messages of what readers log."""
    messages: list[tuple[int, str]] = []
    handler = logging.Handler(logging.INFO)
    handler.emit = lambda record: messages.append((record.levelno, record.getMessage()))
    readers = logging.getLogger("d2ext.data.formats")
    readers.addHandler(handler)
    try:
        yield messages
    finally:
        readers.removeHandler(handler)


def _stamp(file: str) -> list[int]:
    s = os.stat(file)
    return [s.st_size, s.st_mtime_ns, s.st_ctime_ns]


def _sha256(file: str) -> str:
    with open(file, "rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()[:24]
