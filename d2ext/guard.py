"""Keep a spawned process from outliving the process that started it.

A spawned child first imports the main module and then torch, which takes seconds. It must be
guarded from the start, so this module imports nothing heavy and `d2ext/__main__.py` calls it first.
"""

import ctypes
import os
import signal
import sys

LAUNCHER = "D2EXT_LAUNCHER_PID"  # environment variable, set before spawning
_PR_SET_PDEATHSIG = 1  # prctl(2)


def die_with_parent() -> None:
    """Ask Linux to kill this process when its parent dies."""
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def guard_rank() -> bool:
    """Make a rank exit with the process that started it, torchrun or our launcher.

    Returns:
        Whether this process is a rank that our launcher spawned. Such a process has the main module
        under the name `__mp_main__`.
    """
    spawned = "__mp_main__" in sys.modules
    if spawned:
        _guard_spawned_child()
    elif "TORCHELASTIC_RUN_ID" in os.environ:
        die_with_parent()
    return spawned


def _guard_spawned_child() -> None:
    """Exit when the launcher dies, or immediately if it is dead already.

    Later, torch asks Linux to send SIGINT instead. Python cannot handle that during a rendezvous,
    so its default action, which kills, is restored.
    """
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    die_with_parent()
    if os.getppid() != int(os.environ.get(LAUNCHER, os.getppid())):
        os._exit(1)
