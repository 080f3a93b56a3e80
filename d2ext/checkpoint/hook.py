"""Write checkpoints when they are due, optionally in a background thread."""

import copy
import logging
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from detectron2.engine import HookBase
from torch import Tensor

from d2ext.checkpoint.files import (
    link_checkpoint,
    mark_last,
    prune,
    save_checkpoint,
    save_final,
)
from d2ext.config.schedule import Schedule
from d2ext.errors import UserError
from d2ext.run_dir.names import BEST, LAST
from d2ext.waiting import waiting_for

logger = logging.getLogger(__name__)

_TO_GIVE_UP = "press Ctrl-C twice to give up; the previous checkpoint is kept"


class CheckpointHook(HookBase):
    """Write a checkpoint after each period, at the end, and when a signal stops the run.

    `save_stopped` is the trainer's `on_stop`.

    Args:
        folder: Output directory.
        schedule: Schedule of the run; files are named `epoch_<n>.pth` if the period is in epochs.
        keep: Number of periodic checkpoints to keep; 0 keeps all.
        content: Returns the content of a checkpoint after a number of iterations.
        asynchronous: Write periodic checkpoints in the background, from a copy in CPU memory.
    """

    def __init__(
        self,
        folder: Path,
        schedule: Schedule,
        keep: int,
        content: Callable[[int], dict[str, Any]],
        asynchronous: bool = False,
    ):
        self._folder = folder
        self._schedule = schedule
        self._keep = keep
        self._content = content
        self._asynchronous = asynchronous
        self._writer = _Writer()
        self._saved, self._path = -1, folder  # no checkpoint yet

    def after_step(self) -> None:
        iteration = self.trainer.iter + 1
        if iteration == self.trainer.max_iter:
            self.save_now(iteration)
            self._finish()
        elif self._schedule.checkpoint_due(iteration) or self._writer.error:
            self._save(iteration, self._asynchronous)

    def after_train(self) -> None:
        # After an error, the state is not saved. After a second Ctrl-C, no write is awaited.
        if self.trainer.error and not isinstance(self.trainer.error, KeyboardInterrupt):
            if error := self._writer.end():
                print(f"error: {error}", file=sys.stderr)

    def save_stopped(self) -> None:
        """Save a run that stopped before its end, but after its first step."""
        if not self.trainer.iter:
            return
        self.save_now(self.trainer.iter)
        if self.trainer.ended_early:
            self._finish()

    def save_now(self, iteration: int) -> None:
        """Save the state after `iteration` iterations and wait until it is on disk."""
        self._writer.wait()
        if self._saved != iteration or self._writer.error:
            self._save(iteration, asynchronous=False)

    def save_best(self, iteration: int) -> None:
        """Save the state as `model_best.pth`, which is never resumed."""
        if self._saved == iteration:
            self.save_now(iteration)
            link_checkpoint(self._path, BEST)
        else:
            save_checkpoint(self._folder / BEST, self._finite_content(iteration))

    def _finish(self) -> None:
        save_final(self._path, self._folder)

    def _save(self, iteration: int, asynchronous: bool) -> None:
        schedule = self._schedule
        whole_epoch = schedule.epoch(iteration) > schedule.epoch(iteration - 1)
        if schedule.checkpoint_period.epochs and whole_epoch:
            name = f"epoch_{schedule.epoch(iteration)}.pth"
        else:
            name = f"model_{iteration - 1:07d}.pth"  # Detectron2 counts from 0
        path = self._folder / name
        failed = self._writer.end()  # one write at a time
        content = self._finite_content(iteration)

        def write() -> None:
            save_checkpoint(path, content)
            mark_last(path)
            prune(self._folder, self._keep, path)
            logger.info("Saved %s", path)

        if asynchronous and not failed:
            content = _copied(content)
            self._writer.start(write)
        else:
            with waiting_for(f"the disk to write {path}", _TO_GIVE_UP):
                write()
        self._saved, self._path = iteration, path
        if failed:  # this write succeeded, so the run continues
            logger.warning("%s; %s was written instead", failed, path)

    def _finite_content(self, iteration: int) -> dict[str, Any]:
        content = {**self._content(iteration), **self.trainer.memory()}
        tensors = [t for t in content["model"].values() if t.is_floating_point()]
        # A single transfer from the device for all tensors.
        if tensors and not bool(torch.stack([t.isfinite().all() for t in tensors]).all()):
            raise UserError(
                f"the weights are not finite after {iteration} iterations and are not saved;"
                f" {self._folder / LAST} names the last good checkpoint; the usual fix is a lower"
                " optimizer.lr or train.clip_grad_norm=10"
            )
        return content


class _Writer:
    """Write one file at a time in a thread.

    Attributes:
        error: Exception of the last write, until `end` returns it; None if it succeeded.
    """

    def __init__(self) -> None:
        self._thread: threading.Thread | None = None
        self.error: BaseException | None = None

    def start(self, write: Callable[[], None]) -> None:
        """Start a write; the previous one must have ended."""

        def run() -> None:
            try:
                write()
            except BaseException as e:
                self.error = e

        # A daemon thread, so that a second Ctrl-C does not wait for the disk. The final save is
        # always awaited.
        self._thread = threading.Thread(target=run, name="checkpoint", daemon=True)
        self._thread.start()

    def wait(self) -> None:
        """Wait until nothing is being written."""
        if self._thread:
            with waiting_for("the checkpoint that is being written", _TO_GIVE_UP):
                self._thread.join()
            self._thread = None

    def end(self) -> BaseException | None:
        """Wait for the write; return and clear its exception."""
        self.wait()
        error, self.error = self.error, None
        return error


def _copied(content: Any) -> Any:
    """Return the content with copies of its tensors, so that the next steps do not change them."""
    if isinstance(content, Tensor):
        return content.detach().to("cpu", copy=True)
    if isinstance(content, dict):
        copied = copy.copy(content)  # keeps attributes, such as the metadata of a state dict
        copied.update((key, _copied(value)) for key, value in content.items())
        return copied
    return type(content)(map(_copied, content)) if isinstance(content, list | tuple) else content
