"""Build the state of training from the config, and load and save it in checkpoints."""

import logging
from dataclasses import dataclass, field
from typing import Any

import torch
from detectron2.modeling.meta_arch.dense_detector import DenseDetector
from detectron2.utils import comm
from torch import nn
from torch.optim import Optimizer
from torch.optim.swa_utils import AveragedModel

from d2ext.checkpoint import files as ckpt
from d2ext.checkpoint.weights.initial import load_weights
from d2ext.config.options import TrainOptions
from d2ext.engine.builders import build_model, build_optimizer
from d2ext.engine.losses import LossNormalizer
from d2ext.engine.techniques import averaged, grad_scaler
from d2ext.errors import UserError
from d2ext.launch.collectives import broadcast_from_rank0, broadcast_weights
from d2ext.preflight.plan import Plan
from d2ext.run_dir.names import saved_config_hint

logger = logging.getLogger(__name__)

_TENSORS = ("model", "optimizer", "ema")  # entries of a checkpoint


@dataclass
class TrainState:
    """Model, optimizer, loss scaler and averaged weights.

    Attributes:
        model: Model, unwrapped.
        optimizer: Optimizer of the model's parameters.
        scaler: Loss scaler; it does nothing unless it is enabled.
        average: Averaged weights, or None.
        normalizer: Loss normalizer of RetinaNet or FCOS; None for other models.
        start_iter: First iteration to train.
        checkpoint_iter: The same position in iterations of the resumed checkpoint, whose batch size
            may differ.
        resumed: Content of the resumed checkpoint without the tensors; empty for a fresh start.
    """

    model: nn.Module
    optimizer: Optimizer
    scaler: torch.amp.GradScaler
    average: AveragedModel | None
    normalizer: LossNormalizer | None = None
    start_iter: int = 0
    checkpoint_iter: int = 0
    resumed: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def create(cls, cfg: Any, plan: Plan) -> "TrainState":
        """Build the state and load the plan's initial weights or checkpoint.

        Args:
            cfg: Config with the values of this run's world size.
            plan: Plan returned by `plan_run`.

        Raises:
            UserError: A part cannot be built or loaded.
        """
        options = TrainOptions.from_config(cfg.train)
        model = build_model(cfg, plan)
        optimizer = build_optimizer(cfg, model)
        scaler = grad_scaler(options.amp, plan.device)
        start = 0
        if plan.resume:
            content = broadcast_from_rank0(lambda: ckpt.read_checkpoint(plan.resume))
            start = _resume(model, optimizer, scaler, content, plan)
            _warn_of_layout(content, options.accumulate)
        else:
            content = {}
            if plan.weights:
                broadcast_from_rank0(
                    lambda: load_weights(
                        model,
                        plan.weights,
                        classes=plan.classes,
                        order=options.init_checkpoint_classes,
                    )
                )
            broadcast_weights(model)
        average = averaged(model, options.ema_decay) if options.ema_decay else None
        if average and "ema" in content:
            _check_fit(average.module, content["ema"], plan)
            average.module.load_state_dict(content["ema"])
            average.n_averaged.fill_(content["ema_updates"])
        elif average and start:
            logger.info(
                "The checkpoint has no averaged weights; the average starts from its weights"
            )
        dense = isinstance(model, DenseDetector)
        normalizer = LossNormalizer(model, content.get("loss_normalizer")) if dense else None
        rest = {key: value for key, value in content.items() if key not in _TENSORS}
        done = rest.get("iterations_done", 0)
        return cls(model, optimizer, scaler, average, normalizer, start, done, rest)

    @property
    def evaluated(self) -> nn.Module:
        """Return the model to evaluate: the one with the averaged weights, if there is one."""
        return self.average.module if self.average else self.model

    def content(self, iteration: int, batch_size: int, accumulate: int = 1) -> dict[str, Any]:
        """Return a checkpoint after `iteration` iterations, as tensors and plain types only."""
        content = {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "optimizer_type": type(self.optimizer).__name__,
            "iterations_done": iteration,
            "images_seen": iteration * batch_size,
            "world_size": comm.get_world_size(),
            "accumulate": accumulate,
        }
        if self.average:
            content["ema"] = self.average.module.state_dict()
            content["ema_updates"] = int(self.average.n_averaged)
        if self.normalizer:
            content["loss_normalizer"] = self.normalizer.value
        if self.scaler.is_enabled():
            content["scaler"] = self.scaler.state_dict()
        return content

    def nbytes(self) -> int:
        """Return an upper bound of a checkpoint's size in bytes, with two optimizer moments."""
        tensors = self.model.state_dict().values()
        return (4 if self.average else 3) * sum(t.numel() * t.element_size() for t in tensors)


def _resume(
    model: nn.Module,
    optimizer: Optimizer,
    scaler: torch.amp.GradScaler,
    content: dict[str, Any],
    plan: Plan,
) -> int:
    """Load a checkpoint and return the iteration to resume at, in steps of this batch size."""
    settings = [
        {k: v for k, v in group.items() if k != "params"} for group in optimizer.param_groups
    ]
    _check_fit(model, content["model"], plan)
    model.load_state_dict(content["model"])
    try:
        if (theirs := content.get("optimizer_type")) != type(optimizer).__name__:
            raise ValueError(f"its optimizer is {theirs}, not {type(optimizer).__name__}")
        load_optimizer(optimizer, content["optimizer"])
    except (KeyError, RuntimeError, ValueError) as e:
        raise UserError(_does_not_fit(plan, str(e).splitlines()[0])) from e
    # The config's rates and decays win over the stored ones.
    for group, mine in zip(optimizer.param_groups, settings, strict=True):
        group.update(mine)
    if scaler.is_enabled() and "scaler" in content:
        scaler.load_state_dict(content["scaler"])
    batch = plan.schedule.batch_size
    start = content["images_seen"] // batch
    before = content["images_seen"] // max(content["iterations_done"], 1)
    workers, now = content.get("world_size"), comm.get_world_size()
    changes = []
    if before != batch:
        changes.append(f"{before} images per step before, {batch} now")
    if workers not in (None, now):
        same = "; images and order stay the same" if before == batch else ""
        changes.append(f"world size {workers} before, {now} now{same}")
    change = f" ({'; '.join(changes)})" if changes else ""
    logger.info("Resumed %s; continues at iteration %d%s", plan.resume, start, change)
    return start


def load_optimizer(optimizer: Optimizer, content: dict[str, Any]) -> None:
    """Load an optimizer's state in the memory layout of its parameters.

    `Optimizer.load_state_dict` keeps the strides that tensors had when they were saved, but torch's
    fused kernels ignore strides: if only one side uses `channels_last`, they mix up elements.

    Args:
        optimizer: Optimizer of the model to train.
        content: State dict of the same kind of optimizer.

    Raises:
        KeyError, RuntimeError, ValueError: The state does not fit the optimizer.
    """
    # Loading replaces these flags by those of the run that saved the state.
    on_device = [g.get("fused") or g.get("capturable") for g in optimizer.param_groups]
    optimizer.load_state_dict(content)
    for group, counts_there in zip(optimizer.param_groups, on_device, strict=True):
        for parameter in group["params"]:
            state = optimizer.state.get(parameter, {})
            for name, value in state.items():
                if not torch.is_tensor(value):
                    continue
                if name == "step":
                    state[name] = value.to(parameter.device if counts_there else "cpu")
                elif value.shape == parameter.shape and value.stride() != parameter.stride():
                    state[name] = torch.empty_like(
                        parameter, dtype=value.dtype, device=value.device, requires_grad=False
                    ).copy_(value)


def _warn_of_layout(content: dict[str, Any], accumulate: int) -> None:
    """Warn if the number of micro-batches per step changed, because each samples proposals."""
    before = content.get("world_size", 1) * content.get("accumulate", 1)
    if before != (now := comm.get_world_size() * accumulate):
        logger.warning(
            "The micro-batches per step (processes x train.accumulate) changed since the"
            " checkpoint: %d before, %d now; the run does not continue exactly",
            before,
            now,
        )


def _check_fit(model: nn.Module, theirs: dict[str, torch.Tensor], plan: Plan) -> None:
    """Raise a UserError if tensors are missing on either side or differ in shape."""
    mine = model.state_dict()
    shapes = [
        f"{key} is {_shape(theirs[key])} in the file and {_shape(mine[key])} in the model"
        for key in mine.keys() & theirs.keys()
        if mine[key].shape != theirs[key].shape
    ]
    found = [
        f"{len(names)} tensors {words}, {sorted(names)[0]} the first"
        for names, words in (
            (mine.keys() - theirs.keys(), "are missing from the file"),
            (theirs.keys() - mine.keys(), "are not in the model"),
        )
        if names
    ]
    more = [f"{len(shapes) - 2} more differ in shape"] if len(shapes) > 2 else []
    if shapes or found:
        raise UserError(_does_not_fit(plan, "; ".join([*sorted(shapes)[:2], *more, *found])))


def _does_not_fit(plan: Plan, reason: str) -> str:
    assert plan.resume
    return (
        f"{plan.resume} does not fit this config ({reason}); resume with the model and optimizer"
        " that it was trained with, or load only its weights with train.init_checkpoint"
        + saved_config_hint("train", plan.resume, "--resume")
    )


def _shape(tensor: torch.Tensor) -> str:
    return " x ".join(map(str, tensor.shape)) or "a number"
