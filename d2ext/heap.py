"""Keep the memory of large tensors for the next ones, on Linux with glibc."""

import ctypes

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # mallopt(3)
_KEPT = 2**30  # bytes


def reuse_freed_memory() -> None:
    """Make the C library keep up to 1 GiB of freed memory.

    By default, glibc returns each large block to the system, which then clears new pages for the
    next feature map. That takes up to a sixth of the time of an inference. Other C libraries are
    not changed.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_MMAP_THRESHOLD, _KEPT)
        mallopt(_TRIM_THRESHOLD, _KEPT)


def return_freed_memory() -> None:
    """Return freed memory to the system now.

    Call this before a fork: the first write to each page that a child inherits copies it.
    """
    malloc_trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if malloc_trim is not None:
        malloc_trim(0)
