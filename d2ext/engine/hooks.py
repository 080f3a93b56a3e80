"""Hooks that run around the training steps, and the states of user hooks in checkpoints."""

import logging
import math
import os
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from detectron2.engine import HookBase
from torch import nn
from torch.optim import Optimizer
from torch.optim.swa_utils import AveragedModel

from d2ext.config.schedule import Schedule
from d2ext.errors import UserError

logger = logging.getLogger(__name__)

_PLAIN = (str, bytes, bool, int, float, type(None))


class OnTrainStart(HookBase):
    """Call a function while the loader's workers prepare the first batches.

    Args:
        run: Function to call before the first step.
    """

    def __init__(self, run: Callable[[], object]):
        self._run = run

    def before_train(self) -> None:
        self._run()


class LearningRateHook(HookBase):
    """Set each group's learning rate to its base times the schedule's multiplier.

    The hook is stateless, so that a resumed run follows its config, not the rates stored in the
    checkpoint. Skipped steps (a float16 overflow, a non-finite loss) do not advance the schedule.

    Args:
        optimizer: Optimizer whose current rates are the bases.
        multiplier: fvcore ParamScheduler, which maps the fraction of the run (0 to 1) to a factor.
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
    """Update the averaged weights after each step that was taken.

    Args:
        averaged: Average returned by `techniques.averaged`.
        model: Model that is trained, unwrapped.
    """

    def __init__(self, averaged: AveragedModel, model: nn.Module):
        self._averaged = averaged
        self._model = model

    def after_step(self) -> None:
        if self.trainer.updated:
            self._averaged.update_parameters(self._model)


class EvaluationHook(HookBase):
    """Run an evaluation when one is due and log the results at the step just completed.

    Args:
        schedule: Schedule of the run.
        evaluate: Function that evaluates after a number of iterations and returns flat results on
            rank 0.
        known: Results of an evaluation at the iteration where a run resumes; None if that
            evaluation was not completed.
    """

    def __init__(
        self,
        schedule: Schedule,
        evaluate: Callable[[int], Mapping[str, float]],
        known: Mapping[str, float | None] | None,
    ):
        self._schedule = schedule
        self._evaluate = evaluate
        self._known = known

    def before_train(self) -> None:
        iteration = self.trainer.start_iter
        if iteration and self._schedule.evaluation_due(iteration):
            results = self._evaluate(iteration) if self._known is None else self._known
            self._put(results, iteration)

    def after_step(self) -> None:
        iteration = self.trainer.iter + 1
        if self._schedule.evaluation_due(iteration):
            self._put(self._evaluate(iteration), iteration)

    def _put(self, results: Mapping[str, float | None], iteration: int) -> None:
        # JSON has no NaN.
        finite = {k: v for k, v in results.items() if v is not None and math.isfinite(v)}
        self.trainer.storage.iter = iteration - 1
        self.trainer.storage.put_scalars(**finite, smoothing_hint=False)


class MemoryHook(HookBase):
    """Log `memory_mb`: peak GPU memory, or the process's current RSS without a GPU.

    Args:
        schedule: Schedule of the run; the hook does nothing in steps that are not logged.
    """

    def __init__(self, schedule: Schedule):
        self._schedule = schedule

    def after_step(self) -> None:
        if not self._schedule.log_due(self.trainer.iter + 1):
            return
        if torch.cuda.is_initialized():
            used = torch.cuda.max_memory_allocated()
        else:
            with open("/proc/self/statm") as f:
                used = int(f.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
        self.trainer.storage.put_scalar("memory_mb", used / 2**20, smoothing_hint=False)


class ReportHook(HookBase):
    """Write the run's report after each evaluation but the last, which the run itself reports.

    Args:
        schedule: Schedule of the run.
        write: Function that writes the report.
    """

    def __init__(self, schedule: Schedule, write: Callable[[], object]):
        self._schedule = schedule
        self._write = write

    def after_step(self) -> None:
        iteration = self.trainer.iter + 1
        if self._schedule.evaluation_due(iteration) and iteration < self.trainer.max_iter:
            self._write()


def hook_states(hooks: Sequence[HookBase]) -> list[dict[str, Any]]:
    """Return the states of user hooks for a checkpoint.

    `state_dict` is called on rank 0 only, before the first step and for each checkpoint, and must
    not use collectives.

    Args:
        hooks: All user hooks, in order.

    Returns:
        For each hook whose `state_dict` is not empty: `position` among `hooks`, the class name
        `hook`, and `state`.

    Raises:
        UserError: A state contains an object that checkpoints cannot hold.
    """
    states = []
    for position, hook in enumerate(hooks):
        if not (state := hook.state_dict()):
            continue
        name = type(hook).__qualname__
        if (kind := _unsafe(state)) is not None:
            raise UserError(
                f"{name}.state_dict() contains a {kind}, which checkpoints cannot hold; return"
                " tensors, numbers, strings, lists and dicts"
            )
        states.append({"position": position, "hook": name, "state": state})
    return states


def load_hook_states(hooks: Sequence[HookBase], states: Sequence[Mapping[str, Any]]) -> None:
    """Load the states of a checkpoint into the hooks with the same position and class name.

    A state without such a hook is ignored with a warning.

    Args:
        hooks: All user hooks, in order.
        states: States returned by `hook_states`.
    """
    by_position = {(i, type(hook).__qualname__): hook for i, hook in enumerate(hooks)}
    for entry in states:
        hook = by_position.get((entry["position"], entry["hook"]))
        if hasattr(hook, "load_state_dict"):
            hook.load_state_dict(entry["state"])
            continue
        reason = "this run has no such hook" if hook is None else "it has no load_state_dict"
        logger.warning(
            "The checkpoint's state of the hook %s is ignored: %s", entry["hook"], reason
        )


def _unsafe(value: Any) -> str | None:
    """Return the name of a type in a hook's state that `weights_only` cannot load, or None."""
    # Check exact types: numpy's float64 is a subclass of float, but torch's reader rejects it.
    if isinstance(value, torch.Tensor) or type(value) in _PLAIN:
        return None
    if type(value) in (dict, OrderedDict):
        value = [*value.keys(), *value.values()]
    if type(value) in (list, tuple):
        return next(filter(None, map(_unsafe, value)), None)
    return type(value).__name__
