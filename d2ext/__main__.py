"""The `d2ext` command, `python -m d2ext`, and what the tools of a checkout run."""

import contextlib
import os
import sys
from collections.abc import Sequence
from typing import NoReturn

from d2ext.guard import guard_rank

if guard_rank():  # before it imports torch
    from d2ext.run_dir.logging import setup_logging

    setup_logging(quiet=True)

from d2ext.cli import run_command
from d2ext.errors import run_tool
from d2ext.launch.signals import ignore_signals


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """Run a command and exit with its status.

    Modules in the current folder can be imported, as with `python -m`, but installed ones come
    first.

    Args:
        argv: Name of the command and its arguments; None takes those of the process.
    """
    with contextlib.suppress(OSError):  # a folder that has been removed
        if os.getcwd() not in sys.path:
            sys.path.append(os.getcwd())
    try:
        run_tool(lambda: run_command(sys.argv[1:] if argv is None else argv))
    finally:
        ignore_signals()


if __name__ == "__main__":
    # Spawned ranks run the main module again, which guards them. multiprocessing skips that for a
    # package's `__main__` with a `__spec__`.
    __spec__ = None
    main()
