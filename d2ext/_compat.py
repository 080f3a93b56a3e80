"""Private API of other libraries that d2ext depends on, one function each.

These names have no public equivalent and can change in any release. tests/test_compat.py checks
each of them, so that an incompatible upgrade fails there, by name, and not during training.

Two private names are used elsewhere, because they cannot be wrapped in a function; the same tests
check them: submitit's `LocalExecutor._submit_command`, overridden in slurm/local.py, and
`detectron2._C`, which doctor/probe.py looks for.

Libraries are imported inside the functions that need them, because modules that must not import
torch or detectron2 use this one.
"""

import multiprocessing
from collections.abc import Callable
from types import TracebackType
from typing import Any


def set_class(module: Any, cls: type) -> None:
    """Change the class of a torch module in place, as torch's `fully_shard` does.

    Replacing the module in its parent is not enough: Detectron2's FPN also refers to its
    convolutions from plain lists. Parameters, buffers, hooks and state dict keys do not change.

    Args:
        module: The `nn.Module` to change.
        cls: Subclass of `type(module)` that overrides methods only.
    """
    module.__class__ = cls


def set_size_divisibility(backbone: Any, multiple: int) -> bool:
    """Pad images to a multiple of `multiple` pixels, in addition to the backbone's own multiple.

    `Backbone.size_divisibility` is read-only; FPN keeps the number in `_size_divisibility`.

    Returns:
        Whether the backbone has `_size_divisibility`; without it, nothing changes.
    """
    import math

    own = getattr(backbone, "_size_divisibility", None)
    if own is not None:
        backbone._size_divisibility = math.lcm(own, multiple)
    return own is not None


def dense_box_regression_loss(*args: Any) -> Any:
    """Return the sum of the box losses of anchors, as in Detectron2's RPN.

    Args:
        *args: Anchors, box transform, predicted deltas, ground-truth boxes, indices of the
            foreground (image, anchor), name and beta of the loss.
    """
    from detectron2.modeling.box_regression import _dense_box_regression_loss

    return _dense_box_regression_loss(*args)


def scoped_name(storage: Any, name: str) -> str:
    """Return the name of a number with the prefix of the storage's `name_scope`."""
    return storage._current_prefix + name


def gloo_group() -> Any:
    """Return Detectron2's process group for CPU values, which `comm.gather` uses."""
    from detectron2.utils import comm

    return comm._get_global_gloo_group()


def set_group_timeout(group: Any, seconds: float) -> None:
    """Set the timeout of a process group's collectives."""
    import datetime

    import torch.distributed as dist

    # Public from torch 2.8 on.
    if (set_timeout := getattr(dist, "set_timeout", None)) is None:
        set_timeout = dist.distributed_c10d._set_pg_timeout
    set_timeout(datetime.timedelta(seconds=seconds), group)


def loader_workers(batches: Any) -> list[multiprocessing.Process]:
    """Return the workers of a DataLoader's iterator; an empty list if it loads in this process."""
    return getattr(batches, "_workers", [])


def shut_down_loader_workers(batches: Any) -> None:
    """Stop the workers of a DataLoader's iterator, as its destructor does, and wait for them."""
    batches._shutdown_workers()


def on_feeder_error(handle: Callable[[Exception, Any], None]) -> Callable[[type], type]:
    """Return a decorator for queue classes that calls `handle` on errors in the sending thread.

    If `handle` returns, Python prints the error and continues, as it does by default.

    Args:
        handle: Function of the error and the object that could not be sent.
    """

    def decorate(cls: type) -> type:
        default = cls._on_queue_feeder_error

        def call(e: Exception, obj: Any) -> None:
            handle(e, obj)
            default(e, obj)

        cls._on_queue_feeder_error = staticmethod(call)
        return cls

    return decorate


def run_exit_functions() -> None:
    """Wait for threads and call exit functions, as Python does at exit."""
    import atexit
    import threading

    threading._shutdown()
    atexit._run_exitfuncs()


def raw_value(node: Any, key: Any) -> Any:
    """Return a value of an omegaconf container as written, without resolving interpolations.

    Args:
        node: A DictConfig or ListConfig.
        key: Key or index of the value.

    Returns:
        A container, possibly one that stands for None or an interpolation, or a plain value.
    """
    from omegaconf import DictConfig, ListConfig

    raw = node._get_node(key)
    return raw if isinstance(raw, (DictConfig, ListConfig)) else raw._value()


def is_none(container: Any) -> bool:
    """Return whether an omegaconf container returned by `raw_value` stands for None."""
    return container._is_none()


def submission_script(executor: Any) -> str:
    """Return the text of the sbatch file that a submitit executor would submit."""
    return executor._make_submission_file_text(executor._submitit_command_str, "")


def innermost_config(traceback: TracebackType | None) -> tuple[str, int | None] | None:
    """Return the file and line of the innermost LazyConfig file in a traceback.

    Returns:
        The file and line, or None if there is no such file. The line is None if Detectron2 was
        reading or parsing the file.
    """
    from traceback import walk_tb

    place = None
    for frame, line in walk_tb(traceback):
        if str(frame.f_globals.get("__package__")).startswith("detectron2._cfg_loader"):
            place = frame.f_code.co_filename, line  # code of a config
        elif frame.f_globals.get("__name__") == "detectron2.config.lazy":
            if "filename" in frame.f_locals:  # Detectron2 reads and parses the next file
                place = frame.f_locals["filename"], None
    return place
