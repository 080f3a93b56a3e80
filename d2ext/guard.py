"""Keeps a spawned process from outliving the one that started it.

A spawned child first imports the main module, then, for seconds, torch: it must be guarded from its
first line on, so this module imports nothing heavy and `d2ext/__main__.py` calls it first.
"""

import ctypes
import os
import signal
import sys

LAUNCHER = "D2EXT_LAUNCHER_PID"  # environment variable, set before spawning
_PR_SET_PDEATHSIG = 1  # prctl(2)


def die_with_parent() -> None:
    """Asks Linux to kill this process when its parent dies."""
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def guard_rank() -> bool:
    """Have a rank end with what started it, torchrun or our launcher.

    Returns:
        Whether this process is a rank that our launcher spawned: Python then runs the main module
        again, under the name `__mp_main__`.
    """
    spawned = "__mp_main__" in sys.modules
    if spawned:
        _guard_spawned_child()
    elif "TORCHELASTIC_RUN_ID" in os.environ:
        die_with_parent()
    return spawned


def _guard_spawned_child() -> None:
    """Exit with the launcher, or at once if it is already dead.

    torch asks Linux for SIGINT instead, later; in a rendezvous Python would not hear that, so its
    default action is put back, which kills.
    """
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    die_with_parent()
    if os.getppid() != int(os.environ.get(LAUNCHER, os.getppid())):
        os._exit(1)
