"""What happens around training steps; each hook does one thing."""

import math
import os
from collections.abc import Callable, Mapping

import torch
from detectron2.engine import HookBase
from torch import nn
from torch.optim import Optimizer
from torch.optim.swa_utils import AveragedModel


class OnTrainStart(HookBase):
    """Runs a function while the loader's workers make the first batches.

    Args:
        run: what is to be done before the first step.
    """

    def __init__(self, run: Callable[[], None]):
        self._run = run

    def before_train(self) -> None:
        self._run()


class LearningRateHook(HookBase):
    """Sets each group's learning rate to its base times the schedule's multiplier.

    Stateless, so that a resumed run follows the config it is given, not the rates it stored. Steps
    that were not taken (a float16 overflow, a bad loss) do not advance the schedule.

    Args:
        optimizer: its groups' present rates are the bases.
        multiplier: fvcore ParamScheduler, from the fraction of the run (0 to 1) to a factor.
    """

    def __init__(self, optimizer: Optimizer, multiplier: Callable[[float], float]):
        self._groups = optimizer.param_groups
        self._bases = [group["lr"] for group in optimizer.param_groups]
        self._multiplier = multiplier

    def before_step(self) -> None:
        taken = self.trainer.iter - self.trainer.skipped_steps
        factor = self._multiplier(taken / self.trainer.max_iter)
        for group, base in zip(self._groups, self._bases, strict=True):
            group["lr"] = base * factor
        self.trainer.storage.put_scalar("lr", self._groups[0]["lr"], smoothing_hint=False)


class AverageWeightsHook(HookBase):
    """Moves the averaged weights behind each step that was taken.

    Args:
        averaged: of `aids.averaged`.
        model: that is trained, unwrapped.
    """

    def __init__(self, averaged: AveragedModel, model: nn.Module):
        self._averaged = averaged
        self._model = model

    def after_step(self) -> None:
        if self.trainer.updated:
            self._averaged.update_parameters(self._model)


class EvaluationHook(HookBase):
    """Evaluates where it is due, and gives the numbers to the step that lies behind.

    Args:
        due: whether there is an evaluation behind so many iterations.
        run: evaluates after so many iterations; returns flat results on rank 0, and on all ranks
            why the run should end now, or None.
        known: the results where a resumed run goes on; None: it ended before it had them.
    """

    def __init__(
        self,
        due: Callable[[int], bool],
        run: Callable[[int], tuple[dict[str, float], str | None]],
        known: Mapping[str, float | None] | None,
    ):
        self._due = due
        self._run = run
        self._known = known

    def before_train(self) -> None:
        done = self.trainer.start_iter
        if not done or not self._due(done):
            return
        if self._known is None:
            self._evaluate(done)
        else:
            self._put(self._known, done)

    def after_step(self) -> None:
        if self._due(self.trainer.iter + 1):
            self._evaluate(self.trainer.iter + 1)

    def _evaluate(self, done: int) -> None:
        results, reason = self._run(done)
        self._put(results, done)
        if reason and done < self.trainer.max_iter:
            self.trainer.ended_early = reason

    def _put(self, results: Mapping[str, float | None], done: int) -> None:
        # JSON has no NaN.
        finite = {k: v for k, v in results.items() if v is not None and math.isfinite(v)}
        self.trainer.storage.iter = done - 1
        self.trainer.storage.put_scalars(**finite, smoothing_hint=False)


class MemoryHook(HookBase):
    """Notes `memory_mb`: the most that torch had of a GPU so far, or what this process has now."""

    def after_step(self) -> None:
        if torch.cuda.is_initialized():
            used = torch.cuda.max_memory_allocated()
        else:
            with open("/proc/self/statm") as f:
                used = int(f.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
        self.trainer.storage.put_scalar("memory_mb", used / 2**20)


class ReportHook(HookBase):
    """Writes a run's page anew where numbers of an evaluation have come.

    Args:
        due: whether there is an evaluation behind so many iterations.
        write: the page.
    """

    def __init__(self, due: Callable[[int], bool], write: Callable[[], object]):
        self._due = due
        self._write = write

    def after_step(self) -> None:
        done = self.trainer.iter + 1
        if self._due(done) and done < self.trainer.max_iter:  # the last one is the run's own
            self._write()
