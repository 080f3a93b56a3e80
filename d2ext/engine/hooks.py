"""What happens around training steps; each hook does one thing."""

import math
import sys
from collections.abc import Callable, Sequence

from detectron2.engine import HookBase
from detectron2.utils.events import EventWriter
from torch import nn
from torch.optim import Optimizer
from torch.optim.swa_utils import AveragedModel
from tqdm import tqdm

from d2ext.config.schedule import Schedule


class LearningRate(HookBase):
    """Sets each group's learning rate to its base times the schedule's multiplier.

    Stateless, so that a resumed run follows the config it is given, not the rates it stored.

    Args:
        optimizer: its groups' present rates are the bases.
        multiplier: fvcore ParamScheduler, from the fraction of the run (0 to 1) to a factor.
    """

    def __init__(self, optimizer: Optimizer, multiplier: Callable[[float], float]):
        self._groups = optimizer.param_groups
        self._bases = [group["lr"] for group in optimizer.param_groups]
        self._multiplier = multiplier

    def before_step(self) -> None:
        factor = self._multiplier(self.trainer.iter / self.trainer.max_iter)
        for group, base in zip(self._groups, self._bases, strict=True):
            group["lr"] = base * factor
        self.trainer.storage.put_scalar("lr", self._groups[0]["lr"], smoothing_hint=False)


class AverageWeights(HookBase):
    """Moves the averaged weights behind each step.

    Args:
        averaged: of `aids.averaged`.
        model: that is trained, unwrapped.
    """

    def __init__(self, averaged: AveragedModel, model: nn.Module):
        self._averaged = averaged
        self._model = model

    def after_step(self) -> None:
        self._averaged.update_parameters(self._model)


class Evaluate(HookBase):
    """Evaluates at each period and at the end, and logs the numbers with the losses.

    Args:
        schedule: of the run.
        run: evaluates after so many iterations; returns flat results on rank 0, and on all ranks
            why the run should end now, or None.
        pending: a run that is resumed has not been evaluated where it goes on.
    """

    def __init__(
        self,
        schedule: Schedule,
        run: Callable[[int], tuple[dict[str, float], str | None]],
        pending: bool,
    ):
        self._schedule = schedule
        self._run = run
        self._pending = pending

    def before_train(self) -> None:
        # A run that ended between the checkpoint and its evaluation.
        done = self.trainer.start_iter
        if self._pending and self._schedule.eval_period.due(done, self._schedule):
            self._evaluate(done)

    def after_step(self) -> None:
        done = self.trainer.iter + 1
        last = done == self.trainer.max_iter
        if last or self._schedule.eval_period.due(done, self._schedule):
            self._evaluate(done)

    def _evaluate(self, done: int) -> None:
        results, reason = self._run(done)
        finite = {k: v for k, v in results.items() if math.isfinite(v)}  # JSON has no NaN
        self.trainer.storage.iter = done - 1
        self.trainer.storage.put_scalars(**finite, smoothing_hint=False)
        if reason and done < self.trainer.max_iter:
            self.trainer.ended_early = reason


class LostNumbers(HookBase):
    """Writes the numbers of a checkpoint's step where a kill behind it left no time for them.

    Args:
        writers: of the numbers.
        period: of the lines.
        written: the last iteration that the run has written, or -1; None for a new run, which may
            go on with another one's checkpoint.
    """

    def __init__(self, writers: Sequence[EventWriter], period: int, written: int | None):
        self._writers = writers
        self._period = period
        self._written = written

    def before_train(self) -> None:
        done = self.trainer.start_iter
        known = self._written is not None
        if known and self._written < done - 1 and done % self._period == 0:
            for writer in self._writers:
                writer.write()


class ProgressBar(HookBase):
    """A live bar with ETA, loss and learning rate, where stderr is a terminal."""

    def before_train(self) -> None:
        self._bar = tqdm(
            total=self.trainer.max_iter,
            initial=self.trainer.start_iter,
            desc="train",
            unit="it",
            dynamic_ncols=True,
            disable=not sys.stderr.isatty(),
        )

    def after_step(self) -> None:
        numbers = self.trainer.storage.histories()
        if "total_loss" in numbers:  # else the first step was left out
            self._bar.set_postfix(
                loss=f"{numbers['total_loss'].median(20):.3f}",
                lr=f"{numbers['lr'].latest():.2g}",
                refresh=False,
            )
        self._bar.update()

    def after_train(self) -> None:
        if hasattr(self, "_bar"):
            self._bar.close()
