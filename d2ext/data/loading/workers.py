"""Loader workers that end with their error, which the trainer's process can read.

torch delivers what a dataset raises. What goes wrong on the way to the trainer (no shared memory
for a batch, too many open files) Python prints as a stack trace and forgets, and the trainer waits.
"""

import contextlib
import mmap
import multiprocessing
import multiprocessing.context
import multiprocessing.queues
import os
import queue
import signal
import sys
import threading
import time
from typing import Any, NoReturn

from torch.utils.data import get_worker_info

from d2ext.errors import format_exception

# Shared with the workers, which are forked: anonymous memory takes no file and no /dev/shm.
_last_words = mmap.mmap(-1, 1024)


def last_words(patience: float = 0.0) -> str:
    """Return, once, the error that ended a worker or torch's thread that reads; "" for none.

    Args:
        patience: Seconds to wait for it, where its connection has broken off just now.
    """
    deadline = time.monotonic() + patience
    while not (text := _last_words[:].rstrip(b"\0").decode(errors="replace")):
        if time.monotonic() >= deadline:
            return ""
        time.sleep(0.02)
    _last_words[:] = bytes(len(_last_words))
    return text


def report_errors() -> None:
    """In a worker, end with the error of any thread, such as the one that hands out tensors."""
    sys.excepthook = lambda kind, e, traceback: _end(e)


class WorkerContext(multiprocessing.context.ForkContext):
    """The fork context of a DataLoader."""

    class Process(multiprocessing.context.ForkProcess):
        def run(self) -> None:
            try:
                super().run()
            except Exception as e:
                _end(e)

    def Queue(self, maxsize: int = 0) -> "_Queue":
        return _Queue(maxsize, ctx=self)


class _Queue(multiprocessing.queues.Queue):
    """A queue whose errors are not lost."""

    def get(self, block: bool = True, timeout: float | None = None) -> Any:
        try:
            return super().get(block, timeout)
        except queue.Empty:
            raise
        except Exception as e:
            if threading.current_thread() is threading.main_thread():
                raise
            _note(e)
            raise SystemExit from e  # ends torch's thread for pinned memory, quietly

    # A hook that Python (tested with 3.11) has for its own subclasses. Without it the thread would
    # print the error and continue.
    @staticmethod
    def _on_queue_feeder_error(e: Exception, obj: Any) -> None:
        if get_worker_info():
            _end(e)
        multiprocessing.queues.Queue._on_queue_feeder_error(e, obj)


def workers_of(batches: Any) -> list[multiprocessing.Process]:
    """Return the worker processes of a DataLoader's iterator; none if it works in this process.

    torch offers no public access to them. `_workers` here and `_shutdown_workers` in `end_workers`
    are the only private names of torch's loaders in use (tested with torch 2.14.1).
    """
    return getattr(batches, "_workers", [])


def end_workers(batches: Any, patience: float) -> None:
    """End the workers of a DataLoader's iterator, and kill those that hang in a read.

    Args:
        batches: Iterator of a DataLoader with workers.
        patience: Seconds for the workers to end by themselves.
    """
    late = threading.Timer(patience, lambda: [worker.kill() for worker in workers_of(batches)])
    with contextlib.suppress(RuntimeError):  # no memory for a thread: torch kills them, later
        late.start()
    batches._shutdown_workers()
    late.cancel()
    if late.is_alive():
        late.join()
    for worker in workers_of(batches):
        kill(worker)


def kill(worker: multiprocessing.Process) -> None:
    """Kill a process and wait for its end."""
    worker.kill()
    worker.join()


def deaths_of_workers(batches: Any) -> str:
    """Return which workers of a DataLoader's iterator a signal has ended; "" for none."""
    codes = {worker.pid: worker.exitcode or 0 for worker in workers_of(batches)}
    killed = [
        f"{pid} was ended by {signal.Signals(-code).name}"
        for pid, code in codes.items()
        if code < 0
    ]
    return ", ".join(killed)


def _end(e: BaseException) -> NoReturn:
    _note(e)
    os._exit(1)


def _note(e: BaseException) -> None:
    text = format_exception(e).encode()[: len(_last_words)]
    _last_words[:] = text.ljust(len(_last_words), b"\0")
