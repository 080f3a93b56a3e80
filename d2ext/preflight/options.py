"""Find contradictory options before anything is built."""

import contextlib
import importlib.util
import inspect
import logging
import os
import shutil
import sysconfig
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from detectron2.engine import HookBase
from detectron2.utils.events import EventWriter
from detectron2.utils.registry import locate

from d2ext.config.options import WRITERS, Amp, TrainOptions
from d2ext.config.schedule import Schedule
from d2ext.errors import UserError, config_errors, format_exception
from d2ext.evaluation.evaluators import build_metric, check_entry
from d2ext.evaluation.suite import metrics_of
from d2ext.invocation import option

logger = logging.getLogger(__name__)

_HOOK = "a hook; give a class derived from detectron2.engine.HookBase"
# Language, environment variable and names of inductor's compiler.
_COMPILERS = {
    "cpu": ("C++", "CXX", ("g++", "clang++", "c++")),
    "cuda": ("C", "CC", ("gcc", "clang")),
}
_WRITER = "a writer; give a class derived from detectron2.utils.events.EventWriter"


def check_flags(
    eval_only: bool, weights: str | None, resume: bool, resume_from: str | None, overwrite: bool
) -> None:
    """Raise a UserError if flags of the command contradict each other."""
    if weights and not eval_only:
        raise UserError(
            "--weights needs --eval-only; to train from weights, set train.init_checkpoint=..."
        )
    if resume and (resume_from or overwrite):
        raise UserError(
            f"{option('--resume')} cannot be combined with {option('--resume-from')} or"
            f" {option('--overwrite')}; give one of them"
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
    """Check precision, compiler, early stopping, hooks, writers and flags, which need no data.

    Raises:
        UserError: Two options contradict each other; the message names both.
    """
    if expect and not validate and not eval_only:
        raise UserError("--expect needs the evaluation that --no-validate skips; give one of them")
    if tta and not eval_only:
        raise UserError("--tta needs --eval-only")
    if tta and not cfg.dataloader.get("tta"):
        raise UserError(
            f"{option('--tta')} needs dataloader.tta with min_sizes, max_size and flip, which the"
            " config lacks"
        )
    if eval_only:
        return
    follows = "nccl" if device == "cuda" else "gloo"
    if (backend := options.dist.backend or follows) != follows:
        logger.warning("train.dist.backend=%s is ignored; this device uses %s", backend, follows)
    if options.amp.active(device) and device == "cpu" and options.amp.dtype != "bfloat16":
        raise UserError(
            "train.amp.dtype=float16 needs a GPU, but this run is on the CPU; set"
            " train.amp.dtype=bfloat16 or train.amp.enabled=false"
        )
    if options.compile.enabled:
        _check_compiler(options.compile.backend, device)
    if options.early_stopping_patience:
        field = "train.early_stopping_patience"
        if not validate:
            raise UserError(f"{field} needs evaluations, which {option('--no-validate')} skips")
        if not options.best.metric:
            raise UserError(f"{field} needs train.best.metric, the result to improve")
    for i, entry in enumerate(options.hooks):
        _check_call(f"train.hooks[{i}]", entry, HookBase, _HOOK)
    for i, entry in enumerate(options.writers):
        field = f"train.writers[{i}]"
        target = _check_call(field, writer_call(entry, ""), EventWriter, _WRITER)
        package = getattr(target, "PACKAGE", None)
        if package and not _is_installed(package):
            raise UserError(f"{field} needs {package}: pip install 'd2ext[{package}]'")


def _is_installed(package: str) -> bool:
    # A plain folder, such as the `wandb` of offline runs, is found as a package without a loader.
    spec = importlib.util.find_spec(package)
    return spec is not None and spec.loader is not None


def writer_call(entry: Any, output_dir: str) -> dict[str, Any]:
    """Return an entry of `train.writers` as a lazy call.

    `output_dir` is passed as `output_dir` or `log_dir` if the entry does not set these parameters.
    """
    call = {"_target_": WRITERS[entry]} if isinstance(entry, str) else {**entry}
    target = call["_target_"]
    with contextlib.suppress(Exception):  # `_check_call` reports import errors
        target = locate(target) if isinstance(target, str) else target
        for name in {"output_dir", "log_dir"} & inspect.signature(target).parameters.keys():
            call.setdefault(name, output_dir)
    return call


def _check_call(field: str, entry: Mapping[str, Any], base: type, wanted: str) -> Any:
    """Check a lazy call and return its target; do not call it, because hooks may open files.

    Args:
        field: Field of the entry in the config.
        entry: The lazy call.
        base: Class that the result must be an instance of.
        wanted: Description of the expected result, for messages.

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
    except ValueError:  # some callables written in C have none
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
            f"{field}._target_={target} cannot be imported ({format_exception(e)}); check that its"
            " folder is on PYTHONPATH"
        ) from e


def check_schedule(options: TrainOptions, schedule: Schedule) -> None:
    """Raise a UserError if early stopping would get only one evaluation, at the end."""
    period = schedule.eval_period
    if options.early_stopping_patience and not (period.epochs or period.iterations):
        raise UserError(
            "train.early_stopping_patience needs periodic evaluations, but with train.eval_period=0"
            " there is only one at the end; set train.eval_period"
        )


def check_metrics(
    evaluators: Mapping[str, Any], wanted: Mapping[str, str], sets: Mapping[str, Any]
) -> None:
    """Check metrics and evaluators, and that they will return the results that options refer to.

    Args:
        evaluators: Section `evaluators` of the config.
        wanted: Key of a result for each option that refers to one.
        sets: `(class names, tasks)` for each test set, as in `d2ext.Metric`.

    Raises:
        UserError: A metric's arguments are wrong, it does not fit a test set, or it does not return
            a result; the message names some that it does.
    """
    keys: set[str] = set()
    open_ended = []  # metrics and evaluators that do not declare their results
    for name, metrics in metrics_of(evaluators, list(sets)).items():
        classes, tasks = sets[name]
        for metric, settings in metrics.items():
            with config_errors(f"evaluators.{metric}"):
                made = build_metric(settings, name)
                check_entry(f"evaluators.{metric}", made)
                known = made.keys(classes, tasks) if hasattr(made, "keys") else None
            if known is None:
                open_ended.append(f"{name}/{metric}/")
            else:
                keys |= {f"{name}/{metric}/{key}" for key in known}
    for setting, key in wanted.items():
        if key not in keys and not key.startswith(tuple(open_ended)):
            main = sorted(k for k in keys if k.endswith("/AP")) or open_ended or sorted(keys)[:8]
            raise UserError(
                f"{setting}: the evaluation will not return {key}; its results include"
                f" {', '.join(main) or 'none, because it has no metrics'}"
            )


def best_metric(options: TrainOptions, tested: Sequence[str]) -> str | None:
    """Return the key of `train.best.metric`, for the first test set unless it names another."""
    metric = options.best.metric
    if not metric or not tested or metric.startswith(tuple(f"{name}/" for name in tested)):
        return metric
    return f"{tested[0]}/{metric}"


def _check_compiler(backend: str, device: str) -> None:
    known = torch.compiler.list_backends(exclude_tags=())
    if backend not in known:
        raise UserError(
            f"train.compile.backend={backend} is not a backend of torch; choose from"
            f" {', '.join(known)}"
        )
    if backend != "inductor":
        return
    off = "or set train.compile.enabled=false"
    # On a GPU, Triton compiles a launcher for each kernel.
    language, variable, names = _COMPILERS[device]
    if variable not in os.environ and not any(map(shutil.which, names)):
        raise UserError(
            f"train.compile: inductor needs a {language} compiler, but none is installed; install"
            f" {names[0]}, {off}"
        )
    headers = sysconfig.get_path("include", "posix_prefix")  # where inductor looks
    if not Path(headers, "Python.h").is_file():
        raise UserError(
            f"train.compile: inductor needs Python.h, which is not in {headers}; install Python's"
            f" header files (python3-dev on Debian), {off}"
        )


def precision_advice(amp: Amp, device: str) -> list[str]:
    """Return a line of advice if another `train.amp.dtype` suits the GPU better."""
    if device != "cuda" or not amp.active(device) or "D2EXT_PLAN_GPUS" in os.environ:
        return []  # with that variable, the plan is for another machine
    has_bfloat16 = torch.cuda.get_device_capability() >= (8, 0)
    if has_bfloat16 and amp.dtype == "float16":
        return ["train.amp.dtype=bfloat16 is as fast on this GPU and needs no loss scaling"]
    if not has_bfloat16 and amp.dtype == "bfloat16":
        return ["this GPU emulates bfloat16 slowly; train.amp.dtype=float16 is faster"]
    return []
