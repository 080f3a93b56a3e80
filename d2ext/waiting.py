"""Announce long waits, and mark the waits for data that a request to stop may interrupt."""

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
    remedy: str = "press Ctrl-C to give up",
    *,
    since: float | None = None,
    needed: Callable[[], bool] = lambda: True,
    say: Callable[[str], object] = logger.warning,
) -> Iterator[None]:
    """Print what the process is waiting for if the wait takes longer than `DELAY` seconds.

    A thread prints it, because no signal handler runs during a wait in C++. Do not fork in the
    block: the child would inherit the locks that the thread holds. The thread ends with the block.

    Args:
        what: What the process is waiting for, as a noun phrase.
        remedy: How to shorten the wait or give up.
        since: Start of the wait on the monotonic clock; by default, now.
        needed: Returns whether the message is still needed; called just before it.
        say: Prints the message.
    """
    delay = DELAY

    def announce() -> None:
        if needed():
            say(f"still waiting for {what} after {delay:g} s; {remedy}")

    waited = 0.0 if since is None else time.monotonic() - since
    timer = threading.Timer(max(delay - waited, 0.0), announce)
    timer.daemon = True  # does not keep the process alive
    try:
        with contextlib.suppress(RuntimeError):  # no memory for a thread: the wait stays silent
            timer.start()
        yield
    finally:
        timer.cancel()
        # Otherwise the thread may still run during a later fork or at Python's exit.
        if timer.is_alive():
            timer.join()


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """Mark a wait for data, which a request to stop may interrupt (`launch.signals`)."""
    global _interruptible
    _interruptible += 1
    try:
        yield
    finally:
        _interruptible -= 1


def is_interruptible() -> bool:
    """Return whether the main thread is waiting for data."""
    return _interruptible > 0
