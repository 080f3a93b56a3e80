"""Explain exhausted resources of the machine in errors that name what to lower."""

import contextlib
from collections.abc import Callable, Iterator

import torch

from d2ext import limits
from d2ext.data.loading.workers import last_words
from d2ext.errors import UserError


@contextlib.contextmanager
def resource_errors_explained(what: Callable[[], str], remedy: str, workers: str) -> Iterator[None]:
    """Turn an exhausted resource, and the death of a loader worker, into a UserError.

    Args:
        what: Says what was being computed.
        remedy: What to lower if memory is short.
        workers: The field with the number of loader workers.
    """
    try:
        yield
    except (MemoryError, OSError, EOFError, RuntimeError) as e:
        _explain(e, what, remedy, workers)
        raise


def is_resource_error(e: BaseException) -> bool:
    """Return whether `resource_errors_explained` explains an error; it leaves others alone."""
    text = f"{type(e).__name__}: {e}"
    exhausted = isinstance(e, torch.OutOfMemoryError | OSError) or limits.exhausted(text)
    return bool(exhausted) or "DataLoader" in text


def _explain(e: Exception, what: Callable[[], str], remedy: str, workers: str) -> None:
    """Raise a UserError for an error that is the machine's."""
    # A worker that ends takes its connection along: then its own words come right after.
    words = last_words(patience=1.0 if isinstance(e, EOFError | ConnectionError) else 0.0)
    text = words or f"{type(e).__name__}: {e}"
    kind = limits.exhausted(text)
    on_gpu = isinstance(e, torch.OutOfMemoryError)
    if on_gpu or kind == "memory":
        place = "GPU memory" if on_gpu else "memory"
        more = "" if on_gpu else f", or lower {workers}"
        reasons = [_last(text), "" if on_gpu else limits.remedy(kind)]
        reason = on_gpu and _held() or "; ".join(filter(None, reasons))
        raise UserError(f"out of {place} {what()}; {remedy}{more} ({reason})") from e
    of_workers = words or "DataLoader" in text or f"'{limits.SHARED_MEMORY}'" in text
    # Nothing else in a training opens files by the dozen.
    if kind and (of_workers or kind == "open files"):
        raise UserError(
            f"the loader workers ran out of {kind} ({_last(text)}). {limits.remedy(kind)}, or lower"
            f" {workers}; 0 needs none"
        ) from e
    if words:
        raise UserError(
            f"a loader worker cannot send its batch ({_first(text)}); {workers}=0 needs none"
        ) from e
    if "DataLoader timed out" in text:
        raise UserError(
            f"the loader gave nothing for ten minutes ({_first(text)}): a disk or file server"
            " hangs; --resume goes on when it answers"
        ) from e
    if text.startswith("RuntimeError: DataLoader worker"):
        raise UserError(
            f"a loader worker died ({_first(text)}): memory is short, or another process killed it;"
            f" lower {workers}, or the images' sizes, and --resume"
        ) from e


def batch_words(batch: list[dict]) -> str:
    """Return the number and the largest size of a batch's images, as text."""
    sizes = [tuple(sample["image"].shape[-2:]) for sample in batch if "image" in sample]
    if not sizes:
        return f"{len(batch)} images"
    height, width = (max(side) for side in zip(*sizes, strict=True))
    return f"{len(batch)} images, padded to {height} x {width} pixels (height x width)"


def _held() -> str:
    if not torch.cuda.is_available():
        return ""
    total = torch.cuda.get_device_properties(torch.cuda.current_device()).total_memory
    return f"{torch.cuda.max_memory_allocated() / 2**30:.1f} of {total / 2**30:.1f} GiB in use"


def _first(text: str) -> str:
    return next(iter(text.removeprefix("RuntimeError: ").strip().splitlines()), "")


def _last(text: str) -> str:
    """Return the line that says what happened: of a worker's stack trace the last one."""
    return _first(text) if "Traceback" not in text else text.strip().splitlines()[-1]
