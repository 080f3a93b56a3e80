"""The terminal: one console for log lines and for the lines below them that update in place.

Nothing here uses a thread: loader workers are forked, and a lock held by another thread at that
moment would never be released in them. rich handles `NO_COLOR` and `TERM`.
"""

import contextlib
import functools
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console
    from rich.live import Live

_PERIOD = 0.25  # seconds between updates


@functools.cache
def console() -> "Console":
    """Return the console of stdout; in a notebook it prints plain lines to the running cell."""
    from rich.console import Console  # takes 50 ms, which --help does not need

    options = dict(highlight=False, markup=False, emoji=False)
    found = Console(**options)
    if not found.is_jupyter:
        return found
    # Rich would make an HTML block of each line, and take ipykernel's FORCE_COLOR for a terminal.
    return Console(**options, force_jupyter=False, force_terminal=False, color_system=None)


def is_live() -> bool:
    """Return whether lines can be updated in place."""
    return console().is_terminal and not console().is_dumb_terminal


@contextlib.contextmanager
def progress(
    what: str, total: int | None, done: int = 0, in_bytes: bool = False
) -> Iterator[Callable[..., None]]:
    """Show a progress bar with the time left, if stdout is a terminal.

    Args:
        what: Text before the bar.
        total: Total amount of work; None if unknown.
        done: Amount that is done already.
        in_bytes: Show amounts in kB, MB and so on.

    Yields:
        A function that advances the bar by a number, 1 by default.
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
    """Show the cursor that rich has hidden, because a killed process could not restore it."""
    if live.is_started:
        live.console.show_cursor(True)
