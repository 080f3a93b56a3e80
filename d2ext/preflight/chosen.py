"""Choose values for a config: those that fit its training data, or those of an earlier run."""

import logging
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from d2ext.config.by_hand import ANCHORS, BOX_CONVOLUTIONS, overridden
from d2ext.config.choices import differing, is_auto, with_choices
from d2ext.config.load import execute_config
from d2ext.data.fitting.fit import AUTO, Fitted, fitted, kept_choices
from d2ext.data.fitting.rules import Hardware
from d2ext.limits import usable_cores
from d2ext.preflight.budget import check_budget
from d2ext.run_dir.names import CONFIG, run_folder

logger = logging.getLogger(__name__)


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
        kept = Fitted(choices=[], skipped=[_unknown(earlier)])
    found = fitted(cfg, hardware, kept, _detector(cfg))
    if found and kept and earlier and _is_saved(cfg, earlier, kept):
        found = kept.settled()
    check_budget(cfg, found.by_hand if found and not kept else ())
    return found, kept is None


def _detector(cfg: Any) -> dict[str, Any]:
    """Return anchors and box head of the run whose weights training starts from, if it is one."""
    source = cfg.train.get("init_checkpoint") or ""
    file = Path(source).parent / CONFIG
    if not source or not run_folder(file) or not file.is_file():
        return {}
    run = execute_config(file)
    found = {key: OmegaConf.select(run, key) for key in (ANCHORS, BOX_CONVOLUTIONS)}
    return {k: OmegaConf.to_container(v) for k, v in found.items() if OmegaConf.is_list(v)}


def _unknown(folder: Path | None) -> str:
    """Say that the values which weights in a folder were trained with are unknown."""
    return (
        f"{folder} has no {AUTO}, so the recipe's values are used; if the weights were trained with"
        " other values, use the config.yaml of their run"
    )


def _is_saved(cfg: Any, folder: Path, kept: Fitted) -> bool:
    """Return whether a config has the values of a run's config.yaml, which are final."""
    file = folder / CONFIG
    if not file.is_file():
        return False
    chosen = {choice.key for choice in kept.choices} - overridden(cfg)
    return chosen.isdisjoint(differing(cfg, execute_config(file)))


def hardware_of(device: str, processes: int, accumulate: int, world_size: int) -> Hardware:
    """Return the hardware of a process of a run.

    Args:
        device: `cpu` or `cuda`.
        processes: Number of processes on this machine.
        accumulate: Micro-batches per training step.
        world_size: Number of processes on all machines.
    """
    cores = max(usable_cores() // processes, 1)
    return Hardware(device, cores, world_size * accumulate, world_size)


def as_trained(cfg: Any, folder: Path) -> Any:
    """Return a config with the values that the run in a folder chose, as far as it has some."""
    kept = kept_choices(folder)
    if not kept:
        if is_auto(cfg):
            logger.warning("data.auto: %s", _unknown(folder))
        return cfg
    chosen, _ = choose_values(cfg, Hardware("cpu"), folder)
    return with_choices(cfg, chosen.applied) if chosen else cfg
