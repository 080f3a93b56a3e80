"""Train and evaluate from Python: `d2ext.train` and `d2ext.evaluate`.

Each call restores the process, so that a notebook can train again: datasets, log handlers, signal
handlers, the lock of the run directory and open files are released, even after an error.
"""

import atexit
import copy
import gc
import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch.distributed as dist
from detectron2.engine import HookBase
from omegaconf import DictConfig

from d2ext.config.check import check_config, check_is_config
from d2ext.config.options import TrainOptions
from d2ext.data.datasets.register import unregister_datasets
from d2ext.engine.run import Run
from d2ext.engine.worker import execute
from d2ext.errors import UserError
from d2ext.guard import die_with_parent
from d2ext.launch.collectives import broadcast_from_rank0
from d2ext.launch.command import describe_call
from d2ext.launch.device import choose_device
from d2ext.launch.signals import EXIT_STOPPED, StopSignals
from d2ext.launch.spawn import run_here
from d2ext.launch.topology import Topology, find_topology
from d2ext.run_dir.lock import release_output_dir
from d2ext.run_dir.logging import logging_set_up
from d2ext.run_dir.names import usual_weights

_TIMEOUT = 1800.0  # seconds to wait for other ranks, the default of --dist-timeout
_running = threading.Lock()  # held during a run; runs share logging, datasets and handlers


def train(
    cfg: Any,
    output_dir: str | os.PathLike | None = None,
    *,
    hooks: Sequence[HookBase] = (),
    resume: bool = False,
    resume_from: str | os.PathLike | None = None,
    overwrite: bool = False,
    validate: bool = True,
) -> Run:
    """Train a config, as `d2ext train` does, and return the finished run.

    In a script started by torchrun or srun, this process is one of the ranks; otherwise it trains
    alone. In the main thread, a signal makes the run finish its step and save a checkpoint, from
    which `resume=True` continues. The call then raises KeyboardInterrupt after SIGINT (Ctrl-C, or
    "interrupt" in a notebook), and SystemExit with status 75 after SIGTERM, SIGUSR1 and SIGUSR2.

    Args:
        cfg: Config returned by `get_config` or `load_config`, which you may have modified; it is
            not changed.
        output_dir: Run directory; by default, `cfg.train.output_dir`.
        hooks: Detectron2 hooks, called after those of `cfg.train.hooks`.
        resume: Resume the newest intact checkpoint of the run directory, if there is one.
        resume_from: Resume this checkpoint.
        overwrite: Move an earlier run in the directory aside.
        validate: Evaluate on `cfg.dataloader.val`.

    Returns:
        The run. `run.results` maps names to numbers, such as `custom_val/coco/segm/AP`,
        `run.output_dir` is its directory, and `run.evaluated` the model, with the averaged weights
        if there are any.

    Raises:
        UserError: The user can fix the error. With several ranks, the process prints it and exits
            instead, because the other ranks wait for this one.

    Examples:
        >>> import d2ext
        >>> data = ["data.train.json=train.json", "data.train.images=photos"]
        >>> data += ["data.val.json=val.json", "data.val.images=photos"]
        >>> cfg = d2ext.get_config("custom/mask_rcnn_lite0_fpn.py", [*data, "train.max_iter=2"])
        >>> run = d2ext.train(cfg, "runs/mine")
        >>> "custom_val/coco/segm/AP" in run.results
        True
    """
    if isinstance(hooks, HookBase):
        raise UserError(f"hooks is a {type(hooks).__name__}; give a list of hooks")
    hooks = list(hooks)
    for hook in hooks:
        if not isinstance(hook, HookBase):
            raise UserError(
                f"hooks: {type(hook).__name__} is not a hook; give an object of a class derived"
                " from detectron2.engine.HookBase"
            )
    options = dict(
        resume=resume,
        resume_from=None if resume_from is None else str(resume_from),
        overwrite=overwrite,
        validate=validate,
    )
    flags = [] if validate else ["--no-validate"]
    # No command can pass hooks that exist only in Python.
    cfg, out = _checked(cfg, output_dir)
    run = _execute("train", cfg, out, options, None if hooks else flags, hooks)
    if run.stopped_by == "SIGINT":
        raise KeyboardInterrupt
    if run.stopped_by:
        raise SystemExit(EXIT_STOPPED)
    return run


def evaluate(
    cfg: Any,
    weights: str | os.PathLike | None = None,
    output_dir: str | os.PathLike | None = None,
    *,
    tta: bool = False,
) -> dict[str, float | None]:
    """Evaluate a model on `cfg.dataloader.test`, or `val` without it, as `d2ext evaluate` does.

    Results, predictions and the report are written to `eval` in the run directory.

    Args:
        cfg: Config returned by `get_config` or `load_config`; it is not changed.
        weights: `best` or `last` of the run directory, or a file; by default, the best if there is
            one, else the last, else `cfg.train.init_checkpoint`.
        output_dir: Run directory; by default, `cfg.train.output_dir`.
        tta: Use test-time augmentation with the flips and sizes of `cfg.dataloader.tta`.

    Returns:
        Flat results that map `<dataset>/<metric>/<task>/<name>` to a number, or to None if it is
        undefined.

    Raises:
        UserError: The user can fix the error; see `train` for several ranks.

    Examples:
        >>> import d2ext
        >>> cfg = d2ext.load_config("runs/trained/config.yaml")
        >>> results = d2ext.evaluate(cfg)
        >>> "custom_val/coco/segm/AP" in results
        True
    """
    cfg, out = _checked(cfg, output_dir)
    weights = usual_weights(out) if weights is None else str(weights)
    return _execute("evaluate", cfg, out, dict(eval_only=True, weights=weights, tta=tta)).results


def _execute(
    function: str,
    cfg: DictConfig,
    out: Path,
    options: Mapping[str, Any],
    flags: Sequence[str] | None = None,
    hooks: Sequence[HookBase] = (),
) -> Run:
    """Execute a run in this process; `flags` are those of `d2ext train` for the same run."""
    train_options = TrainOptions.from_config(cfg.train)
    dist_options = train_options.dist
    topology = find_topology(os.environ, dist_url=dist_options.url, port=dist_options.port)
    if topology.launcher == "self" and topology.world_size > 1:
        raise UserError(
            f"the environment has NNODES={topology.num_machines}; start a Python script on several"
            " machines with torchrun, or unset NNODES"
        )
    if topology.launcher == "torchrun":
        die_with_parent()
    gpus: dict[str, Any] = dict(num_gpus=topology.per_machine, gpu_each=topology.gpu_each)
    device = choose_device(train_options.device, **gpus)[0]
    command = describe_call(function, out, topology, flags)
    options = {**options, **gpus, "world_size": topology.world_size}

    def rank() -> Run:
        # A rank among several must not hang, so it may exit; a notebook's kernel must survive.
        signals = StopSignals(may_exit=topology.launcher != "self")
        run, _ = execute(cfg, command, options, signals, hooks=hooks)
        run.evaluations = broadcast_from_rank0(lambda: run.evaluations)
        return run

    with _released(topology):
        return run_here(topology, rank, _TIMEOUT, device, out)


def _checked(cfg: Any, output_dir: str | os.PathLike | None) -> tuple[DictConfig, Path]:
    """Check a copy of the config and set its run directory; return both."""
    check_is_config(cfg)
    cfg = copy.deepcopy(cfg)
    check_config(cfg)
    if output_dir is not None:
        cfg.train.output_dir = os.fspath(output_dir)
    if not cfg.train.get("output_dir"):
        raise UserError("no run directory is set; give output_dir=... or set train.output_dir")
    return cfg, Path(cfg.train.output_dir)


@contextmanager
def _released(topology: Topology) -> Iterator[None]:
    """Set up the process for a run, and release everything after the block.

    Raises:
        UserError: Another run is in progress in this process.
    """
    if not _running.acquire(blocking=False):
        raise UserError(
            "this process is already training or evaluating; wait until that call of d2ext has"
            " returned, or use another process"
        )
    try:
        if topology.launcher != "self" and not dist.is_initialized():
            atexit.register(_leave_ranks)
        with logging_set_up(quiet=topology.rank > 0):
            try:
                yield
            finally:
                unregister_datasets()
                release_output_dir()
    finally:
        _running.release()


def _leave_ranks() -> None:
    """Destroy the process groups before Python exits, because their threads may hold tensors."""
    gc.collect()  # model wrappers that refer to groups
    if dist.is_initialized():
        dist.destroy_process_group()
