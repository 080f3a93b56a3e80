"""Choose the length of a run so that it fits a budget of time: `train.budget`."""

import math
import os
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any

from d2ext.config import by_hand as keys
from d2ext.config.choices import Choice
from d2ext.config.lr_scaling import ScalingReport
from d2ext.config.schedule import Period, Schedule
from d2ext.errors import UserError
from d2ext.text import as_seconds, plural

BUDGET = "train.budget"
_MARGIN = 0.03  # share of the budget that is left for what is not measured
_EVALUATIONS = 6  # in a run whose periods are chosen
_MOST_WARMUP = 0.1  # share of the run
_SHARE = 0.25  # largest share of the budget for evaluations, if their number is chosen


@dataclass(frozen=True)
class Speed:
    """Measured times of a run, in seconds.

    Attributes:
        start: Time to build the model and the loaders, with the first step.
        step: Time of an optimizer step.
        evaluation: Time of one evaluation of the validation sets; 0 without one.
    """

    start: float
    step: float
    evaluation: float


@dataclass(frozen=True)
class Workload:
    """Describe what a run computes, for a function that measures its speed.

    Attributes:
        cfg: Config with the values of this run's world size; its datasets are registered.
        device: `cpu` or `cuda`.
        classes: Class names.
        dataset: Training set; None for a loader of your own.
        world_size: Number of processes on all machines.
        here: Number of processes on this machine.
        evaluates: Whether the run evaluates on `dataloader.val`.
        losses: Validation sets on which training losses are computed.
    """

    cfg: Any
    device: str
    classes: Sequence[str]
    dataset: Any
    world_size: int
    here: int
    evaluates: bool
    losses: Sequence[str]


Measure = Callable[[Workload], Speed]


@dataclass(frozen=True)
class Length:
    """Length of a run that fits its budget.

    Attributes:
        iterations: Optimizer steps.
        evaluations: Number of evaluations.
        period: Chosen number of epochs between evaluations; None if they have a period already.
    """

    iterations: int
    evaluations: int
    period: int | None = None


def seconds_of(budget: object) -> float:
    """Return a budget in seconds.

    Raises:
        UserError: The value is not a duration.
    """
    if not (seconds := as_seconds(str(budget))):
        raise UserError(
            f"{BUDGET}={budget!r}: give hours, minutes or seconds, as in '10 min' or '1h30m'"
        )
    return seconds


def check_budget(cfg: Any, by_hand: Collection[str] = ()) -> None:
    """Check `train.budget`, if it is set.

    Args:
        cfg: Config returned by `load_config`.
        by_hand: Keys that the user has set.

    Raises:
        UserError: The value is not a duration, or the user also sets the length of the run.
    """
    if not (budget := cfg.train.get("budget")):
        return
    seconds_of(budget)
    if not {keys.EPOCHS, keys.ITERATIONS}.isdisjoint(by_hand):
        raise UserError(
            f"{BUDGET} and {keys.EPOCHS} (or {keys.ITERATIONS}) both set the length of the run;"
            " give one of them"
        )


def longest(
    seconds: float, speed: Speed, epoch: float, period: Period | None, evaluates: bool = True
) -> Length:
    """Return the longest run that fits a budget.

    Args:
        seconds: Budget that is left for start, steps and evaluations.
        speed: Measured times.
        epoch: Steps of an epoch.
        period: Period of the evaluations; None chooses one: up to 6 evaluations that take up to a
            quarter of the budget, but at least the one at the end.
        evaluates: Whether the run evaluates at all.

    Returns:
        The length; it may have no step.
    """
    usable = seconds * (1 - _MARGIN) - speed.start
    each = speed.evaluation if evaluates else 0.0
    if not evaluates or period is not None:
        most = max(int(usable / speed.step), 0)
        low, high = 0, most  # a longer run never has fewer evaluations
        while low < high:
            middle = (low + high + 1) // 2
            cost = middle * speed.step + _evaluations(middle, epoch, period, evaluates) * each
            low, high = (middle, high) if cost <= usable else (low, middle - 1)
        return Length(low, _evaluations(low, epoch, period, evaluates))
    count = _EVALUATIONS if not each else min(max(int(_SHARE * usable / each), 1), _EVALUATIONS)
    steps = max(int((usable - count * each) / speed.step), 0)
    chosen = max(math.ceil(steps / epoch / count), 1)
    return Length(steps, _evaluations(steps, epoch, Period(epochs=chosen), True), chosen)


def _evaluations(steps: int, epoch: float, period: Period | None, evaluates: bool) -> int:
    """Return how often a run of some steps evaluates, with the end."""
    if not evaluates:
        return 0
    every = 0.0
    if period:
        every = period.epochs * epoch or period.iterations
    return max(math.ceil(steps / every), 1) if every else 1


def fit_budget(
    budget: str,
    work: Workload,
    schedule: Schedule,
    since: float,
    by_hand: Collection[str],
    periods: bool,
    scaling: ScalingReport | None,
    measure: Measure | None,
) -> tuple[list[Choice], list[str]]:
    """Measure a run's speed, and choose the length that fits its budget.

    Args:
        budget: Value of `train.budget`.
        work: What the run computes.
        schedule: Schedule of the config.
        since: Monotonic time at which the command started.
        by_hand: Keys whose values stay.
        periods: Whether to choose the periods of evaluations and checkpoints.
        scaling: Report of `scale_config`, if it has scaled the config.
        measure: Function that times steps; None: none are timed.

    Returns:
        The chosen values, for the config before scaling, and lines for the plan.

    Raises:
        UserError: Not even a step fits the budget.
    """
    if measure is None or "D2EXT_PLAN_GPUS" in os.environ:  # preflight for other machines
        return [], [f"{budget}: steps are timed on the machine that trains"]
    speed = measure(work)
    left = seconds_of(budget) - (time.monotonic() - since)
    scale = scaling.scale if scaling else 1.0
    warmup = work.cfg.train.get("warmup_iters")
    choices = choose_length(budget, left, speed, schedule, by_hand, periods, scale, warmup)
    return choices, [choices[0].reason]


def choose_length(
    budget: str,
    left: float,
    speed: Speed,
    schedule: Schedule,
    by_hand: Collection[str] = (),
    periods: bool = False,
    scale: float = 1.0,
    warmup: int | None = None,
) -> list[Choice]:
    """Choose the length of a run, its warm-up, and the periods of evaluations and checkpoints.

    Args:
        budget: Value of `train.budget`.
        left: Seconds of the budget that are left.
        speed: Measured times.
        schedule: Schedule of the config.
        by_hand: Keys whose values stay.
        periods: Whether to choose the periods.
        scale: Divisor by which `scale_config` divides numbers of iterations.
        warmup: `train.warmup_iters`; None: the warm-up is a share of the run already.

    Raises:
        UserError: Not even a step fits the budget.
    """
    epoch = schedule.num_images / schedule.batch_size
    evaluates = schedule.evaluates
    free = periods and keys.EVALUATIONS not in by_hand and schedule.eval_period != Period()
    found = longest(left, speed, epoch, None if free else schedule.eval_period, evaluates)
    cost = f"{speed.step:.3g} s per step"
    if evaluates:
        cost += f" and {speed.evaluation:.3g} s per evaluation"
    if not found.iterations:
        start = seconds_of(budget) - left + speed.start
        least = start + speed.step + speed.evaluation * evaluates
        raise UserError(
            f"{BUDGET}={budget!r} is too short: the start takes {start:.0f} s, and a run {cost};"
            f" give at least {math.ceil(least / (1 - _MARGIN))} s"
        )
    epochs = found.iterations / epoch
    why = (
        f"{plural(found.iterations, 'step')} ({epochs:.3g} epochs) in {budget}: {cost}"
        f" measured, {plural(found.evaluations, 'evaluation')}"
    )
    if epochs < 1:
        why += "; not every image is trained on"
    if schedule.in_epochs:
        choices = [Choice(keys.EPOCHS, _floor(epochs), why)]
    else:
        choices = [Choice(keys.ITERATIONS, int(found.iterations * scale), why)]
    if found.period and evaluates:
        choices.append(Choice(keys.EVALUATIONS, f"{found.period} epochs", why))
        if keys.CHECKPOINTS not in by_hand:
            choices.append(Choice(keys.CHECKPOINTS, f"{found.period} epochs", why))
    most = max(int(_MOST_WARMUP * found.iterations), 1)
    if (warmup or 0) > most and keys.WARMUP not in by_hand:
        choices.append(Choice(keys.WARMUP, most, why))
    return choices


def _floor(number: float) -> float:
    """Return a positive number, rounded down to four digits."""
    unit = 10.0 ** (math.floor(math.log10(number)) - 3)
    return float(f"{math.floor(number / unit) * unit:.4g}")
