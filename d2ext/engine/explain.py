"""What a machine runs out of in the middle of a run, in words that name what to lower."""

import contextlib
import errno
from collections.abc import Callable, Iterator

import torch

from d2ext.errors import UserError

_CPU_MEMORY = "can't allocate memory"  # of torch's own allocator


@contextlib.contextmanager
def shortages_explained(what: Callable[[], str], remedy: str, workers: str) -> Iterator[None]:
    """Turns lack of memory and the death of a loader worker into a UserError.

    torch raises the latter wherever the process happens to be, from a signal handler.

    Args:
        what: says what was being computed.
        remedy: what to lower where memory is short.
        workers: the field with the number of loader workers.
    """
    try:
        yield
    except OSError as e:
        if e.errno != errno.ENOMEM:
            raise
        raise UserError(f"out of memory {what()}; {remedy}, or lower {workers}") from e
    except RuntimeError as e:
        text = (str(e).strip() or type(e).__name__).splitlines()[0]
        if isinstance(e, torch.OutOfMemoryError) or _CPU_MEMORY in text:
            place = "GPU memory" if isinstance(e, torch.OutOfMemoryError) else "memory"
            raise UserError(f"out of {place} {what()}; {remedy} ({_held() or text})") from e
        if "DataLoader timed out" in text:
            raise UserError(
                f"the loader gave nothing for ten minutes ({text}): a disk or file server hangs;"
                " --resume goes on when it answers"
            ) from e
        if "DataLoader worker" in text:
            raise UserError(
                f"a loader worker died ({text}): memory is short, or somebody ended it; lower"
                f" {workers}, or the images' sizes, and --resume"
            ) from e
        raise


def is_shortage(e: BaseException) -> bool:
    """Return whether `shortages_explained` explains an error, so that others leave it alone."""
    known = (_CPU_MEMORY, "DataLoader timed out", "DataLoader worker")
    return isinstance(e, torch.OutOfMemoryError | OSError) or any(k in str(e) for k in known)


def batch_words(batch: list[dict]) -> str:
    """Number and largest size of the images of a batch."""
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
