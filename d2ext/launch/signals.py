"""Handle signals and `--time-limit`, which make a run finish its step, save and exit."""

import logging
import os
import signal
import threading
import time
from collections.abc import Callable
from types import FrameType
from typing import Any

from d2ext.errors import UserError
from d2ext.text import as_seconds
from d2ext.waiting import is_interruptible

logger = logging.getLogger(__name__)

EXIT_STOPPED = 75  # EX_TEMPFAIL of sysexits.h: try again later, with --resume
TIME_LIMIT = "--time-limit"
# Reasons to stop a run; ranks exchange their indices.
REASONS = (None, "SIGTERM", "SIGINT", "SIGUSR1", "SIGUSR2", TIME_LIMIT)

# Sent by our launcher instead of SIGINT, which the terminal may have sent to the rank as well.
INTERRUPTED = signal.SIGRTMIN

_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2, INTERRUPTED)
GRACE = 10.0  # seconds that a run that was asked to stop waits for the data of its step
_LAST_PATIENCE = 2.0  # seconds for cleanup after a second Ctrl-C


class StopWaiting(KeyboardInterrupt):
    """Raised while waiting for data, `GRACE` seconds after a request to stop."""


class StopSignals:
    """Record TERM, INT, USR1, USR2 and the end of the time limit while the `with` block runs.

    A second INT raises KeyboardInterrupt immediately, for users who do not want to wait for the
    step; a process that is still alive two seconds later exits without cleanup. A hanging loader
    cannot prevent the stop: after `GRACE` seconds, `StopWaiting` ends a wait inside
    `waiting.interruptible`.

    Python allows signal handlers in the main thread only. In other threads, signals are not
    recorded.

    Args:
        deadline: Monotonic time after which `received` is `--time-limit`; None for no limit.
        may_exit: Whether a second INT may end the process; False for a notebook's kernel.
    """

    def __init__(self, deadline: float | None = None, may_exit: bool = True) -> None:
        self._deadline = deadline
        self._may_exit = may_exit
        self._previous: dict[int, Any] = {}
        self._signal: str | None = None

    @property
    def received(self) -> str | None:
        """Return why to stop: the name of the first signal, `--time-limit`, or None."""
        if self._signal is None and self._deadline is not None:
            return TIME_LIMIT if time.monotonic() >= self._deadline else None
        return self._signal

    def __enter__(self) -> "StopSignals":
        if threading.current_thread() is not threading.main_thread():
            logger.info("Not in the main thread: signals will not stop and save this run")
            return self
        self._previous = {number: signal.signal(number, self._note) for number in _SIGNALS}
        self._previous[signal.SIGALRM] = signal.signal(signal.SIGALRM, self._end_wait)
        if self._deadline is not None:
            self._allow_wait(max(self._deadline - time.monotonic(), 0) + GRACE)
        _active.append(self)
        return self

    def __exit__(self, *exc: object) -> None:
        if self not in _active:
            return
        _active.remove(self)
        signal.setitimer(signal.ITIMER_REAL, 0)
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self._signal and number == signal.SIGINT:
            # Cleanup would wait for a loader worker that hangs in a read.
            if self._may_exit:
                end = threading.Timer(_LAST_PATIENCE, _leave)
                end.daemon = True
                end.start()
            raise KeyboardInterrupt
        if self._signal is None:
            self._allow_wait(GRACE)
        self._signal = self._signal or name_of(number)

    def _allow_wait(self, seconds: float) -> None:
        signal.setitimer(signal.ITIMER_REAL, seconds)

    def _end_wait(self, number: int, frame: FrameType | None) -> None:
        self._allow_wait(1.0)  # also ends a wait that starts later
        if is_interruptible():
            raise StopWaiting


_active: list[StopSignals] = []  # whose handlers are set


def _forked() -> None:
    """Let TERM end a forked process, such as those in which Detectron2 reads Cityscapes.

    Detectron2's process pool terminates its workers with TERM and waits for them, but Python runs
    no handler in a worker that is blocked.
    """
    if _active:
        for number in _SIGNALS:
            ends = number == signal.SIGTERM
            signal.signal(number, signal.SIG_DFL if ends else signal.SIG_IGN)


os.register_at_fork(after_in_child=_forked)

_last_words: list[Callable[[], None]] = []


def on_forced_exit(call: Callable[[], None]) -> None:
    """Run `call()` when a second Ctrl-C ends this process without cleanup."""
    _last_words.append(call)


def _leave() -> None:
    try:
        for call in _last_words:
            call()
    finally:
        os._exit(130)


def name_of(number: int) -> str:
    """Return the name of the signal that was originally sent."""
    return signal.Signals(signal.SIGINT if number == INTERRUPTED else number).name


def ignore_signals() -> None:
    """Ignore all signals at the end of a process, to preserve its exit status."""
    for number in _SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def deadline(limit: str | None, since: float) -> float | None:
    """Return the end of `--time-limit` in monotonic time; None without a limit.

    Args:
        limit: Duration such as 3h50m, 1d12h or 90s.
        since: Monotonic time at which the command started.

    Raises:
        UserError: The limit is not a duration, or is zero.
    """
    if limit is None:
        return None
    if not (seconds := as_seconds(limit)):
        raise UserError(f"--time-limit {limit}: give days, hours, minutes or seconds, as in 3h50m")
    return since + seconds
