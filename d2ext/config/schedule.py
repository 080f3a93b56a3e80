"""Convert epochs to iterations."""

import math
import re
from dataclasses import dataclass
from fractions import Fraction

from d2ext.config.options import TrainOptions
from d2ext.errors import UserError


@dataclass(frozen=True)
class Period:
    """A period in iterations or in epochs; both 0 means never."""

    iterations: int = 0
    epochs: int = 0

    def due(self, iteration: int, schedule: "Schedule") -> bool:
        """Return whether a period ends after `iteration` iterations."""
        if self.epochs:
            before, after = schedule.epoch(iteration - 1), schedule.epoch(iteration)
            return after // self.epochs > before // self.epochs
        return self.iterations > 0 and iteration % self.iterations == 0


_LEAST_WARMUP = 10  # iterations


@dataclass(frozen=True)
class Schedule:
    """The length of a run and its periods, resolved against a dataset.

    Attributes:
        num_images: Images in the training set, after filtering.
        batch_size: Images per optimizer step over all ranks.
        max_iter: Optimizer steps of the run.
        warmup_iters: Steps of linear warm-up; None keeps the config's schedule as it is.
        in_epochs: Whether the run's length was given in epochs.
        eval_period: Period of the evaluations.
        checkpoint_period: Period of the checkpoints.
        log_period: Iterations between two lines of metrics.
        evaluates: Whether the run evaluates at all.
    """

    num_images: int
    batch_size: int
    max_iter: int
    warmup_iters: int | None
    in_epochs: bool
    eval_period: Period
    checkpoint_period: Period
    log_period: int = 20
    evaluates: bool = True

    def evaluation_due(self, iteration: int) -> bool:
        """Return whether the run evaluates after `iteration` iterations; always true at the end."""
        at_end = iteration == self.max_iter
        return self.evaluates and (at_end or self.eval_period.due(iteration, self))

    def checkpoint_due(self, iteration: int) -> bool:
        """Return whether a checkpoint is due after `iteration` iterations; always at the end."""
        return iteration == self.max_iter or self.checkpoint_period.due(iteration, self)

    def log_due(self, iteration: int) -> bool:
        """Return whether metrics are written after `iteration` iterations.

        Evaluations and the last iteration always have a line.
        """
        at_end = iteration == self.max_iter
        return iteration % self.log_period == 0 or at_end or self.evaluation_due(iteration)

    def epoch(self, iteration: int) -> int:
        """Return the number of complete epochs after `iteration` iterations."""
        return iteration * self.batch_size // self.num_images

    @property
    def epochs(self) -> float:
        """Return the length of the run in epochs."""
        return self.max_iter * self.batch_size / self.num_images


def resolve_schedule(
    train: TrainOptions,
    batch_size: int,
    num_images: int,
    warmup_fraction: float = 0.0,
    evaluates: bool = True,
) -> Schedule:
    """Convert the `train` section's epochs and periods to iterations.

    Args:
        train: Options, of which `max_epochs` or `max_iter`, `eval_period`, `checkpointer.period`,
            `warmup_iters` and `log_period` are read.
        batch_size: Images per optimizer step over all ranks.
        num_images: Images in the training set.
        warmup_fraction: Fraction of the run for warm-up if `warmup_iters` is None. Above a half, it
            is also the largest fraction that `warmup_iters` may take.
        evaluates: Whether the run evaluates at all.

    Raises:
        UserError: A length or period is not positive or cannot be read.
    """
    epochs, iterations = train.max_epochs, train.max_iter
    if (epochs is None) == (iterations is None):
        raise UserError("set exactly one of train.max_epochs and train.max_iter")
    for field, value in (("max_epochs", epochs), ("max_iter", iterations)):
        if value is not None and value <= 0:
            raise UserError(f"train.{field}={value}: a run needs a positive length")
    if iterations is None:
        # Exact fractions, because 0.1 epochs of 10 images must be one image, not two.
        iterations = math.ceil(Fraction(str(epochs)) * num_images / batch_size)
    warmup = train.warmup_iters
    if warmup is None and warmup_fraction > 0:
        warmup = max(round(warmup_fraction * iterations), _LEAST_WARMUP)
    if warmup is not None:
        if warmup < 0:
            raise UserError(f"train.warmup_iters={warmup} is negative")
        # Short runs have a shorter warm-up, but never start at the full rate.
        longest = max(iterations // 2, round(warmup_fraction * iterations), 1)
        warmup = min(warmup, longest)
    return Schedule(
        num_images,
        batch_size,
        iterations,
        warmup,
        epochs is not None,
        _period("train.eval_period", train.eval_period),
        _period("train.checkpointer.period", train.checkpointer.period),
        train.log_period,
        evaluates,
    )


def _period(field: str, value: int | str | None) -> Period:
    if value is None or isinstance(value, int) and value >= 0:
        return Period(iterations=value or 0)
    match = re.fullmatch(r"(\d+) ?epochs?", str(value).strip())
    if match and int(match[1]) > 0:
        return Period(epochs=int(match[1]))
    raise UserError(f'{field}={value!r}: give iterations (0 for never) or, say, "2 epochs"')
