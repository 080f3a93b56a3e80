"""The terminal: one console for what is logged and for what is renewed in place below it.

Nothing here has a thread of its own: loader workers are forked, and a lock that another thread
holds at that moment would never open in them. `NO_COLOR` and `TERM` are rich's to follow.
"""

import contextlib
import functools
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console
    from rich.live import Live

_PERIOD = 0.25  # seconds between two pictures


@functools.cache
def console() -> "Console":
    """Return the console of stdout; in a notebook it prints plain lines to the running cell."""
    from rich.console import Console  # 50 ms, which --help need not wait for

    options = dict(highlight=False, markup=False, emoji=False)
    found = Console(**options)
    if not found.is_jupyter:
        return found
    # Rich would make an HTML block of each line, and take ipykernel's FORCE_COLOR for a terminal.
    return Console(**options, force_jupyter=False, force_terminal=False, color_system=None)


def is_live() -> bool:
    """Whether lines can be renewed in place."""
    return console().is_terminal and not console().is_dumb_terminal


@contextlib.contextmanager
def progress(
    what: str, total: int | None, done: int = 0, in_bytes: bool = False
) -> Iterator[Callable[[int], None]]:
    """A bar with the time that is left, on a terminal.

    Args:
        what: stands before it.
        total: of what is to be done; None: unknown.
        done: of it before.
        in_bytes: count in kB, MB and so on.

    Yields:
        A function that is told how much more has been done.
    """
    from rich import progress as rich_progress

    counted = rich_progress.DownloadColumn if in_bytes else rich_progress.MofNCompleteColumn
    columns = [
        rich_progress.TextColumn("{task.description}", markup=False),
        rich_progress.BarColumn(),
        counted(),
        rich_progress.TimeRemainingColumn(),
    ]
    bar = rich_progress.Progress(
        *columns, console=console(), auto_refresh=False, disable=not is_live()
    )
    due = 0.0

    def advance(number: int = 1) -> None:
        nonlocal due
        now = time.monotonic()
        bar.update(task, advance=number, refresh=now >= due)
        due = now + _PERIOD if now >= due else due

    with bar:
        task = bar.add_task(what, total=total, completed=done)
        show_cursor(bar.live)
        yield advance
        bar.refresh()


def show_cursor(live: "Live") -> None:
    """Brings back the cursor that rich has hidden: a killed process could not."""
    if live.is_started:
        live.console.show_cursor(True)
