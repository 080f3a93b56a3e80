"""Training aids, each one function of one node under `train`; off unless a recipe wants it."""

import contextlib
import os
from collections.abc import Callable
from typing import Any

import torch
from detectron2.layers import NaiveSyncBatchNorm
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from d2ext._compat import set_size_divisibility
from d2ext.errors import UserError, config_errors


def make_deterministic() -> None:
    """`train.deterministic`: repeatable GPU kernels, also where that is slower.

    Where an operation has none, torch warns and the run goes on; the CPU repeats itself anyway.
    https://docs.pytorch.org/docs/stable/notes/randomness.html
    """
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # before the first multiplication
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.backends.cudnn.benchmark = False


def autocast(amp: Any, device: str) -> Callable[[], contextlib.AbstractContextManager]:
    """`train.amp`: the context for a forward pass in mixed precision, or one that does nothing."""
    if not amp.get("enabled", False):
        return contextlib.nullcontext
    dtype = getattr(torch, amp.get("dtype", "float16"))
    return lambda: torch.autocast(device, dtype=dtype)


def grad_scaler(amp: Any, device: str) -> torch.amp.GradScaler:
    """`train.amp`: scales losses against float16's underflow; bfloat16 needs none."""
    enabled = amp.get("enabled", False) and amp.get("dtype", "float16") == "float16"
    return torch.amp.GradScaler(device, enabled=enabled)


def averaged(model: nn.Module, decay: float) -> AveragedModel:
    """`train.ema_decay`: a copy whose weights follow as an exponential moving average.

    The decay grows with the number n of updates, min(decay, (1 + n) / (10 + n)), as TensorFlow's
    ExponentialMovingAverage has it, so that short runs do not keep their first weights. Buffers,
    such as BatchNorm's statistics, are copied.

    Args:
        model: with its initial weights.
        decay: of the average, above 0 and below 1.
    """

    def update(averages: list[Tensor], values: list[Tensor], n: Tensor) -> None:
        average = get_ema_multi_avg_fn(min(decay, (1 + int(n)) / (10 + int(n))))
        average(averages, values, n)

    return AveragedModel(model, multi_avg_fn=update).requires_grad_(False)


def with_sync_bn(model: nn.Module, device: str) -> nn.Module:
    """`train.sync_bn`: BatchNorm statistics over all ranks.

    Detectron2's own layer where the ranks are CPU processes, which torch's refuses.

    Raises:
        UserError: the model has no BatchNorm, or only frozen ones.
    """
    found = False
    for parent in list(model.modules()):
        for name, child in parent.named_children():
            found |= isinstance(child, NaiveSyncBatchNorm)  # as the model's own config has it
            # Exactly these: subclasses do more, as timm's, which carry the activation.
            if type(child) in (nn.BatchNorm2d, nn.SyncBatchNorm):
                found = True
                setattr(parent, name, _naive(child) if device == "cpu" else _sync(child))
    if not found:
        raise UserError(
            "train.sync_bn=true: the model has no BatchNorm to synchronise, or frozen ones only;"
            " choose norm=BN where the model's config has a norm, or train.sync_bn=false"
        )
    return model


def compile_backbone(model: nn.Module, options: Any) -> None:
    """`train.compile`: compiles the backbone in place, so the keys of its weights stay.

    Proposals and heads branch on the data, which a compiler cannot follow.

    Args:
        model: its `backbone`, or all of it where it has none.
        options: `enabled`; `size_divisibility`, to which multiple (pixels) images are padded, so
            that fewer shapes come up, each of which is compiled; and arguments of torch.compile.

    Raises:
        UserError: torch does not take them.
    """
    arguments = {k: v for k, v in options.items() if k not in ("enabled", "size_divisibility")}
    with config_errors("train.compile"):
        if multiple := options.get("size_divisibility"):
            if not set_size_divisibility(getattr(model, "backbone", None), multiple):
                raise UserError(
                    f"train.compile.size_divisibility={multiple}: this model's backbone is no FPN;"
                    " set it to null"
                )
        getattr(model, "backbone", model).compile(**arguments)


def _sync(norm: nn.BatchNorm2d | nn.SyncBatchNorm) -> nn.Module:
    return nn.SyncBatchNorm.convert_sync_batchnorm(norm)


def _naive(norm: nn.BatchNorm2d | nn.SyncBatchNorm) -> NaiveSyncBatchNorm:
    # Mode N: heads may see no proposal on some rank.
    new = NaiveSyncBatchNorm(norm.num_features, norm.eps, norm.momentum, stats_mode="N")
    for name in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked"):
        setattr(new, name, getattr(norm, name))  # shared with the optimizer, if it has them
    new.training = norm.training
    return new
