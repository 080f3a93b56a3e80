"""Explain exhausted resources of the machine in errors that name the option to lower."""

import contextlib
from collections.abc import Callable, Iterator

import torch

from d2ext import limits
from d2ext.data.loading.workers import last_words
from d2ext.errors import UserError
from d2ext.invocation import command, option

_NO_KERNEL = "no kernel image is available"  # CUDA


@contextlib.contextmanager
def resource_errors_explained(
    what: Callable[[], str], remedy: str, workers: str = ""
) -> Iterator[None]:
    """Turn errors for an exhausted resource or a dead loader worker into a UserError.

    Args:
        what: Function that returns a description of what was being computed.
        remedy: Advice on what to lower if memory runs out.
        workers: Config field with the number of loader workers; "" if there are none.
    """
    try:
        yield
    except (MemoryError, OSError, EOFError, RuntimeError) as e:
        _explain(e, what, remedy, workers)
        raise


def is_resource_error(e: BaseException) -> bool:
    """Return whether an error is one that `resource_errors_explained` may explain."""
    text = f"{type(e).__name__}: {e}"
    exhausted = isinstance(e, torch.OutOfMemoryError | OSError) or limits.exhausted(text)
    return bool(exhausted) or "DataLoader" in text or _NO_KERNEL in text


def _explain(e: Exception, what: Callable[[], str], remedy: str, workers: str) -> None:
    """Raise a UserError for an error that the machine's limits cause."""
    # The connection of a worker that dies may close before its own error message arrives.
    words = last_words(patience=1.0 if isinstance(e, EOFError | ConnectionError) else 0.0)
    text = words or f"{type(e).__name__}: {e}"
    kind = limits.exhausted(text)
    on_gpu = isinstance(e, torch.OutOfMemoryError) or kind == "GPU memory"
    if on_gpu or kind == "memory":
        place = "GPU memory" if on_gpu else "memory"
        more = f", or lower {workers}" if workers and not on_gpu else ""
        reasons = [_last(text), "" if on_gpu else limits.remedy(kind)]
        reason = on_gpu and _held() or "; ".join(filter(None, reasons))
        raise UserError(f"out of {place} {what()}; {remedy}{more} ({reason})") from e
    if _NO_KERNEL in text:
        raise UserError(
            f"torch or Detectron2 is not built for this GPU ({_first(text)});"
            f" {command('doctor')} checks both"
        ) from e
    if not workers:
        return
    of_workers = words or "DataLoader" in text or f"'{limits.SHARED_MEMORY}'" in text
    # Nothing else in training opens that many files.
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
            f"the loader returned no batch for ten minutes ({_first(text)}): a disk or file server"
            f" hangs; continue with {option('--resume')} when it responds again"
        ) from e
    if text.startswith("RuntimeError: DataLoader worker"):
        raise UserError(
            f"a loader worker died ({_first(text)}): memory ran out, or another process killed it;"
            f" lower {workers} or the image sizes, and continue with {option('--resume')}"
        ) from e


def batch_words(batch: list[dict]) -> str:
    """Return a text with the number of a batch's images and their padded size."""
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
    """Return the line that states the error: the last one if the text is a stack trace."""
    return _first(text) if "Traceback" not in text else text.strip().splitlines()[-1]
