"""Signals that ask a training to finish its step, save and leave."""

import signal
from types import FrameType

EXIT_STOPPED = 75  # EX_TEMPFAIL of sysexits.h: try again later, with --resume

_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2)


class StopSignals:
    """Notes TERM, INT, USR1 and USR2 while the `with` block runs.

    A second INT raises KeyboardInterrupt at once, for whoever cannot wait for the step.

    Attributes:
        received: name of the first signal, or None.
    """

    def __init__(self) -> None:
        self.received: str | None = None

    def __enter__(self) -> "StopSignals":
        self._previous = {number: signal.signal(number, self._note) for number in _SIGNALS}
        return self

    def __exit__(self, *exc: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.received and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.received = self.received or signal.Signals(number).name
