"""Choose values for a config: those that fit its training data, or those of an earlier run."""

import os
import sys
from pathlib import Path
from typing import Any

from d2ext.config.choices import with_choices
from d2ext.data.fitting.fit import AUTO, Fitted, fitted, kept_choices
from d2ext.data.fitting.rules import Hardware
from d2ext.preflight.budget import check_budget


def choose_values(
    cfg: Any, hardware: Hardware, earlier: Path | None, trained: bool = False
) -> tuple[Fitted | None, bool]:
    """Choose values that fit the data, or take those of an earlier run.

    Args:
        cfg: Config with registered datasets.
        hardware: What the run trains on.
        earlier: Folder of the run that is resumed or whose weights are evaluated, if any.
        trained: Whether there are such weights, which only fit the values they were trained with.

    Returns:
        The choices, None without `data.auto` and without `train.budget`; and whether they are new.
    """
    kept = kept_choices(earlier) if earlier else None
    if trained and not kept:
        kept = Fitted(choices=[], skipped=[f"the run has no {AUTO} and so the recipe's values"])
    if not kept:
        check_budget(cfg)
    return fitted(cfg, hardware, kept), kept is None


def hardware_of(device: str, processes: int, accumulate: int, world_size: int) -> Hardware:
    """Return the hardware of a process of a run.

    Args:
        device: `cpu` or `cuda`.
        processes: Number of processes on this machine.
        accumulate: Micro-batches per training step.
        world_size: Number of processes on all machines.
    """
    cores = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
    return Hardware(device, max(cores // processes, 1), world_size * accumulate)


def as_trained(cfg: Any, folder: Path) -> Any:
    """Return a config with the values that the run in a folder chose, as far as it has some."""
    kept = kept_choices(folder)
    chosen = fitted(cfg, Hardware("cpu"), kept) if kept else None
    return with_choices(cfg, chosen.applied) if chosen else cfg
