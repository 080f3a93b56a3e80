"""Waits: a long one says what it waits for, and those for data end when the run is to stop."""

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Iterator

logger = logging.getLogger(__name__)

DELAY = 10.0  # seconds after which a wait is announced

_interruptible = 0  # how many `interruptible` blocks the main thread is in


@contextlib.contextmanager
def waiting_for(
    what: str,
    remedy: str = "Ctrl-C gives up",
    *,
    since: float | None = None,
    needed: Callable[[], bool] = lambda: True,
    say: Callable[[str], object] = logger.warning,
) -> Iterator[None]:
    """Say what the process is waiting for if the wait takes longer than `DELAY` seconds.

    A thread says it, since a wait in C++ runs no signal handler. Do not fork in the block: the
    child would inherit the locks that the thread holds. After the block the thread has ended.

    Args:
        what: What is awaited, a noun phrase.
        remedy: How to shorten the wait or give up.
        since: When the wait began, on the monotonic clock; by default, now.
        needed: Called before the message; returns whether the wait is still on.
        say: Prints the message.
    """
    delay = DELAY

    def announce() -> None:
        if needed():
            say(f"still waiting for {what} after {delay:g} s; {remedy}")

    waited = 0.0 if since is None else time.monotonic() - since
    timer = threading.Timer(max(delay - waited, 0.0), announce)
    timer.daemon = True  # a process that ends does not wait for it
    try:
        with contextlib.suppress(RuntimeError):  # no memory for a thread: the wait stays silent
            timer.start()
        yield
    finally:
        timer.cancel()
        # A fork or the exit of Python would meet the thread.
        if timer.is_alive():
            timer.join()


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """Mark a wait for data, which a request to stop may end (`launch.signals`)."""
    global _interruptible
    _interruptible += 1
    try:
        yield
    finally:
        _interruptible -= 1


def is_interruptible() -> bool:
    """Return whether the main thread is waiting for data."""
    return _interruptible > 0
