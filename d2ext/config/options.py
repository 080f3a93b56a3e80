"""The options of `train`: their names, types, defaults, bounds and meanings, stated only here.

`configs/common/train.py` gives every recipe the defaults, `config/check.py` checks values against
types and bounds, and `d2ext print-config --docs` prints the meanings. Field names are those of
Detectron2's own configs/common/train.py, where it has the field.
"""

import dataclasses
import functools
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from types import NoneType, UnionType
from typing import Any, Literal, NamedTuple, Union, get_args, get_origin

# The entries of `train.writers` that are names, and the classes that they stand for.
WRITERS = {
    "mlflow": "d2ext.engine.trackers.MLflowWriter",
    "tensorboard": "detectron2.utils.events.TensorboardXWriter",
    "wandb": "d2ext.engine.trackers.WandbWriter",
}


class Accepts(NamedTuple):
    """The values that a field accepts.

    Attributes:
        types: of the value; a bool is an int only where bool is among them.
        null: whether None is accepted.
        among: the only texts that are accepted; empty for any.
        least: smallest number.
        above, below: bounds that the number itself is not.
    """

    types: tuple[type, ...]
    null: bool = False
    among: tuple[str, ...] = ()
    least: int | None = None
    above: int | None = None
    below: float = math.inf

    def has_type(self, value: Any) -> bool:
        """Return whether a value has one of the types, whatever its size."""
        if value is None:
            return self.null
        if isinstance(value, bool):
            return bool in self.types
        return isinstance(value, self.types)

    def accepts(self, value: Any) -> bool:
        """Return whether a value has one of the types and lies within the bounds."""
        if value is None:
            return self.null
        if not self.has_type(value):
            return False
        if self.among:
            return value in self.among
        return not (self.least is not None and value < self.least) and (
            self.above is None or self.above < value < self.below
        )

    def __str__(self) -> str:
        kinds = [*(self.among or (t.__name__ for t in self.types))]
        if self.null:
            kinds.append("null")
        text = " or ".join(kinds)
        if self.least is not None:
            text += f", {self.least} or more"
        if self.above is not None:
            text += f", above {self.above}"
            if self.below < math.inf:
                text += f" and below {self.below}"
        return text


class Option(NamedTuple):
    """An option as messages and docs describe it.

    Attributes:
        accepts: the values.
        help: the meaning, in a sentence or two; empty for a section such as `train.amp`.
        checked: whether `check_config` refuses other values.
    """

    accepts: Accepts
    help: str
    checked: bool


def _option(default: Any, help: str, *, checked: bool = True, **bounds: Any) -> Any:
    """Return a field of a dataclass for an option.

    Args:
        default: In recipes, and where a config lacks the key.
        help: The meaning.
        checked: False leaves the check of a value to the code that uses it.
        bounds: `least`, `above` and `below` of `Accepts`.
    """
    metadata = {"help": help, "checked": checked, "bounds": bounds}
    if isinstance(default, list):
        return field(default_factory=lambda: list(default), metadata=metadata)
    return field(default=default, metadata=metadata)


@dataclass(frozen=True)
class Checkpointer:
    """`train.checkpointer`: which checkpoints a run writes and keeps."""

    period: int | str | None = _option("1 epoch", 'iterations, or "N epochs"; 0: at the end only')
    max_to_keep: int = _option(
        3, "how many of the run's newest checkpoints stay; 0 or -1 keeps all", least=-1
    )
    asynchronous: bool = _option(False, "written beside the training, from a copy")


@dataclass(frozen=True)
class BadLoss:
    """`train.bad_loss`: what happens at a loss that is NaN or infinite."""

    policy: Literal["stop", "skip"] = _option(
        "stop", 'at a loss that is NaN or infinite; "skip" skips the step'
    )
    max_skipped: int = _option(10, "that many steps of a run; one more ends it", least=0)


@dataclass(frozen=True)
class AutoScaleLR:
    """`train.auto_scale_lr`: a batch and a learning rate that follow the number of workers."""

    enabled: bool = _option(
        False, "as --auto-scale-lr, batch and rate follow the workers", checked=False
    )
    rule: Literal["linear", "sqrt"] | None = _option(
        None, "how the rate follows the batch; None: as suits the optimizer", checked=False
    )


@dataclass(frozen=True)
class Dist:
    """`train.dist`: how the processes of a run find each other (MMDetection's dist_params)."""

    backend: Literal["nccl", "gloo"] | None = _option(
        None, "the processes' collectives; None: as suits the device"
    )
    port: int | None = _option(
        None, "port of rank 0's machine; None: a free one", above=0, below=65536
    )
    url: str | None = _option(
        None, "where processes meet, tcp://HOST:PORT; --dist-url wins", checked=False
    )


@dataclass(frozen=True)
class Amp:
    """`train.amp`: mixed precision."""

    enabled: bool = _option(False, "mixed precision")
    dtype: Literal["float16", "bfloat16"] = _option(
        "float16", 'type of mixed precision; "bfloat16" works on the CPU, too'
    )


@dataclass(frozen=True)
class Best:
    """`train.best`: which evaluation's weights are kept as model_best.pth."""

    metric: str | None = _option(
        None,
        'the result that decides what is model_best.pth, "coco/segm/AP" of the first val set, or'
        ' "<dataset>/coco/segm/AP" of another',
    )
    mode: Literal["max", "min"] = _option(
        "max", "whether the metric's highest or lowest value is best"
    )


@dataclass(frozen=True)
class Compile:
    """`train.compile`: torch.compile of the backbone.

    Attributes:
        extra: other arguments of torch.compile that the config gives.
    """

    enabled: bool = _option(False, "torch.compile of the backbone")
    backend: str = _option("inductor", "the compiler", checked=False)
    dynamic: bool | None = _option(
        None,
        "one program for all shapes; False: one for each; None: as torch sees fit",
        checked=False,
    )
    size_divisibility: int | None = _option(
        None, "pixels; images padded to multiples make fewer shapes", least=1
    )
    extra: dict[str, Any] = field(default_factory=dict)

    def arguments(self) -> dict[str, Any]:
        """Return the arguments of torch.compile."""
        return {"backend": self.backend, "dynamic": self.dynamic, **self.extra}


@dataclass(frozen=True)
class DDP:
    """`train.ddp`: how gradients are averaged over the ranks.

    Attributes:
        extra: other arguments of DistributedDataParallel that the config gives.
    """

    broadcast_buffers: bool = _option(
        False, "rank 0's buffers to all before each step", checked=False
    )
    find_unused_parameters: bool = _option(
        False, "for models that use some parameters at times only", checked=False
    )
    fp16_compression: bool = _option(False, "gradients travel as float16", checked=False)
    extra: dict[str, Any] = field(default_factory=dict)

    def arguments(self) -> dict[str, Any]:
        """Return the arguments of Detectron2's `create_ddp_model`."""
        given = {name: getattr(self, name) for name in _options(DDP)}
        return {**given, **self.extra}


@dataclass(frozen=True)
class TrainOptions:
    """The section `train` of a config, typed: `TrainOptions.from_config(cfg.train)`.

    A config needs one of `max_epochs` and `max_iter`; which one, the reference sizes and the
    warm-up belong to the learning rate of a recipe and have no default here.
    """

    output_dir: str | None = _option(None, "None: work_dirs/<name of the config file>")
    init_checkpoint: str | None = _option(
        "", "weights to start from (MMDetection's load_from); iteration starts at 0"
    )
    max_epochs: int | float | None = _option(
        None, "length; this or max_iter, overriding one clears the other", above=0
    )
    max_iter: int | None = _option(None, "length in iterations", least=1)
    eval_period: int | str | None = _option(
        "1 epoch", 'iterations, or "N epochs"; 0 turns periodic evaluation off'
    )
    checkpointer: Checkpointer = Checkpointer()
    bad_loss: BadLoss = BadLoss()
    bad_images: Literal["stop", "skip"] = _option(
        "stop", 'at an image that cannot be read; "skip" takes another in its place'
    )
    log_period: int = _option(20, "iterations between two lines of numbers", least=1)
    warmup_iters: int | None = _option(
        None, "iterations of linear warm-up; at most half of the run", least=0
    )
    seed: int = _option(
        0,
        "data order, augmentation, proposal sampling and initial weights follow from it",
        least=0,
    )
    reference_world_size: int | None = _option(
        None, "workers that optimizer.lr was tuned for", least=1
    )
    reference_batch_size: int | None = _option(
        None,
        "images per optimizer step, over all workers, that optimizer.lr was tuned for",
        least=1,
    )
    accumulate: int = _option(1, "micro-batches per optimizer step and worker", least=1)
    auto_scale_lr: AutoScaleLR = AutoScaleLR()
    dist: Dist = Dist()
    amp: Amp = Amp()
    clip_grad_norm: int | float | None = _option(
        None, "upper bound of the gradients' L2 norm", above=0
    )
    ema_decay: float | None = _option(
        None,
        "moving average of the weights, for evaluation; 0.999 suits some 1000 steps",
        above=0,
        below=1,
    )
    best: Best = Best()
    early_stopping_patience: int | None = _option(
        None, "evaluations without a better train.best.metric", least=1
    )
    sync_bn: bool = _option(False, "BatchNorm over all workers, where the model's norm is BN")
    compile: Compile = Compile()
    deterministic: bool = _option(False, "repeatable GPU kernels, also where slower")
    ddp: DDP = DDP()
    device: str = _option("cuda", "without a visible GPU the CPU is used, and the log says so")
    channels_last: bool | None = _option(
        None,
        "memory layout of the convolutions; null takes it on CPUs with AVX-512, where it is faster"
        " for ResNets, too",
    )
    fast_layers: bool = _option(
        True,
        "on the CPU RoIAlign, RPN's loss and frozen norms work faster (d2ext/modeling), equal but"
        " for rounding; False takes Detectron2's own",
    )
    hooks: list[Any] = _option(
        [], "Detectron2 hooks of your own, each with its _target_ and arguments"
    )
    writers: list[Any] = _option(
        ["tensorboard"],
        "where metrics go beside metrics.json: mlflow, tensorboard, wandb, or a Detectron2"
        " EventWriter with its _target_ and arguments; [tensorboard, mlflow] for both",
    )

    @classmethod
    def from_config(cls, train: Any) -> "TrainOptions":
        """Return the options of a config; a key that it lacks has the default.

        Args:
            train: the section, a DictConfig or dict. It is not checked (see `check_config`), and
                keys that are not options are ignored.
        """
        return _read(cls, train)

    def as_dict(self) -> dict[str, Any]:
        """Return the options as plain values: the section `train` of a recipe."""
        return _plain(self)


@functools.cache
def train_options() -> dict[str, Option]:
    """Return the options and sections by dotted key (`train.amp.dtype`), in their order."""
    return dict(_walk(TrainOptions, "train"))


def _walk(cls: Any, prefix: str) -> Iterator[tuple[str, Option]]:
    for name, option in _options(cls).items():
        key, more = f"{prefix}.{name}", option.metadata
        if dataclasses.is_dataclass(option.type):
            yield key, Option(Accepts((dict,)), "", True)
            yield from _walk(option.type, key)
        else:
            accepts = _accepts(option.type, more["bounds"])
            yield key, Option(accepts, more["help"], more["checked"])


def _accepts(annotation: Any, bounds: dict[str, Any]) -> Accepts:
    union = get_origin(annotation) in (Union, UnionType)
    parts = get_args(annotation) if union else (annotation,)
    kinds = [part for part in parts if part is not NoneType]
    null = len(kinds) < len(parts)
    if get_origin(kinds[0]) is Literal:
        return Accepts((str,), null, get_args(kinds[0]))
    return Accepts(tuple(get_origin(kind) or kind for kind in kinds), null, **bounds)


def _options(cls: type) -> dict[str, dataclasses.Field]:
    """Return the fields that are keys of a config, by name."""
    return {f.name: f for f in dataclasses.fields(cls) if f.name != "extra"}


def _read(cls: Any, section: Any) -> Any:
    """Return an instance of a dataclass with the values that a section of a config has."""
    options, given = _options(cls), {}
    for name, option in options.items():
        if name in section:
            value = section[name]
            if dataclasses.is_dataclass(option.type):
                value = _read(option.type, value or {})
            elif name in ("hooks", "writers"):
                value = list(value)  # of nodes, whose interpolations resolve when they are built
            given[name] = value
    if len(options) < len(dataclasses.fields(cls)):
        given["extra"] = {name: section[name] for name in section if name not in options}
    return cls(**given)


def _plain(options: Any) -> Any:
    """Return an instance of a dataclass as a dict; other values as they are."""
    if dataclasses.is_dataclass(options):
        return {name: _plain(getattr(options, name)) for name in _options(type(options))}
    return options
