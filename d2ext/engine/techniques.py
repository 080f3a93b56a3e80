"""Training techniques, each a function of one section of `train`; off unless a recipe asks."""

import contextlib
import os
from collections.abc import Callable, Iterator

import torch
from detectron2.layers import NaiveSyncBatchNorm
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from d2ext._compat import set_size_divisibility
from d2ext.config.options import Amp, Compile
from d2ext.errors import UserError, config_errors

_WORKSPACE = "CUBLAS_WORKSPACE_CONFIG"


@contextlib.contextmanager
def deterministic(enabled: bool) -> Iterator[None]:
    """Choose repeatable GPU kernels in the block (`train.deterministic`), even if they are slower.

    If an operation has none, torch warns and the run continues; the CPU repeats itself anyway.
    https://docs.pytorch.org/docs/stable/notes/randomness.html
    """
    if not enabled:
        yield
        return
    before = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    benchmark = torch.backends.cudnn.benchmark
    workspace = os.environ.get(_WORKSPACE)
    os.environ.setdefault(_WORKSPACE, ":4096:8")  # before the first multiplication
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.backends.cudnn.benchmark = False
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before, warn_only=warn_only)
        torch.backends.cudnn.benchmark = benchmark
        if workspace is None:
            del os.environ[_WORKSPACE]


def autocast(amp: Amp, device: str) -> Callable[[], contextlib.AbstractContextManager]:
    """Return the context of a forward pass (`train.amp`): mixed precision, or none."""
    if not amp.enabled:
        return contextlib.nullcontext
    dtype = getattr(torch, amp.dtype)
    return lambda: torch.autocast(device, dtype=dtype)


def grad_scaler(amp: Amp, device: str) -> torch.amp.GradScaler:
    """Return the loss scaler against float16's underflow (`train.amp`); bfloat16 needs none."""
    return torch.amp.GradScaler(device, enabled=amp.enabled and amp.dtype == "float16")


def averaged(model: nn.Module, decay: float) -> AveragedModel:
    """Return a copy with the exponential moving average of the weights (`train.ema_decay`).

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
    """Compute BatchNorm statistics over all ranks (`train.sync_bn`).

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
            "train.sync_bn=true: the model has no BatchNorm to synchronize, or frozen ones only;"
            " choose norm=BN where the model's config has a norm, or train.sync_bn=false"
        )
    return model


def compile_backbone(model: nn.Module, options: Compile) -> None:
    """Compile the backbone in place (`train.compile`), so that its weights keep their keys.

    Proposals and heads branch on the data, which a compiler cannot follow.

    Args:
        model: its `backbone`, or all of it where it has none.
        options: `size_divisibility` is the multiple (pixels) to which images are padded, so that
            fewer shapes come up, each of which is compiled; the others are torch.compile's.

    Raises:
        UserError: torch does not take them.
    """
    with config_errors("train.compile"):
        if multiple := options.size_divisibility:
            if not set_size_divisibility(getattr(model, "backbone", None), multiple):
                raise UserError(
                    f"train.compile.size_divisibility={multiple}: this model's backbone is no FPN;"
                    " set it to null"
                )
        getattr(model, "backbone", model).compile(**options.arguments())


def _sync(norm: nn.BatchNorm2d | nn.SyncBatchNorm) -> nn.Module:
    return nn.SyncBatchNorm.convert_sync_batchnorm(norm)


def _naive(norm: nn.BatchNorm2d | nn.SyncBatchNorm) -> NaiveSyncBatchNorm:
    # Mode N: heads may see no proposal on some rank.
    new = NaiveSyncBatchNorm(norm.num_features, norm.eps, norm.momentum, stats_mode="N")
    for name in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked"):
        setattr(new, name, getattr(norm, name))  # shared with the optimizer, if it has them
    new.training = norm.training
    return new
