"""Training techniques, one function per section of `train`; off unless a recipe enables them."""

import contextlib
import itertools
import logging
from collections.abc import Callable, Iterator, Sequence
from fnmatch import fnmatchcase
from typing import Any

import torch
from detectron2.layers import NaiveSyncBatchNorm
from detectron2.modeling.roi_heads import KRCNNConvDeconvUpsampleHead
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from d2ext._compat import set_size_divisibility
from d2ext.config.options import Amp, Compile
from d2ext.environment import environment_defaults
from d2ext.errors import UserError, config_errors
from d2ext.modeling.cpu.onednn import subsample_narrow_inputs
from d2ext.text import did_you_mean, plural, shortened

logger = logging.getLogger(__name__)

_BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
_WORKSPACE = {"CUBLAS_WORKSPACE_CONFIG": ":4096:8"}  # read at the first multiplication


@contextlib.contextmanager
def deterministic(enabled: bool) -> Iterator[None]:
    """Use deterministic GPU kernels in the block (`train.deterministic`), even if they are slower.

    If an operation has none, torch warns and the run continues; CPU kernels are deterministic
    anyway. https://docs.pytorch.org/docs/stable/notes/randomness.html
    """
    if not enabled:
        yield
        return
    before = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    benchmark = torch.backends.cudnn.benchmark
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.backends.cudnn.benchmark = False
    try:
        with environment_defaults(_WORKSPACE):
            yield
    finally:
        torch.use_deterministic_algorithms(before, warn_only=warn_only)
        torch.backends.cudnn.benchmark = benchmark


def autocast(amp: Amp, device: str) -> Callable[[], contextlib.AbstractContextManager]:
    """Return a function that returns the context of a forward pass (`train.amp`)."""
    if not amp.active(device):
        return contextlib.nullcontext
    dtype = getattr(torch, amp.dtype)
    return lambda: torch.autocast(device, dtype=dtype)


def grad_scaler(amp: Amp, device: str) -> torch.amp.GradScaler:
    """Return the loss scaler (`train.amp`), which is enabled only for float16."""
    return torch.amp.GradScaler(device, enabled=amp.active(device) and amp.dtype == "float16")


def averaged(model: nn.Module, decay: float) -> AveragedModel:
    """Return a copy with the exponential moving average of the weights (`train.ema_decay`).

    The decay grows with the number n of updates, min(decay, (1 + n) / (10 + n)), as in TensorFlow's
    ExponentialMovingAverage, so that the initial weights do not dominate short runs. Buffers, such
    as BatchNorm's statistics, are copied.

    Args:
        model: Model with its initial weights.
        decay: Decay of the average, above 0 and below 1.
    """

    def update(averages: list[Tensor], values: list[Tensor], n: Tensor) -> None:
        average = get_ema_multi_avg_fn(min(decay, (1 + int(n)) / (10 + int(n))))
        average(averages, values, n)

    return AveragedModel(model, multi_avg_fn=update).requires_grad_(False)


def with_sync_bn(model: nn.Module, device: str) -> nn.Module:
    """Compute BatchNorm statistics over all ranks (`train.sync_bn`).

    On CPUs, which torch's layer does not support, Detectron2's layer is used.

    Raises:
        UserError: The model has no BatchNorm, or only frozen layers.
    """
    found = any(isinstance(child, NaiveSyncBatchNorm) for child in model.modules())
    # Exact types only: subclasses do more, such as timm's, which include the activation.
    norms = (nn.BatchNorm2d, nn.SyncBatchNorm)
    found |= _replace(model, norms, _naive if device == "cpu" else _sync)
    if not found:
        raise UserError(
            "train.sync_bn=true: the model has no BatchNorm to synchronize, or only frozen layers;"
            " set norm=BN in the model's config, or train.sync_bn=false"
        )
    return model


def use_cpu_sync_bn(model: nn.Module) -> bool:
    """Replace torch's SyncBatchNorm, which needs a GPU, in place; return whether there was one."""
    return _replace(model, (nn.SyncBatchNorm,), _naive)


def _replace(model: nn.Module, types: tuple[type, ...], new: Callable[[Any], nn.Module]) -> bool:
    """Replace all modules of exactly these types; return whether there were any."""
    found = False
    for parent in list(model.modules()):
        for name, child in parent.named_children():
            if type(child) in types:
                found = True
                setattr(parent, name, new(child))
    return found


def use_channels_last(model: nn.Module) -> None:
    """Store a model's weights in the channels_last layout, in place (`train.channels_last`).

    Detectron2's keypoint loss requires a contiguous view of the logits.
    """
    model.to(memory_format=torch.channels_last)
    if all(parameter.device.type == "cpu" for parameter in model.parameters()):
        subsample_narrow_inputs(model)
    for module in model.modules():
        if isinstance(module, KRCNNConvDeconvUpsampleHead):
            module.score_lowres.register_forward_hook(_contiguous)


def freeze(model: nn.Module, patterns: Sequence[str]) -> None:
    """Exclude parts of a model from training (`train.freeze`), and log what is left.

    BatchNorm layers in these parts normalize with their stored statistics, which do not change.

    Args:
        model: Model, changed in place; call this before building the optimizer.
        patterns: Names of parameters, or of modules for all parameters in them; `*` matches any
            characters.

    Raises:
        UserError: A pattern matches no parameter, or no parameter is left to train.
    """
    if not patterns:
        return
    parameters = dict(model.named_parameters())
    for pattern in patterns:
        matched = {name: path for name in parameters if (path := _matched(name, pattern))}
        if not matched:
            paths = {path for name in parameters for path in _paths(name)}
            parts = shortened([name for name, _ in model.named_children()], 8)
            hint = did_you_mean(pattern, sorted(paths), f"its parts are {parts}")
            raise UserError(f"train.freeze: the model has no parameters in {pattern!r}; {hint}")
        for name in matched:
            parameters[name].requires_grad_(False)
        logger.info(
            "Frozen by train.freeze=[%s]: %s (%s)",
            pattern,
            shortened(list(dict.fromkeys(matched.values())), 8),
            plural(len(matched), "tensor"),
        )
    for name, module in model.named_modules():
        trains = any(p.requires_grad for p in module.parameters(recurse=False))
        named = any(_matched(f"{name}.weight", pattern) for pattern in patterns)
        if isinstance(module, _BATCH_NORMS) and named and not trains:
            module.register_forward_pre_hook(_use_statistics)
    numbers = [p.numel() for p in parameters.values() if p.requires_grad]
    if not numbers:
        raise UserError(f"train.freeze={list(patterns)} leaves no parameter to train; freeze less")
    total = sum(p.numel() for p in parameters.values())
    logger.info(
        "%.1f of the model's %.1f million parameters train", sum(numbers) / 1e6, total / 1e6
    )


def compile_backbone(model: nn.Module, options: Compile) -> None:
    """Compile the backbone in place (`train.compile`), so that its weights keep their keys.

    Proposals and heads branch on the data, which prevents compilation.

    Args:
        model: Model whose `backbone` is compiled; without one, the entire model is.
        options: Arguments of `torch.compile`, and `size_divisibility`, the multiple (in pixels) to
            which images are padded, so that fewer shapes have to be compiled.

    Raises:
        UserError: torch rejects the arguments, or the backbone does not support
            `size_divisibility`.
    """
    with config_errors("train.compile"):
        if multiple := options.size_divisibility:
            if not set_size_divisibility(getattr(model, "backbone", None), multiple):
                raise UserError(
                    f"train.compile.size_divisibility={multiple}: this model's backbone is not an"
                    " FPN; set it to null"
                )
        getattr(model, "backbone", model).compile(**options.arguments())


def _paths(name: str) -> Iterator[str]:
    """Yield the paths of all modules that a parameter is in, then its own name."""
    yield from itertools.accumulate(name.split("."), "{}.{}".format)


def _matched(name: str, pattern: str) -> str | None:
    """Return the shortest path of a parameter that matches a pattern, or None."""
    return next((path for path in _paths(name) if fnmatchcase(path, pattern)), None)


def _use_statistics(norm: nn.Module, inputs: tuple) -> None:
    """Put a frozen norm into evaluation mode, which training the model around it undoes."""
    norm.eval()


def _contiguous(layer: nn.Module, inputs: tuple, output: Tensor) -> Tensor:
    return output.contiguous()


def _sync(norm: nn.BatchNorm2d | nn.SyncBatchNorm) -> nn.Module:
    return nn.SyncBatchNorm.convert_sync_batchnorm(norm)


def _naive(norm: nn.BatchNorm2d | nn.SyncBatchNorm) -> NaiveSyncBatchNorm:
    # Mode N weights ranks by batch size; a rank's heads may get no proposals.
    new = NaiveSyncBatchNorm(norm.num_features, norm.eps, norm.momentum, stats_mode="N")
    for name in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked"):
        setattr(new, name, getattr(norm, name))  # the optimizer may hold these tensors
    new.training = norm.training
    return new
