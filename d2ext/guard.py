"""Keeps a spawned process from outliving the one that started it.

A spawned child first imports the main module, then, for seconds, torch: it must be guarded from its
first line on, so this module imports nothing heavy and a tool calls it at module level.
"""

import ctypes
import os
import signal

LAUNCHER = "D2EXT_LAUNCHER_PID"  # environment variable, set before spawning
_PR_SET_PDEATHSIG = 1  # prctl(2)


def die_with_parent() -> None:
    """Asks Linux to kill this process when its parent dies."""
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def guard_rank(module: str) -> bool:
    """For a tool's first lines: a rank ends with what started it, torchrun or our launcher.

    Args:
        module: the tool's `__name__`.

    Returns:
        Whether this process is a rank that our launcher spawned.
    """
    if module == "__mp_main__":
        _guard_spawned_child()
    elif "TORCHELASTIC_RUN_ID" in os.environ:
        die_with_parent()
    return module == "__mp_main__"


def _guard_spawned_child() -> None:
    """Exit with the launcher, or at once if it is already dead.

    torch asks Linux for SIGINT instead, later; in a rendezvous Python would not hear that, so its
    default action is put back, which kills.
    """
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    die_with_parent()
    if os.getppid() != int(os.environ.get(LAUNCHER, os.getppid())):
        os._exit(1)
