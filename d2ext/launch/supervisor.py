"""Forward signals to the ranks, and kill the peers of a dead rank.

Each rank writes its process id to `<rank>.pid` in a folder of the run's launcher.
"""

import contextlib
import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from d2ext.launch.signals import INTERRUPTED

_HEARD = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2)
# Signals that end a rank without handlers, sent by the launcher or by a terminal.
FORWARDED = (*_HEARD, INTERRUPTED)

_GRACE = 5.0  # seconds until the peers of a dead rank are killed


@contextlib.contextmanager
def signals_forwarded(folder: Path) -> Iterator[list[int]]:
    """Forward TERM, INT, USR1 and USR2 to the ranks, and let them decide what to do.

    A SIGINT after another signal kills the ranks.

    Yields:
        A list to which each forwarded signal is added.
    """
    sent: list[int] = []

    def forward(number: int, frame: Any) -> None:
        if number == signal.SIGINT:
            number = signal.SIGKILL if sent else INTERRUPTED
        sent.append(number)
        # The signal's default action ends ranks that are still importing or in the rendezvous.
        children = {child.pid for child in multiprocessing.active_children()}
        for pid in children | set(met(folder).values()):
            _kill(pid, number)

    previous = {number: signal.signal(number, forward) for number in _HEARD}
    try:
        yield sent
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def terminate_peers(folder: Path) -> Iterator[list[int]]:
    """Kill the peers of a dead rank that are still alive after a grace period.

    Deaths are detected in /proc, not by exit codes, because only one thread can wait for a child.

    Yields:
        A list that receives the ranks that died first without writing an error: they were killed.
    """
    over, vanished = threading.Event(), []

    def watch() -> None:
        while not over.wait(0.3):
            dead = {rank for rank, pid in met(folder).items() if not _alive(pid)}
            dead -= {int(p.stem) for p in folder.glob("*.status")}
            if dead:
                vanished.extend(dead - {int(p.stem) for p in folder.glob("*.json")})
                if over.wait(_GRACE):
                    return
                send(folder, signal.SIGKILL)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield vanished
    finally:
        over.set()
        thread.join()


def send(folder: Path, number: int) -> None:
    """Send a signal to the ranks that have passed the rendezvous."""
    for pid in met(folder).values():
        _kill(pid, number)


def met(folder: Path) -> dict[int, int]:
    """Return the process id of each global rank that has passed the rendezvous."""
    texts = {int(p.stem): p.read_text() for p in folder.glob("*.pid")}
    return {rank: int(text) for rank, text in texts.items() if text}


def _alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state not in "ZX"


def _kill(pid: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        if _alive(pid):
            os.kill(pid, number)
