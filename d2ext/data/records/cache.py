"""Cache datasets, so that they are parsed once and memory-mapped by every process.

The name of a cache entry ($D2EXT_CACHE/datasets) is a hash of the content of the annotation file,
the options and the version of this format. A small index file beside it, named by a hash of path
and options, records the file's size and times with its hash, so that unchanged files are not hashed
again.
"""

import concurrent.futures
import contextlib
import hashlib
import io
import json
import logging
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
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

_VERSION = 4  # version of the records in the entries; a new one invalidates old entries
_KEPT = 30 * 24 * 3600  # seconds after which unused entries are removed

Build = Callable[[], tuple[list[dict], dict[str, Any]]]
_Write = Callable[[IO[bytes], dict[str, Any]], None]


def cached_records(file: str | Path, options: Mapping[str, Any], build: Build) -> Records:
    """Return the records of an annotation file, parsed only if they are not in the cache.

    On each machine one process parses while the others wait. Processes that use a cached result
    log the reader's warnings again. If the cache cannot be written, the records stay in memory.

    Args:
        file: The annotation file. The records may depend only on it and on `options`.
        options: JSON values that the records depend on, including the reader's name.
        build: Reads the file; returns dataset dicts of JSON values, and JSON values for
            `Records.info`.

    Raises:
        UserError: Raised by `build`, or the file changed while it was read.
    """

    def make() -> _Write:
        records, info = build()
        return lambda out, more: write_records(out, records, info | more)

    return _Place(file, options).load(make)


def cached_columns(
    file: str | Path, options: Mapping[str, Any], build: Callable[[], CocoColumns]
) -> Records:
    """Return the records of an annotation file whose reader returns columns, like `cached_records`.

    Their `info` holds the columns' `left_out`.
    """

    def make() -> _Write:
        columns = build()
        return lambda out, more: write_store(out, columns, {"left_out": columns.left_out} | more)

    return _Place(file, options).load(make)


def cached_coco_records(
    json_file: str | Path, image_root: str | Path, classes: Sequence[str] | None = None
) -> Records:
    """Return the records of `read_coco`, parsed without a dict of the whole file, and cached.

    Their `info` is that of `read_repaired`.

    Raises:
        UserError: As in `read_coco`.
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
    """Return a cached JSON value that depends only on an annotation file.

    Args:
        file: The annotation file.
        what: Name of the value.
        compute: Returns the value; may raise any exception.
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
    with contextlib.suppress(UserError):  # if the cache is not writable, compute it every time
        write_json(place.index, {"file": place.file, "stamp": stamp, "value": value})
    return value


class _Place:
    """The location of the cache entry for an annotation file and options."""

    _in_memory: dict[str, tuple[list[int], Records]] = {}  # stamp and records of files, by key
    _said: set[tuple] = set()  # messages that this process has logged

    def __init__(self, file: str | Path, options: Mapping[str, Any]):
        self.file = os.path.realpath(file)
        self.options = json.dumps([_VERSION, options], sort_keys=True)
        self.key = _hash(f"{self.file}\0{self.options}")
        self.folder = cache_dir() / "datasets"
        self.index = self.folder / f"{self.key}.json"

    def load(self, make: Callable[[], _Write]) -> Records:
        """Return the cached records, or parse the file."""
        if found := self._find():
            return found
        with contextlib.ExitStack() as stack:
            trouble = None
            try:
                stack.enter_context(self._locked())
            except OSError as e:
                trouble = e
            # Another process may have parsed the file while this one waited for the lock.
            if found := self._find() or self._find_by_content():
                return found
            return self._make(make, trouble)

    def _find(self) -> Records | None:
        """Return the entry, if the size and times of the file have not changed."""
        try:
            stamp = _stamp(self.file)
            kept_stamp, records = self._in_memory.get(self.key, (None, None))
            if kept_stamp == stamp:
                return records
            known = json.loads(self.index.read_bytes())
            if known["stamp"] == stamp:
                return self._open(known["sha256"])
        except (OSError, ValueError, KeyError, TypeError):
            pass  # missing or damaged
        return None

    def _find_by_content(self) -> Records | None:
        """Return the entry for the same content, even if times or name of the file differ."""
        if not self.index.exists():
            return None  # a new file, which `_make` hashes while reading it
        stamp, sha256 = _stamp(self.file), _sha256(self.file)
        if (found := self._open(sha256)) and _stamp(self.file) == stamp:
            with contextlib.suppress(UserError):  # a read-only cache
                self._remember(stamp, sha256)
        return found

    def _open(self, sha256: str) -> Records | None:
        entry = self._entry(sha256)
        try:
            records = Records(str(entry))
        except FileNotFoundError:
            return None
        except (OSError, Damaged) as e:
            self._say(logging.WARNING, f"{entry} is damaged ({e}); it is created again")
            return None
        with contextlib.suppress(OSError):
            os.utime(entry)  # keeps _remove_old from removing it
        for level, message in records.info["messages"]:
            self._say(level, message)
        return records

    def _make(self, make: Callable[[], _Write], trouble: Exception | None) -> Records:
        try:
            stamp = _stamp(self.file)
        except OSError:
            make()  # raises a clear error
            raise
        with concurrent.futures.ThreadPoolExecutor(1) as pool, _messages() as messages:
            hashing = pool.submit(_sha256, self.file)
            write = make()
            sha256 = hashing.result()
        if _stamp(self.file) != stamp:
            raise UserError(f"{self.file} changed while it was read; start again")
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
            except UserError as e:  # from `atomic_write` if caused by an OSError, else a user error
                if not isinstance(e.__cause__, OSError):
                    raise
                trouble = e.__cause__
        reason = getattr(trouble, "strerror", None) or trouble
        self._say(
            logging.WARNING,
            f"datasets cannot be cached in {self.folder} ({reason}), so each"
            " process parses them and keeps them in memory; set D2EXT_CACHE to a writable folder"
            " with free space",
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
        """Lock out other processes of this machine; the lock of a killed process is released."""
        self.folder.mkdir(parents=True, exist_ok=True)
        # Without support for locks, filelock would fall back to a file that outlives its process.
        lock = FileLock(self.folder / f"{self.key}.lock", fallback_to_soft=False)
        try:
            lock.acquire(blocking=False)
        except Timeout:
            with waiting_for(f"another process, which is reading {self.file}"):
                lock.acquire()
        try:
            yield
        finally:
            lock.release()

    def _remove_old(self) -> None:
        """Remove entries unused for 30 days and temporary files of killed processes."""
        for pattern, age in (("*.pages", _KEPT), (".*.tmp", 3600)):
            for old in self.folder.glob(pattern):
                with contextlib.suppress(OSError):
                    if time.time() - old.stat().st_mtime > age:
                        old.unlink()

    def _say(self, level: int, message: str, once_for: str = "") -> None:
        """Log a message once per process and file, or only the first one with this `once_for`."""
        said = (once_for,) if once_for else (self.key, message)
        if said not in self._said:
            self._said.add(said)
            logger.log(level, "%s", message)


class _Collector(logging.Handler):
    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self.messages: list[tuple[int, str]] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.messages.append((record.levelno, record.getMessage()))


@contextlib.contextmanager
def _messages() -> Iterator[list[tuple[int, str]]]:
    """Collect the levels and messages that readers log."""
    handler = _Collector()
    readers = logging.getLogger("d2ext.data.formats")
    readers.addHandler(handler)
    try:
        yield handler.messages
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
