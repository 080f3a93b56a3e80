"""Define the options of `train`: names, types, defaults, bounds and meanings.

`configs/common/train.py` provides every recipe with the defaults, `config/check.py` checks values
against types and bounds, and `d2ext print-config --docs` prints the meanings. Fields that
Detectron2's configs/common/train.py has, too, have the same names.
"""

import dataclasses
import functools
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from types import NoneType, UnionType
from typing import Any, Literal, NamedTuple, Union, get_args, get_origin

# Names that are valid entries of `train.writers`, and their classes.
WRITERS = {
    "mlflow": "d2ext.engine.trackers.MLflowWriter",
    "tensorboard": "detectron2.utils.events.TensorboardXWriter",
    "wandb": "d2ext.engine.trackers.WandbWriter",
}


FEWEST_RESAMPLES = 100  # fewer draws do not give the ends of a 95 % interval


class Accepts(NamedTuple):
    """Values that a field accepts.

    Attributes:
        types: Types of the value; a bool is accepted only if bool is one of them.
        null: Whether None is accepted.
        among: Accepted strings; empty if any string is accepted.
        least, most: Smallest and largest number, inclusive.
        above, below: Exclusive bounds of the number.
    """

    types: tuple[type, ...]
    null: bool = False
    among: tuple[str, ...] = ()
    least: int | None = None
    most: float = math.inf
    above: int | None = None
    below: float = math.inf

    def has_type(self, value: Any) -> bool:
        """Return whether a value has one of the types, regardless of the bounds."""
        if value is None:
            return self.null
        if isinstance(value, bool):
            return bool in self.types
        return isinstance(value, self.types)

    def accepts(self, value: Any) -> bool:
        """Return whether a value has one of the types and is within the bounds."""
        if value is None:
            return self.null
        if not self.has_type(value):
            return False
        if self.among and isinstance(value, str):
            return value in self.among
        return not (self.least is not None and not self.least <= value <= self.most) and (
            self.above is None or self.above < value < self.below
        )

    def __str__(self) -> str:
        kinds = [t.__name__ for t in self.types if not (self.among and t is str)] + [*self.among]
        if self.null:
            kinds.append("null")
        text = " or ".join(kinds)
        if self.least is not None:
            text += f", {self.least} {'or more' if self.most == math.inf else f'to {self.most}'}"
        if self.above is not None:
            text += f", above {self.above}"
            if self.below < math.inf:
                text += f" and below {self.below}"
        return text


class Option(NamedTuple):
    """Description of an option, for messages and documentation.

    Attributes:
        accepts: Accepted values.
        help: Meaning in one or two sentences; empty for a section such as `train.amp`.
        checked: Whether `check_config` rejects other values.
    """

    accepts: Accepts
    help: str
    checked: bool


def _option(default: Any, help: str, *, checked: bool = True, **bounds: Any) -> Any:
    """Return a dataclass field for an option.

    Args:
        default: Value in recipes, and in configs without the key.
        help: Meaning of the option.
        checked: False leaves checking the value to the code that uses it.
        bounds: `among`, `least`, `above` and `below` of `Accepts`.
    """
    metadata = {"help": help, "checked": checked, "bounds": bounds}
    if isinstance(default, list):
        return field(default_factory=lambda: list(default), metadata=metadata)
    return field(default=default, metadata=metadata)


@dataclass(frozen=True)
class Checkpointer:
    """`train.checkpointer`: which checkpoints a run writes and keeps."""

    period: int | str | None = _option(
        "1 epoch", 'iterations, or "N epochs", between checkpoints; 0: only at the end'
    )
    max_to_keep: int = _option(
        3, "number of the run's newest checkpoints to keep; 0 or -1 keeps all", least=-1
    )
    asynchronous: bool = _option(False, "write checkpoints in the background, from a copy")


@dataclass(frozen=True)
class BadLoss:
    """`train.bad_loss`: how to handle a NaN or infinite loss."""

    policy: Literal["stop", "skip"] = _option(
        "stop", 'what to do at a NaN or infinite loss; "skip" skips the step'
    )
    max_skipped: int = _option(
        10, "number of steps that a run may skip; one more stops it", least=0
    )


@dataclass(frozen=True)
class AutoScaleLR:
    """`train.auto_scale_lr`: scale batch and learning rate to the number of workers."""

    enabled: bool = _option(
        False,
        "scale batch and learning rate to the number of workers, like --auto-scale-lr",
        checked=False,
    )
    rule: Literal["linear", "sqrt"] | None = _option(
        None,
        "how the learning rate scales with the batch; None: depends on the optimizer",
        checked=False,
    )


@dataclass(frozen=True)
class Dist:
    """`train.dist`: how the processes of a run find each other (MMDetection's dist_params)."""

    backend: Literal["nccl", "gloo"] | None = _option(
        None, "backend of the collectives; None: depends on the device"
    )
    port: int | None = _option(
        None, "port on rank 0's machine; None: a free one", above=0, below=65536
    )
    url: str | None = _option(
        None, "address of the rendezvous, tcp://HOST:PORT; --dist-url overrides it", checked=False
    )


@dataclass(frozen=True)
class Amp:
    """`train.amp`: mixed precision."""

    enabled: bool | Literal["auto"] = _option(
        False, "use mixed precision; auto: on a GPU only", among=("auto",)
    )
    dtype: Literal["float16", "bfloat16"] = _option(
        "float16", 'data type of mixed precision; "bfloat16" also works on the CPU'
    )

    def active(self, device: str) -> bool:
        """Return whether a run on `device` uses mixed precision."""
        return self.enabled is True or self.enabled == "auto" and device == "cuda"


@dataclass(frozen=True)
class Best:
    """`train.best`: the evaluation whose weights are kept as model_best.pth."""

    metric: str | None = _option(
        None,
        'result that selects model_best.pth, such as "coco/segm/AP" for the first val set, or'
        ' "<dataset>/coco/segm/AP" for another one',
    )
    mode: Literal["max", "min"] = _option(
        "max", "whether the metric's highest or lowest value is best"
    )


@dataclass(frozen=True)
class Compile:
    """`train.compile`: compile the backbone with torch.compile.

    Attributes:
        extra: Other arguments of torch.compile in the config.
    """

    enabled: bool = _option(False, "compile the backbone with torch.compile")
    backend: str = _option("inductor", "compiler backend", checked=False)
    dynamic: bool | None = _option(
        None,
        "True: one program for all shapes; False: one per shape; None: torch decides",
        checked=False,
    )
    size_divisibility: int | None = _option(
        None, "pad images to multiples of this number of pixels, for fewer shapes", least=1
    )
    extra: dict[str, Any] = field(default_factory=dict)

    def arguments(self) -> dict[str, Any]:
        """Return the arguments of torch.compile."""
        return {"backend": self.backend, "dynamic": self.dynamic, **self.extra}


@dataclass(frozen=True)
class DDP:
    """`train.ddp`: how gradients are averaged over the ranks.

    Attributes:
        extra: Other arguments of DistributedDataParallel in the config.
    """

    broadcast_buffers: bool = _option(
        False, "broadcast rank 0's buffers before each step", checked=False
    )
    find_unused_parameters: bool = _option(
        False, "for models that do not use all parameters in every step", checked=False
    )
    fp16_compression: bool = _option(False, "exchange gradients as float16", checked=False)
    extra: dict[str, Any] = field(default_factory=dict)

    def arguments(self) -> dict[str, Any]:
        """Return the arguments of Detectron2's `create_ddp_model`."""
        given = {name: getattr(self, name) for name in _options(DDP)}
        return {**given, **self.extra}


@dataclass(frozen=True)
class TrainOptions:
    """Typed section `train` of a config: `TrainOptions.from_config(cfg.train)`.

    A config needs either `max_epochs` or `max_iter`. These, the reference sizes and the warm-up
    depend on the learning rate of a recipe, and so have no defaults here.
    """

    output_dir: str | None = _option(
        None, "run directory; None: work_dirs/<name of the config file>"
    )
    init_checkpoint: str | None = _option(
        "", "initial weights (MMDetection's load_from); training starts at iteration 0"
    )
    init_checkpoint_classes: list[str] = _option(
        [],
        "order of the classes in MMDetection's checkpoints, if it is not that of the names in them",
    )
    max_epochs: int | float | None = _option(
        None, "length in epochs; set this or max_iter, overriding one clears the other", above=0
    )
    max_iter: int | None = _option(None, "length in iterations", least=1)
    budget: str | None = _option(
        None,
        'time for the whole run, such as "10 min" or "1h30m"; steps are timed before training, and'
        " the length is chosen so that the run fits",
        checked=False,
    )
    eval_period: int | str | None = _option(
        "1 epoch",
        'iterations, or "N epochs", between evaluations; 0 disables periodic evaluation',
    )
    validation_loss: bool = _option(
        True, "compute the training losses on the validation sets, too, in each evaluation"
    )
    checkpointer: Checkpointer = Checkpointer()
    bad_loss: BadLoss = BadLoss()
    bad_images: Literal["stop", "skip"] = _option(
        "stop", 'what to do at an unreadable image; "skip" replaces it with another one'
    )
    log_period: int = _option(20, "iterations between two lines of metrics", least=1)
    warmup_iters: int | None = _option(
        None,
        "iterations of warm-up; at most half of the run, or the schedule's own fraction if longer",
        least=0,
    )
    seed: int = _option(
        0,
        "seed of data order, augmentation, proposal sampling and initial weights",
        least=0,
    )
    reference_world_size: int | None = _option(
        None, "number of workers that optimizer.lr was tuned for", least=1
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
        "decay of a moving average of the weights, for evaluation; 0.999 averages about 1000 steps",
        above=0,
        below=1,
    )
    best: Best = Best()
    intervals: bool | None = _option(
        None,
        "compute a 95 % interval of each result, from draws of the images; None: for test sets of"
        " up to 1,000 images",
    )
    resamples: int = _option(
        1000,
        "draws of the images from which intervals are computed, at least 100; 0: no intervals",
        least=0,
    )
    early_stopping_patience: int | None = _option(
        None,
        "stop after this number of evaluations without a better train.best.metric",
        least=1,
    )
    freeze: list[Any] = _option(
        [],
        "parts of the model that are not trained, such as [backbone.bottom_up]: names of modules or"
        " parameters, in which * matches any characters; their BatchNorm keeps its statistics",
    )
    sync_bn: bool = _option(
        False, "compute BatchNorm statistics over all workers, if the model's norm is BN"
    )
    compile: Compile = Compile()
    deterministic: bool = _option(False, "use deterministic GPU kernels, even if they are slower")
    ddp: DDP = DDP()
    device: str = _option("cuda", "cuda or cpu; without a visible GPU, the CPU is used and logged")
    channels_last: bool | None = _option(
        None,
        "use the channels_last memory layout; null uses it on CPUs with AVX-512, where even ResNets"
        " are faster with it, and on GPUs with train.amp, for models without modules of other"
        " packages",
    )
    fast_layers: bool = _option(
        True,
        "on the CPU, use faster versions of RoIAlign, RPN's loss and frozen norms (d2ext/modeling),"
        " equal up to rounding; on a GPU, use layers that wait less often for it, with equal"
        " losses; False uses Detectron2's",
    )
    hooks: list[Any] = _option(
        [], "your own Detectron2 hooks, each with its _target_ and arguments"
    )
    writers: list[Any] = _option(
        ["tensorboard"],
        "writers of metrics in addition to metrics.json: mlflow, tensorboard, wandb, or a"
        " Detectron2 EventWriter with its _target_ and arguments; [tensorboard, mlflow] uses both",
    )
    yacs_setup: list[str] = _option(
        [],
        "functions, as module.function, that add a project's keys to a yacs config before its file"
        " is read, or register its datasets",
    )

    @classmethod
    def from_config(cls, train: Any) -> "TrainOptions":
        """Return the options of a config, with defaults for missing keys.

        Args:
            train: Section `train`, a DictConfig or dict. It is not checked (see `check_config`),
                and keys that are not options are ignored.
        """
        return _read(cls, train)

    def as_dict(self) -> dict[str, Any]:
        """Return the options as plain values, for the section `train` of a recipe."""
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
    types = (str if get_origin(kind) is Literal else get_origin(kind) or kind for kind in kinds)
    return Accepts(tuple(types), null, **bounds)


def _options(cls: type) -> dict[str, dataclasses.Field]:
    """Return the fields that are config keys, by name."""
    return {f.name: f for f in dataclasses.fields(cls) if f.name != "extra"}


def _read(cls: Any, section: Any) -> Any:
    """Return an instance of a dataclass with the values in a section of a config."""
    options, given = _options(cls), {}
    for name, option in options.items():
        if name in section:
            value = section[name]
            if dataclasses.is_dataclass(option.type):
                value = _read(option.type, value or {})
            elif name in ("freeze", "hooks", "init_checkpoint_classes", "writers", "yacs_setup"):
                value = list(value)  # entries stay nodes; interpolations are resolved later
            given[name] = value
    if len(options) < len(dataclasses.fields(cls)):
        given["extra"] = {name: section[name] for name in section if name not in options}
    return cls(**given)


def _plain(options: Any) -> Any:
    """Return an instance of a dataclass as a dict, and other values unchanged."""
    if dataclasses.is_dataclass(options):
        return {name: _plain(getattr(options, name)) for name in _options(type(options))}
    return options
