"""Check the fields of a config that d2ext itself reads: types, null, bounds."""

from collections.abc import Iterator
from typing import Any

from d2ext.config.by_hand import check_by_hand
from d2ext.config.flatten import flatten
from d2ext.config.options import FEWEST_RESAMPLES, WRITERS, Accepts, train_options
from d2ext.errors import UserError
from d2ext.text import did_you_mean

SECTIONS = ("model", "dataloader", "optimizer", "lr_multiplier", "train", "datasets", "evaluators")

# Values of `data.augmentation`, in addition to lists of augmentations.
PRESETS = ("none", "light", "strong", "aerial")
# Sections that determine what each step computes, except for the machine-specific fields.
_SHARED = ("model", "optimizer", "lr_multiplier", "train")
_OF_A_MACHINE = ("train.output_dir", "train.init_checkpoint", "train.device", "train.dist")
# Fields that may change on resume without changing the result.
_BESIDE_TRAINING = (
    "train.budget",
    "train.eval_period",
    "train.checkpointer",
    "train.log_period",
    "train.writers",
    "train.best",
    "train.early_stopping_patience",
    "train.intervals",
    "train.resamples",
    "train.validation_loss",
    "train.ddp",
    "train.compile",
    "train.accumulate",  # part of the layout, like the number of workers
    "dataloader.train.accumulate",
    "dataloader.train.num_workers",
)
# Fields outside `train` that d2ext reads.
_OTHERS = {
    "data.augmentation": Accepts((str, list), True, PRESETS),
    "data.auto": Accepts((bool,)),
    "data.recipe": Accepts((str,), True),
    "data.by_hand": Accepts((list,)),
    "data.tiles": Accepts((int,), null=True, least=32),
    "data.tile_overlap": Accepts((int, float), above=0, below=0.9),
    "data.tile_min_share": Accepts((int, float), least=0, most=1),
    "optimizer.lr": Accepts((int, float), above=0),
    "dataloader.train.total_batch_size": Accepts((int,), least=1),
    "dataloader.train.num_workers": Accepts((int,), least=0),
    "dataloader.val.num_workers": Accepts((int,), least=0),
    "dataloader.test.num_workers": Accepts((int,), least=0),
}
_FIELDS = {k: option.accepts for k, option in train_options().items() if option.checked} | _OTHERS


def check_is_config(cfg: Any) -> None:
    """Raise a UserError if the argument of a function is not a config."""
    from omegaconf import DictConfig

    if not isinstance(cfg, DictConfig):
        raise UserError(
            f"cfg is a {type(cfg).__name__}; give a config returned by d2ext.get_config or"
            " d2ext.load_config"
        )


def check_config(cfg: Any) -> None:
    """Check the sections and the fields that d2ext reads; an absent field is fine.

    Args:
        cfg: An omegaconf DictConfig; it is not changed.

    Raises:
        UserError: An interpolation does not resolve, a section is missing or not a dict, or a field
            does not accept its value.
    """
    from omegaconf import OmegaConf

    # Before resolving, because references to a missing section cannot be resolved.
    _check_sections(OmegaConf.to_container(cfg, resolve=False))
    values = _resolve(cfg)
    _check_sections(values)
    found = _checked_fields(values)
    # Types first: a field of the wrong type may be why a number is out of bounds.
    for key in sorted(found, key=lambda key: _FIELDS[key].has_type(found[key])):
        check_field(key, found[key])
    _check_draws(found.get("train.intervals"), found.get("train.resamples", FEWEST_RESAMPLES))
    for i, pattern in enumerate(found.get("train.freeze", ())):
        if not isinstance(pattern, str):
            raise UserError(f"train.freeze[{i}]={pattern!r}: takes str, the name of a module")
    check_by_hand(found.get("data.by_hand", ()))
    for i, hook in enumerate(found.get("train.hooks", ())):
        if not _is_call(hook):
            raise UserError(f"train.hooks[{i}]={hook!r}: takes a dict with the _target_ of a hook")
    for i, writer in enumerate(found.get("train.writers", ())):
        if writer not in WRITERS if isinstance(writer, str) else not _is_call(writer):
            hint = did_you_mean(writer, WRITERS)
            raise UserError(
                f"train.writers[{i}]={writer!r}: takes {', '.join(WRITERS)} or a dict with"
                f" the _target_ of a writer{hint and '; '}{hint}"
            )


def _check_draws(intervals: bool | None, resamples: int) -> None:
    if 0 < resamples < FEWEST_RESAMPLES:
        raise UserError(f"train.resamples={resamples}: takes 0 or at least {FEWEST_RESAMPLES}")
    if intervals and not resamples:
        raise UserError(
            "train.intervals=True needs draws of the images, but train.resamples=0; set it to 1000,"
            " or train.intervals to False"
        )


def _is_call(value: Any) -> bool:
    return isinstance(value, dict) and "_target_" in value


def _checked_fields(values: dict[str, Any]) -> dict[str, Any]:
    """Return the values of the checked fields that a config has, by dotted key."""
    found = {}
    for key in _FIELDS:
        node, (*parents, leaf) = values, key.split(".")
        for name in parents:
            node = node.get(name, {}) if isinstance(node, dict) else {}
        if isinstance(node, dict) and leaf in node:
            found[key] = node[leaf]
    return found


def check_field(key: str, value: Any) -> bool:
    """Return whether d2ext checks a field; raise UserError if it does not accept `value`."""
    accepted = _FIELDS.get(key)
    if accepted and not accepted.accepts(value):
        hint = did_you_mean(value, accepted.among) if isinstance(value, str) else ""
        raise UserError(f"{key}={value!r}: takes {accepted}{hint and '; '}{hint}")
    return accepted is not None


def accepted(key: str) -> str:
    """Return the values that a field accepts, as text; "" for a field that is not checked."""
    return str(_FIELDS.get(key, ""))


def shared_fields(cfg: Any) -> dict[str, str]:
    """Return the fields that determine each step, by dotted key; all machines must agree on them.

    Paths, data roots and loader workers are excluded, because they may differ between machines.
    """
    values = _resolve(cfg)
    found = {key: text for name in _SHARED for key, text in _texts(name, values[name])}
    batch = values["dataloader"]["train"].get("total_batch_size")
    found["dataloader.train.total_batch_size"] = str(batch)
    checked = _checked_fields(values)
    keys = ["data.augmentation"]
    if checked.get("data.tiles"):  # the others mean nothing without it
        keys += ["data.tiles", "data.tile_overlap", "data.tile_min_share"]
    for key in keys:
        if (value := checked.get(key)) is not None:
            # An empty list of augmentations replaces the recipe's.
            found |= dict(_texts("data", {key.removeprefix("data."): value})) or {key: "[]"}
    return {key: text for key, text in found.items() if not key.startswith(_OF_A_MACHINE)}


def training_fields(cfg: Any) -> dict[str, str]:
    """Return the fields that change the result of a run, by dotted key."""
    loader = dict(_texts("dataloader.train", _resolve(cfg)["dataloader"]["train"]))
    found = shared_fields(cfg) | loader
    return {key: text for key, text in found.items() if not key.startswith(_BESIDE_TRAINING)}


def _texts(section: str, values: Any) -> Iterator[tuple[str, str]]:
    for key, value in flatten(values, section, lists=True):
        if isinstance(value, dict | list):  # an empty one
            continue
        if key.endswith("._target_") and isinstance(value, str):  # from config.yaml or an override
            yield key, target_name(value)
        elif hasattr(value, "__qualname__"):  # a function or class
            yield key, target_name(value)
        else:  # the text of other objects may contain an address
            plain = isinstance(value, str | int | float | None)
            yield key, str(value) if plain else type(value).__name__


def target_name(target: Any) -> str:
    """Return the full name of a function or class, as of the module that defines it.

    Packages may also export it under a shorter name.

    Args:
        target: The function or class, or one of its names.
    """
    from detectron2.utils.registry import locate

    try:
        found = locate(target) if isinstance(target, str) else target
        return f"{found.__module__}.{found.__qualname__}"
    except Exception:  # of any module's import; reported when the target is built
        return str(target)


def _check_sections(values: Any) -> None:
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
        raise UserError(f"{key}={value!r}: takes a dict{more}")


def _resolve(cfg: Any) -> Any:
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    try:
        # Resolve `train` first, so that errors name its field and not one that refers to it.
        OmegaConf.to_container(cfg.train, resolve=True, throw_on_missing=True)
        return OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)
    except OmegaConfBaseException as e:
        reason = str(e.msg or e).splitlines()[0]
        raise UserError(f"{e.full_key or 'the config'}: {reason}") from e
