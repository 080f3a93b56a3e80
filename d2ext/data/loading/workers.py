"""Loader workers that exit on every error and pass it to the trainer's process.

torch delivers the exceptions of a dataset. But if sending a batch fails (no shared memory, too many
open files), Python only prints a stack trace, and the trainer keeps waiting.
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
from multiprocessing.process import BaseProcess
from typing import Any, NoReturn

from torch.utils.data import get_worker_info

from d2ext._compat import loader_workers, on_feeder_error, shut_down_loader_workers
from d2ext.errors import format_exception

# Shared with the forked workers; anonymous memory needs neither a file nor /dev/shm.
_last_words = mmap.mmap(-1, 1024)


def last_words(patience: float = 0.0) -> str:
    """Return and clear the error that ended a worker or torch's reader thread; "" if none.

    Args:
        patience: Seconds to wait for the error, for use right after a connection broke.
    """
    deadline = time.monotonic() + patience
    while not (text := _last_words[:].rstrip(b"\0").decode(errors="replace")):
        if time.monotonic() >= deadline:
            return ""
        time.sleep(0.02)
    _last_words[:] = bytes(len(_last_words))
    return text


def report_errors() -> None:
    """Exit this worker on an error in any thread, such as the one that shares tensors."""
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


def _end_worker(e: Exception, obj: Any) -> None:
    if get_worker_info():
        _end(e)


@on_feeder_error(_end_worker)
class _Queue(multiprocessing.queues.Queue):
    """A queue that reports its errors."""

    def get(self, block: bool = True, timeout: float | None = None) -> Any:
        try:
            return super().get(block, timeout)
        except queue.Empty:
            raise
        except Exception as e:
            if threading.current_thread() is threading.main_thread():
                raise
            _note(e)
            raise SystemExit from e  # ends torch's pin-memory thread without a stack trace


def end_workers(batches: Any, patience: float) -> None:
    """End the workers of a DataLoader's iterator, and kill those that hang in a read.

    Args:
        batches: Iterator of a DataLoader with workers.
        patience: Seconds to wait for the workers to exit.
    """

    def kill_all() -> None:
        for worker in loader_workers(batches):
            worker.kill()

    late = threading.Timer(patience, kill_all)
    with contextlib.suppress(RuntimeError):  # no memory for a thread; torch kills them later
        late.start()
    shut_down_loader_workers(batches)
    late.cancel()
    if late.is_alive():
        late.join()
    for worker in loader_workers(batches):
        kill(worker)


def kill(worker: BaseProcess) -> None:
    """Kill a process and wait for its end."""
    worker.kill()
    worker.join()


def deaths_of_workers(batches: Any) -> str:
    """Return which workers of a DataLoader's iterator were ended by a signal; "" if none."""
    codes = {worker.pid: worker.exitcode or 0 for worker in loader_workers(batches)}
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
