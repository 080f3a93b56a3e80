"""Find options that contradict one another before anything is built."""

import contextlib
import importlib.util
import inspect
import logging
import shutil
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from detectron2.config import instantiate
from detectron2.engine import HookBase
from detectron2.utils.events import EventWriter
from detectron2.utils.registry import locate

from d2ext.config.options import WRITERS, TrainOptions
from d2ext.config.schedule import Schedule
from d2ext.errors import UserError, config_errors, format_exception
from d2ext.evaluation.metric import check_metric
from d2ext.evaluation.suite import metrics_of

logger = logging.getLogger(__name__)

_HOOK = "a hook; give a class derived from detectron2.engine.HookBase"
_WRITER = "a writer; give a class derived from detectron2.utils.events.EventWriter"


def check_flags(
    eval_only: bool, weights: str | None, resume: bool, resume_from: str | None, overwrite: bool
) -> None:
    """Raise a UserError if flags of the command contradict one another."""
    if weights and not eval_only:
        raise UserError(
            "--weights goes with --eval-only; train.init_checkpoint=... starts training"
        )
    if resume and (resume_from or overwrite):
        raise UserError(
            "--resume goes with neither --resume-from nor --overwrite; give one of them"
        )


def check_options(
    cfg: Any,
    options: TrainOptions,
    device: str,
    validate: bool,
    eval_only: bool,
    tta: bool,
    expect: Sequence[str],
) -> None:
    """Check what needs no data: precision, compiler, early stopping, hooks, writers, flags.

    Raises:
        UserError: Two options contradict each other; the message names both.
    """
    if expect and not validate and not eval_only:
        raise UserError("--expect needs the evaluation that --no-validate leaves out")
    if tta and not eval_only:
        raise UserError("--tta goes with --eval-only")
    if tta and not cfg.dataloader.get("tta"):
        raise UserError("--tta: the config has no dataloader.tta with min_sizes, max_size, flip")
    if eval_only:
        return
    follows = "nccl" if device == "cuda" else "gloo"
    if (backend := options.dist.backend or follows) != follows:
        logger.warning("train.dist.backend=%s: on this device it is %s", backend, follows)
    if options.amp.enabled and device == "cpu" and options.amp.dtype != "bfloat16":
        raise UserError(
            "train.amp: float16 needs a GPU, and this run is on the CPU; give"
            " train.amp.dtype=bfloat16 or train.amp.enabled=false"
        )
    if options.compile.enabled:
        _check_compiler(options.compile.backend, device)
    if options.early_stopping_patience:
        field = "train.early_stopping_patience"
        if not validate:
            raise UserError(f"{field} needs evaluations, which --no-validate leaves out")
        if not options.best.metric:
            raise UserError(f"{field} needs train.best.metric, the result that is to improve")
    for i, entry in enumerate(options.hooks):
        _check_call(f"train.hooks[{i}]", entry, HookBase, _HOOK)
    for i, entry in enumerate(options.writers):
        field = f"train.writers[{i}]"
        target = _check_call(field, writer_call(entry, ""), EventWriter, _WRITER)
        package = getattr(target, "PACKAGE", None)
        if package and importlib.util.find_spec(package) is None:
            raise UserError(f"{field} needs {package}: pip install 'd2ext[{package}]'")


def writer_call(entry: Any, output_dir: str) -> dict[str, Any]:
    """Return an entry of `train.writers` as a lazy call.

    A parameter `output_dir` or `log_dir` that the entry does not give receives `output_dir`.
    """
    call = {"_target_": WRITERS[entry]} if isinstance(entry, str) else {**entry}
    target = call["_target_"]
    with contextlib.suppress(Exception):  # `_check_call` reports what cannot be imported
        target = locate(target) if isinstance(target, str) else target
        for name in {"output_dir", "log_dir"} & inspect.signature(target).parameters.keys():
            call.setdefault(name, output_dir)
    return call


def _check_call(field: str, entry: Mapping[str, Any], base: type, wanted: str) -> Any:
    """Check a lazy call and return its target; build nothing, as hooks and writers open files.

    Args:
        field: Place of the entry in the config.
        entry: The lazy call.
        base: Class that the result must be an instance of.
        wanted: What messages say that the result must be.

    Raises:
        UserError: The target cannot be imported, is another class, or does not take the arguments.
    """
    arguments = {str(key): value for key, value in entry.items()}
    target = arguments.pop("_target_")
    if isinstance(target, str):
        target = _located(field, target)
    name = getattr(target, "__qualname__", str(target))
    if not callable(target) or inspect.isclass(target) and not issubclass(target, base):
        raise UserError(f"{field}: {name} is not {wanted}")
    try:
        signature = inspect.signature(target)
    except ValueError:  # some callables that are written in C have none
        return target
    try:
        signature.bind(**arguments)
    except TypeError as e:
        raise UserError(f"{field} cannot be built: {name}: {e}") from e
    return target


def _located(field: str, target: str) -> Any:
    try:
        return locate(target)
    except Exception as e:  # importing a module runs its code
        raise UserError(
            f"{field}._target_={target} cannot be imported ({format_exception(e)}); is its folder"
            " on PYTHONPATH?"
        ) from e


def check_schedule(options: TrainOptions, schedule: Schedule) -> None:
    """Raise a UserError if early stopping would meet a single evaluation at the end."""
    period = schedule.eval_period
    if options.early_stopping_patience and not (period.epochs or period.iterations):
        raise UserError(
            "train.early_stopping_patience needs periodic evaluations; train.eval_period=0 leaves"
            " only the one at the end"
        )


def check_metrics(
    evaluators: Mapping[str, Any], wanted: Mapping[str, str], sets: Mapping[str, Any]
) -> None:
    """Check the metrics, and that they will give the results that options refer to.

    Args:
        evaluators: The config's section.
        wanted: An option to the key of a result.
        sets: Test set to `(class names, whether it has masks)`.

    Raises:
        UserError: A metric's arguments are wrong, it does not fit a test set, or there is no such
            result; the message names others.
    """
    keys: set[str] = set()
    open_ended = []  # metrics that do not say what they will return
    for name, metrics in metrics_of(evaluators, list(sets)).items():
        classes, masks = sets[name]
        for metric, settings in metrics.items():
            with config_errors(f"evaluators.{metric}"):
                made = instantiate(settings)
                check_metric(f"evaluators.{metric}", made)
                known = made.keys(classes, masks) if hasattr(made, "keys") else None
            if known is None:
                open_ended.append(f"{name}/{metric}/")
            else:
                keys |= {f"{name}/{metric}/{key}" for key in known}
    for setting, key in wanted.items():
        if key not in keys and not key.startswith(tuple(open_ended)):
            main = sorted(k for k in keys if k.endswith("/AP")) or open_ended
            raise UserError(
                f"{setting}: no evaluation gives {key}; there will be, among others,"
                f" {', '.join(main)}"
            )


def best_metric(options: TrainOptions, tested: Sequence[str]) -> str | None:
    """Return the key of `train.best.metric`, of the first test set unless it names one."""
    metric = options.best.metric
    if not metric or not tested or metric.startswith(tuple(f"{name}/" for name in tested)):
        return metric
    return f"{tested[0]}/{metric}"


def _check_compiler(backend: str, device: str) -> None:
    known = torch.compiler.list_backends(exclude_tags=())
    if backend not in known:
        raise UserError(f"train.compile.backend={backend}: torch has {', '.join(known)}")
    if backend == "inductor" and device == "cpu":
        if not any(shutil.which(name) for name in ("g++", "clang++", "c++")):
            raise UserError(
                "train.compile: inductor needs a C++ compiler on the CPU, and there is none;"
                " install g++, or give train.compile.enabled=false"
            )
