"""Scale a recipe from the workers it was tuned for to those of a run: `--auto-scale-lr`.

A worker is one process (one GPU); a batch is the images of one optimizer step, over all workers and
micro-batches. A recipe states the R workers (`train.reference_world_size`) and the batch of B
images (`train.reference_batch_size`) for which its learning rate was tuned.
"""

import copy
import functools
import math
import operator
import re
from collections.abc import Iterable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import msgspec
from omegaconf import DictConfig, ListConfig, OmegaConf

from d2ext.config.options import TrainOptions
from d2ext.errors import UserError
from d2ext.text import plural

_BATCH = "dataloader.train.total_batch_size"
# Optimizers that divide by a running mean of squared gradients, by name (AdamW, NAdam, ...).
_ADAPTIVE = re.compile("adam|adagrad|adafactor|rmsprop|lamb", re.IGNORECASE)
_FieldPath = tuple[str | int, ...]
_Plan = dict[_FieldPath, tuple[Any, Any]]  # field: (before, after)


class Change(msgspec.Struct, frozen=True):
    """A field of the config that `scale_config` changed.

    Attributes:
        field: Dotted name.
        before: Value in the recipe.
        after: Value in the scaled config.
    """

    field: str
    before: Any
    after: Any


class ScalingReport(msgspec.Struct, frozen=True):
    """Changes made by `scale_config`; also the content of scaling.json in a run directory.

    Attributes:
        reference_world_size: R, the workers that the recipe was tuned for.
        reference_batch_size: B, the batch that the recipe was tuned for.
        world_size: W, the workers of the run.
        batch_size: A, the images per optimizer step.
        rule: `linear` or `sqrt`.
        scale: s = A/B, the divisor of iteration counts.
        lr_factor: s or sqrt(s), the factor for learning rates.
        changes: Every field that changed; empty if s is 1 or the config was scaled before.
        warnings: Warnings, one line each.
    """

    reference_world_size: int
    reference_batch_size: int
    world_size: int
    batch_size: int
    rule: str
    scale: float
    lr_factor: float
    changes: tuple[Change, ...]
    warnings: tuple[str, ...]

    def lines(self) -> list[str]:
        """Return the report for a terminal; one line if nothing changed."""
        now = f"{plural(self.world_size, 'worker')}, {plural(self.batch_size, 'image')} per step"
        tuned = f"{plural(self.reference_world_size, 'worker')}, {self.reference_batch_size}"
        if self.scale == 1:
            return [f"scaling     none: {now} is the batch that the recipe was tuned for ({tuned})"]
        if not self.changes:
            return [f"scaling     none: the config is already scaled for {now}"]
        return [
            f"scaling     {now}; the recipe was tuned for {tuned}: learning rates x"
            f" {self.lr_factor:.4g} ({self.rule})",
            *(f"            {c.field} {_text(c.before)} -> {_text(c.after)}" for c in self.changes),
            *(f"            warning: {warning}" for warning in self.warnings),
        ]


def scale_config(cfg: Any, world_size: int) -> tuple[Any, ScalingReport]:
    """Return a recipe scaled to `world_size` workers, and a report; the input does not change.

    The batch becomes A = W*B/R, so that each worker keeps its number of images, unless the user set
    `dataloader.train.total_batch_size` (in a recipe it is an interpolation of B, so a number comes
    from the user). With s = A/B:

    - Learning rates (`lr` and `*_lr` under `optimizer`, including those of single parameters) are
      multiplied by s (`linear`, Goyal et al. 2017, for SGD) or sqrt(s) (`sqrt`, Malladi et al.
      2022, for the Adam family). `train.auto_scale_lr.rule` selects the rule; None chooses it by
      the optimizer. Factors of a rate (`bias_lr_factor`, `lr_factor_func`) scale with their rate.
    - `train.max_iter`, `train.eval_period` and `train.checkpointer.period`, if they count
      iterations, are divided by s and rounded up: the run does not see fewer images than before,
      and a period never becomes 0, which would mean never. Values in epochs do not change.
    - Milestones of the schedule are relative to its end (fvcore's schedulers are scale-invariant)
      and do not change, unless that end is `train.max_iter`: then they count iterations and are
      divided by s.
    - Warm-up keeps its number of iterations. `train.warmup_iters` counts iterations; for a config
      without it, Detectron2's fraction of the run (`lr_multiplier.warmup_length`) is adjusted, up
      to half of the run.

    The scaled config records W in `train.auto_scale_lr.scaled_for`, so that scaling it again
    changes nothing. A run saves the unscaled config, which does not contain the record.

    Args:
        cfg: Config returned by `load_config`.
        world_size: W, the number of processes on all machines together.

    Raises:
        UserError: R or B is missing or invalid, the batch does not divide among the workers and
            their micro-batches (`train.accumulate`), the rule is unknown, a learning rate is not a
            number, or the config was scaled for another W.
    """
    reference_world_size = _reference(cfg.train, "reference_world_size", "workers")
    reference_batch = _reference(cfg.train, "reference_batch_size", "images per step")
    scaled_for = OmegaConf.select(cfg, "train.auto_scale_lr.scaled_for")
    if scaled_for not in (None, world_size):
        raise UserError(
            f"the config is already scaled for {plural(scaled_for, 'worker')}, not {world_size}"
            " (train.auto_scale_lr.scaled_for); start from the unscaled config"
        )
    options = TrainOptions.from_config(cfg.train)
    batch = _batch_size(cfg, options, world_size, reference_world_size, reference_batch)
    scale = Fraction(batch, reference_batch)
    rule, warnings = _rule(cfg, options)
    lr_factor = float(scale) if rule == "linear" else math.sqrt(scale)

    scaled = copy.deepcopy(cfg)
    plan: _Plan = {}
    if scaled_for is None and scale != 1:
        before = cfg.dataloader.train.total_batch_size
        plan = {tuple(_BATCH.split(".")): (before, batch)}
        plan |= _learning_rates(cfg.optimizer, lr_factor) | _iterations(cfg, scale)
        plan |= _milestones(cfg, options, scale)
        plan |= _warmup(cfg, options, scale)
        _write(scaled, plan)
        OmegaConf.update(scaled, "train.auto_scale_lr.scaled_for", world_size, force_add=True)
    changes = [Change(".".join(map(str, f)), before, after) for f, (before, after) in plan.items()]
    return scaled, ScalingReport(
        reference_world_size=reference_world_size,
        reference_batch_size=reference_batch,
        world_size=world_size,
        batch_size=batch,
        rule=rule,
        scale=float(scale),
        lr_factor=lr_factor,
        changes=tuple(c for c in changes if c.before != c.after),
        warnings=warnings if scale != 1 else (),
    )


def check_batch(batch_size: int | Fraction, world_size: int, accumulate: int = 1) -> None:
    """Raise UserError unless a batch divides among workers and their micro-batches."""
    if not isinstance(accumulate, int) or accumulate < 1:
        raise UserError(f"train.accumulate={accumulate!r}: give 1 or more micro-batches")
    if batch_size <= 0:
        raise UserError(f"{_BATCH}={batch_size}: give 1 or more")
    unit = world_size * accumulate
    below = batch_size // unit * unit
    if batch_size != below:
        parts = plural(world_size, "worker")
        if accumulate > 1:
            parts += f" with {accumulate} micro-batches (train.accumulate) each"
        nearest = " or ".join(str(n) for n in (below, below + unit) if n)
        raise UserError(
            f"a batch of {float(batch_size):.6g} images does not divide among {parts};"
            f" the nearest that does: {_BATCH}={nearest}"
        )


def check_name(config_name: str, reference_world_size: int, reference_batch_size: int) -> None:
    """Raise UserError if a recipe's name has `_NxM_`, N workers of M images, and R or B differ.

    `_32x4d_` is a ResNeXt width; names without `_NxM_` are not checked.
    """
    match = re.search(r"_(\d+)x(\d+)(?=_|$)", Path(config_name).name.removesuffix(".py"))
    if not match:
        return
    workers, images = map(int, match.groups())
    if (workers, workers * images) != (reference_world_size, reference_batch_size):
        raise UserError(
            f"the name {config_name} means {workers} workers with {images} images each; set"
            f" train.reference_world_size={workers} (not {reference_world_size}) and"
            f" train.reference_batch_size={workers * images} (not {reference_batch_size})"
        )


def _reference(train: Any, name: str, unit: str) -> int:
    value = getattr(TrainOptions.from_config(train), name)
    if value is None:
        plus = "" if name in train else "+"
        raise UserError(
            f"train.{name} is not set: train.auto_scale_lr needs the {unit} that the learning rate"
            f" was tuned for; give {plus}train.{name}=N"
        )
    if not isinstance(value, int) or value < 1:
        raise UserError(f"train.{name}={value!r}: give the number of {unit}, 1 or more")
    return value


def _batch_size(
    cfg: Any,
    options: TrainOptions,
    world_size: int,
    reference_world_size: int,
    reference_batch: int,
) -> int:
    loader = cfg.dataloader.train
    batch = loader.get("total_batch_size")
    if not isinstance(batch, int):
        raise UserError(f"{_BATCH}={batch!r}: give a number of images")
    if OmegaConf.is_interpolation(loader, "total_batch_size") and batch == reference_batch:
        batch = Fraction(world_size * reference_batch, reference_world_size)
    check_batch(batch, world_size, options.accumulate)
    return int(batch)


def _rule(cfg: Any, options: TrainOptions) -> tuple[str, tuple[str, ...]]:
    name = _optimizer_name(cfg.optimizer)
    suits = "sqrt" if is_adaptive(cfg.optimizer) else "linear"
    rule = options.auto_scale_lr.rule or suits
    if rule not in ("linear", "sqrt"):
        raise UserError(f"train.auto_scale_lr.rule={rule!r}: give linear or sqrt")
    warning = f"train.auto_scale_lr.rule={rule} with {name}: {suits} suits it better"
    return rule, (warning,) if rule != suits else ()


def is_adaptive(optimizer: Any) -> bool:
    """Return whether the optimizer of a config belongs to the Adam family."""
    return bool(_ADAPTIVE.search(_optimizer_name(optimizer)))


def _optimizer_name(optimizer: Any) -> str:
    target = optimizer.get("_target_", "")
    return getattr(target, "__name__", str(target)).rpartition(".")[2]


def _learning_rates(optimizer: Any, factor: float) -> _Plan:
    plan = {}
    for path, node in _fields(optimizer, ("optimizer",)):
        if path[-1] != "lr" and not str(path[-1]).endswith("_lr"):
            continue
        rate = node[path[-1]]
        if isinstance(rate, (int, float)):
            plan[path] = (rate, rate * factor)
        elif rate is not None:
            raise UserError(
                f"{'.'.join(map(str, path))}={rate!r}: train.auto_scale_lr can only scale a number"
            )
    if not plan:
        raise UserError("optimizer.lr is not set: train.auto_scale_lr has no rate to scale")
    return plan


def _iterations(cfg: Any, scale: Fraction) -> _Plan:
    plan: _Plan = {}
    for field in ("train.max_iter", "train.eval_period", "train.checkpointer.period"):
        value = OmegaConf.select(cfg, field)
        if isinstance(value, (int, float)) and value > 0:
            plan[tuple(field.split("."))] = (value, math.ceil(value / scale))
    return plan


def _milestones(cfg: Any, options: TrainOptions, scale: Fraction) -> _Plan:
    plan = {}
    for path, node in _fields(cfg.get("lr_multiplier"), ("lr_multiplier",)):
        if path[-1] != "milestones" or not node.milestones:
            continue
        before, end = list(node.milestones), node.get("num_updates")
        steps = before if end is None else [*before, end]
        if steps[-1] != options.max_iter:
            continue
        after = [math.ceil(step / scale) for step in steps]
        if len(set(after)) < len(after):
            # The run is too short to keep the steps distinct. The unscaled numbers mean the same,
            # but must be written, because an interpolation of train.max_iter would change.
            after = steps
        plan[path] = (before, after[: len(before)])
        if end is not None:
            plan[*path[:-1], "num_updates"] = (end, after[-1])
    return plan


def _warmup(cfg: Any, options: TrainOptions, scale: Fraction) -> _Plan:
    fraction = (cfg.get("lr_multiplier") or {}).get("warmup_length")
    if options.warmup_iters is not None or not fraction:
        return {}
    # A run with a length in epochs has s times fewer iterations.
    before, after = _iterations(cfg, scale).get(("train", "max_iter"), (scale, 1))
    length = min(fraction * float(before / after), max(fraction, 0.5))
    return {("lr_multiplier", "warmup_length"): (fraction, length)}


def _fields(node: Any, path: _FieldPath) -> Iterator[tuple[_FieldPath, Any]]:
    """Yield (path, parent) of every field below a node, without following interpolations."""
    if not isinstance(node, (DictConfig, ListConfig)):
        return
    keys: Iterable[Any] = node.keys() if isinstance(node, DictConfig) else range(len(node))
    for key in keys:
        yield (*path, key), node
        if not OmegaConf.is_interpolation(node, key):
            yield from _fields(node[key], (*path, key))


def _write(cfg: Any, plan: _Plan) -> None:
    """Set plain fields first, then interpolations that do not have the new value yet."""
    for interpolations in (False, True):
        for (*parents, last), (_, value) in plan.items():
            node = functools.reduce(operator.getitem, parents, cfg)
            if OmegaConf.is_interpolation(node, last) == interpolations and node[last] != value:
                node[last] = value


def _text(value: Any) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)
