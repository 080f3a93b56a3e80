"""What the fields of a config take that d2ext itself reads: types, null, bounds."""

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

from d2ext.errors import UserError

SECTIONS = ("model", "dataloader", "optimizer", "lr_multiplier", "train", "datasets", "evaluators")

# What each step computes follows from these; the places of files are a machine's own matter.
_SHARED = ("model", "optimizer", "lr_multiplier", "train")
_OF_A_MACHINE = ("train.output_dir", "train.init_checkpoint", "train.device", "train.dist")
# What a run may change on its way and still compute the same.
_BESIDE_TRAINING = (
    "train.eval_period",
    "train.checkpointer",
    "train.log_period",
    "train.best",
    "train.early_stopping_patience",
    "train.ddp",
    "train.compile",
    "train.accumulate",  # with the workers, it is a matter of the layout
    "dataloader.train.accumulate",
    "dataloader.train.num_workers",
)


class _Takes(NamedTuple):
    types: tuple[type, ...]
    null: bool = False
    among: tuple[str, ...] = ()
    least: int | None = None
    above: int | None = None
    below: float = math.inf

    def accepts(self, value: Any) -> bool:
        if value is None:
            return self.null
        if self.among:
            return value in self.among
        if not isinstance(value, self.types) or isinstance(value, bool) and bool not in self.types:
            return False
        return not (self.least is not None and value < self.least) and (
            self.above is None or self.above < value < self.below
        )

    def __str__(self) -> str:
        if self.among:
            return " or ".join([*self.among, *["null"] * self.null])
        text = " or ".join([*(t.__name__ for t in self.types), *["null"] * self.null])
        if self.least is not None:
            text += f", {self.least} or more"
        if self.above is not None:
            text += f", above {self.above}" + f" and below {self.below}" * (self.below < math.inf)
        return text


_PERIOD = _Takes((int, str), null=True)  # schedule.py reads the text
_FIELDS = {
    "train.seed": _Takes((int,), least=0),
    "train.log_period": _Takes((int,), least=1),
    "train.hooks": _Takes((list,)),
    "train.max_iter": _Takes((int,), null=True, least=1),
    "train.max_epochs": _Takes((int, float), null=True, above=0),
    "train.warmup_iters": _Takes((int,), null=True, least=0),
    "train.accumulate": _Takes((int,), least=1),
    "train.reference_world_size": _Takes((int,), null=True, least=1),
    "train.reference_batch_size": _Takes((int,), null=True, least=1),
    "train.eval_period": _PERIOD,
    "train.checkpointer": _Takes((dict,)),
    "train.checkpointer.period": _PERIOD,
    "train.checkpointer.max_to_keep": _Takes((int,), least=-1),  # -1 and 0 keep all
    "train.checkpointer.asynchronous": _Takes((bool,)),
    "train.bad_loss": _Takes((dict,)),
    "train.bad_loss.policy": _Takes((str,), among=("stop", "skip")),
    "train.bad_loss.max_skipped": _Takes((int,), least=0),
    "train.bad_images": _Takes((str,), among=("stop", "skip")),
    "train.device": _Takes((str,)),
    "train.output_dir": _Takes((str,), null=True),
    "train.init_checkpoint": _Takes((str,), null=True),
    "train.channels_last": _Takes((bool,), null=True),
    "train.fast_layers": _Takes((bool,)),
    "train.deterministic": _Takes((bool,)),
    "train.clip_grad_norm": _Takes((int, float), null=True, above=0),
    "train.ema_decay": _Takes((float,), null=True, above=0, below=1),
    "train.sync_bn": _Takes((bool,)),
    "train.amp": _Takes((dict,)),
    "train.amp.enabled": _Takes((bool,)),
    "train.amp.dtype": _Takes((str,), among=("float16", "bfloat16")),
    "train.compile": _Takes((dict,)),
    "train.compile.enabled": _Takes((bool,)),
    "train.compile.size_divisibility": _Takes((int,), null=True, least=1),
    "train.best": _Takes((dict,)),
    "train.best.metric": _Takes((str,), null=True),
    "train.best.mode": _Takes((str,), among=("max", "min")),
    "train.early_stopping_patience": _Takes((int,), null=True, least=1),
    "train.auto_scale_lr": _Takes((dict,)),
    "train.dist": _Takes((dict,)),
    "train.dist.backend": _Takes((str,), null=True, among=("nccl", "gloo")),
    "train.dist.port": _Takes((int,), null=True, above=0, below=65536),
    "optimizer.lr": _Takes((int, float), above=0),
    "dataloader.train.total_batch_size": _Takes((int,), least=1),
    "dataloader.train.num_workers": _Takes((int,), least=0),
    "dataloader.val.num_workers": _Takes((int,), least=0),
    "dataloader.test.num_workers": _Takes((int,), least=0),
}


def check_config(cfg: Any) -> None:
    """Checks the sections and the fields that d2ext reads; an absent field is fine.

    Args:
        cfg: an omegaconf DictConfig; it stays as it is.

    Raises:
        UserError: an interpolation that does not resolve, a section that is missing or no dict, or
            a field with a value that it does not take.
    """
    from omegaconf import OmegaConf

    # Before anything is resolved, since what refers to a missing section cannot be.
    _check_sections(OmegaConf.to_container(cfg, resolve=False))
    values = _resolve(cfg)
    _check_sections(values)
    for key in _FIELDS:
        node, (*parents, leaf) = values, key.split(".")
        for name in parents:
            node = node.get(name) or {}  # dataloader.test may be null
        if leaf in node:
            check_field(key, node[leaf])


def check_field(key: str, value: Any) -> bool:
    """Whether `key` is in the table here; raises UserError if it is and does not take `value`."""
    takes = _FIELDS.get(key)
    if takes and not takes.accepts(value):
        raise UserError(f"{key}={value!r}: takes {takes}")
    return takes is not None


def accepted(key: str) -> str:
    """What a field takes, in words; empty for one that is not in the table here."""
    return str(_FIELDS.get(key, ""))


def shared_fields(cfg: Any) -> dict[str, str]:
    """The fields that say what each step computes, by dotted key: the same on every machine.

    Paths, data roots and loader processes are not among them; a machine may have its own.
    """
    values = _resolve(cfg)
    found = {key: text for name in _SHARED for key, text in _leaves(name, values[name])}
    batch = values["dataloader"]["train"].get("total_batch_size")
    found["dataloader.train.total_batch_size"] = str(batch)
    return {key: text for key, text in found.items() if not key.startswith(_OF_A_MACHINE)}


def training_fields(cfg: Any) -> dict[str, str]:
    """The fields whose change makes another training of a run, by dotted key."""
    loader = dict(_leaves("dataloader.train", _resolve(cfg)["dataloader"]["train"]))
    found = shared_fields(cfg) | loader
    return {key: text for key, text in found.items() if not key.startswith(_BESIDE_TRAINING)}


def _leaves(key: str, value: Any) -> Iterator[tuple[str, str]]:
    if isinstance(value, dict | list):
        parts = value.items() if isinstance(value, dict) else enumerate(value)
        for name, part in parts:
            yield from _leaves(f"{key}.{name}", part)
    elif key.endswith("._target_") and isinstance(value, str):  # of a config.yaml, or an override
        yield key, target_name(value)
    elif hasattr(value, "__qualname__"):  # a function or class; others' texts may hold addresses
        yield key, target_name(value)
    else:
        plain = isinstance(value, str | int | float | None)
        yield key, str(value) if plain else type(value).__name__


def target_name(target: Any) -> str:
    """Return the name of a function or class, or of what a name stands for, by its definition.

    A package may offer under a shorter name what one of its modules defines.
    """
    from detectron2.utils.registry import locate

    try:
        found = locate(target) if isinstance(target, str) else target
        return f"{found.__module__}.{found.__qualname__}"
    except (ImportError, AttributeError):  # whoever builds it says so
        return str(target)


def _check_sections(values: dict[str, Any]) -> None:
    for name in SECTIONS:
        if name not in values:
            raise UserError(f"the config has no section {name}")
        _check_dict(name, values[name])
    if isinstance(loaders := values["dataloader"], dict):
        _check_dict("dataloader.train", loaders.get("train"))
        for name in ("val", "test"):  # null: no validation; the same as val
            if loaders.get(name) is not None:
                _check_dict(f"dataloader.{name}", loaders[name], " or null")


def _check_dict(key: str, value: Any, more: str = "") -> None:
    interpolation = isinstance(value, str) and value.startswith("${")
    if not isinstance(value, dict) and not interpolation:
        raise UserError(f"{key}={value!r}: takes dict{more}")


def _resolve(cfg: Any) -> dict[str, Any]:
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    try:
        # First, since other sections refer to it: the error names the field that is wrong itself.
        OmegaConf.to_container(cfg.train, resolve=True, throw_on_missing=True)
        return OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)
    except OmegaConfBaseException as e:
        reason = str(e.msg or e).splitlines()[0]
        raise UserError(f"{e.full_key or 'the config'}: {reason}") from e
