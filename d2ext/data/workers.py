"""Loader workers that end with their error, which the trainer's process can read.

torch delivers what a dataset raises. What goes wrong on the way to the trainer (no shared memory
for a batch, too many open files) Python prints as a stack trace and forgets, and the trainer waits.
"""

import mmap
import multiprocessing.context
import multiprocessing.queues
import os
import queue
import sys
import threading
import time
from typing import Any, NoReturn

from torch.utils.data import get_worker_info

from d2ext.errors import in_words

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

    @staticmethod
    def _on_queue_feeder_error(e: Exception, obj: Any) -> None:
        if get_worker_info():
            _end(e)
        multiprocessing.queues.Queue._on_queue_feeder_error(e, obj)


def _end(e: BaseException) -> NoReturn:
    _note(e)
    os._exit(1)


def _note(e: BaseException) -> None:
    text = in_words(e).encode()[: len(_last_words)]
    _last_words[:] = text.ljust(len(_last_words), b"\0")
