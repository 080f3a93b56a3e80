"""The machine's limits: shared memory, open files, memory and processes."""

import contextlib
import os
import resource
import shutil
import sys
from pathlib import Path

SHARED_MEMORY = Path("/dev/shm")
_OPEN_FILES = 65536  # more than loader workers need; some containers allow a billion

# What libraries say when a limit is reached. Exceptions lose their errno on the way from a worker
# process, and torch raises plain RuntimeErrors.
_WORDS = {
    "open files": ("Too many open files", "received 0 items of ancillary data"),
    "shared memory": (
        "shared memory(shm)",
        "shared memory object",
        "file </torch_",
        f"'{SHARED_MEMORY}'",  # quoted, because datasets may be stored below it
        "Bus error",
        "SIGBUS",
    ),
    "processes": ("can't start new thread", "Resource temporarily unavailable"),
    "GPU memory": (
        "CUDA out of memory",
        "CUDA error: out of memory",
        "CUDNN_STATUS_ALLOC_FAILED",
        "DEVICE_ALLOCATION_FAILED",  # cuDNN 9
        "CUBLAS_STATUS_ALLOC_FAILED",
        "'out of memory'",  # NCCL
    ),
    "memory": (
        "Cannot allocate memory",
        "can't allocate memory",
        "failed to map segment",
        "MemoryError",
        "Unable to allocate",
    ),
}


def exhausted(text: str) -> str | None:
    """Return which resource is exhausted according to an error message: a `kind` of `remedy`.

    Returns:
        The kind; None if the message is about something else.
    """
    return next((kind for kind, words in _WORDS.items() if any(w in text for w in words)), None)


def remedy(kind: str) -> str:
    """Return the current limit of a resource, and how to raise it; "" if there is none.

    Args:
        kind: Result of `exhausted`.
    """
    if kind == "open files":
        files = _limit(resource.RLIMIT_NOFILE)
        return f"`ulimit -n` allows {files} open files; raise it with `ulimit -n 4096`"
    if kind == "shared memory":
        return _shared_memory()
    if kind == "processes":
        return f"`ulimit -u` allows {_limit(resource.RLIMIT_NPROC)} processes"
    address_space = _limit(resource.RLIMIT_AS, 2**20)
    limited = kind == "memory" and address_space != "unlimited"
    return f"`ulimit -v` allows {address_space} MB" if limited else ""


def raise_open_files() -> None:
    """Raise this process's limit of open files as far as allowed, for loader workers.

    Each tensor of a batch in shared memory is an open file, both in the worker and in the trainer.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _OPEN_FILES if hard == resource.RLIM_INFINITY else min(hard, _OPEN_FILES)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with contextlib.suppress(OSError, ValueError):  # a sandbox that forbids it
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def check_open_files(number: int) -> None:
    """Raise the system's OSError if this process cannot open `number` more files now."""
    files: list[int] = []
    try:
        while len(files) < number:
            files.append(os.open(os.devnull, os.O_RDONLY))
    finally:
        for file in files:
            os.close(file)


def open_files_allowed() -> float:
    """Return the number of open files that `raise_open_files` can reach."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    return _OPEN_FILES if hard == resource.RLIM_INFINITY else hard


def usable_cores() -> int:
    """Return the number of CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1


def shared_memory_free(folder: Path = SHARED_MEMORY) -> int:
    """Return the free bytes of shared memory; 0 if it is absent or read-only."""
    return shutil.disk_usage(folder).free if os.access(folder, os.W_OK) else 0


def _shared_memory() -> str:
    if not os.access(SHARED_MEMORY, os.W_OK):
        return f"{SHARED_MEMORY} is absent or read-only; mount it (docker run --shm-size=8g does)"
    usage = shutil.disk_usage(SHARED_MEMORY)
    free, total = usage.free / 1e6, usage.total / 1e6
    return (
        f"{free:.1f} of {total:.1f} MB of {SHARED_MEMORY} are free; start the container with more"
        " (docker run --shm-size=8g)"
    )


def _limit(which: int, unit: int = 1) -> str:
    soft = resource.getrlimit(which)[0]
    return "unlimited" if soft == resource.RLIM_INFINITY else str(soft // unit)
