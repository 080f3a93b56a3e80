"""Know which fields of a config the user has set, so that `data.auto` leaves them alone."""

from collections.abc import Iterable, Sequence
from typing import Any

from d2ext.errors import UserError
from d2ext.text import did_you_mean

_TRAIN = "dataloader.train.mapper.augmentations.0"
_VAL = "dataloader.val.mapper.augmentations.0"
SHORT_SIDES = f"{_TRAIN}.short_edge_length"
MAX_SIZE = f"{_TRAIN}.max_size"
CROP = "dataloader.train.mapper.augmentations.1"  # inserted there
RECOMPUTE_BOXES = "dataloader.train.mapper.recompute_boxes"
VAL_SHORT_SIDE = f"{_VAL}.short_edge_length"
VAL_MAX_SIZE = f"{_VAL}.max_size"
TTA_SIZES = "dataloader.tta.min_sizes"
TTA_MAX_SIZE = "dataloader.tta.max_size"
BOX_CONVOLUTIONS = "model.roi_heads.box_head.conv_dims"
ANCHORS = "model.proposal_generator.anchor_generator.sizes"
BATCH = "train.reference_batch_size"
WORKERS = "train.reference_world_size"
TOTAL_BATCH = "dataloader.train.total_batch_size"  # never chosen, but the rate follows it
RATE = "optimizer.lr"
RATE_FACTORS = "optimizer.params.lr_factor_func"
EPOCHS, ITERATIONS = "train.max_epochs", "train.max_iter"
WARMUP = "train.warmup_iters"
EVALUATIONS = "train.eval_period"
CHECKPOINTS = "train.checkpointer.period"
OVERSAMPLING = "dataloader.train.dataset.oversample_threshold"
# Fields that `data.auto` and `train.budget` may set, by dotted key.
KEYS = (
    *(SHORT_SIDES, MAX_SIZE, CROP, RECOMPUTE_BOXES, VAL_SHORT_SIDE, VAL_MAX_SIZE, TTA_SIZES),
    *(TTA_MAX_SIZE, ANCHORS, BOX_CONVOLUTIONS, BATCH, WORKERS, TOTAL_BATCH, RATE, RATE_FACTORS),
    *(EPOCHS, ITERATIONS, WARMUP, EVALUATIONS, CHECKPOINTS, OVERSAMPLING),
)


def record_by_hand(cfg: Any, overrides: Sequence[str]) -> None:
    """Add the keys of overrides that set one of `KEYS` to `data.by_hand`, in place.

    Args:
        cfg: Config after `apply_overrides`; nothing changes unless it has `data.auto` or a budget.
        overrides: The overrides, which are valid.
    """
    data, train = cfg.get("data"), cfg.get("train")
    if not hasattr(data, "get") or "auto" not in data:
        if not hasattr(train, "get") or not train.get("budget"):
            return
        if not hasattr(data, "get"):
            cfg.data = data = {}
    given = [text.partition("=")[0].strip("+ ") for text in overrides if "=" in text]
    found = [key for key in given if touched([key])]
    before = data.get("by_hand") or []
    if found and not isinstance(before, str):  # `check_config` reports a value of another type
        cfg.data.by_hand = list(dict.fromkeys([*before, *found]))


def check_by_hand(keys: Sequence[Any]) -> None:
    """Raise a UserError unless each entry of `data.by_hand` names a field that may be chosen."""
    for i, key in enumerate(keys):
        if not isinstance(key, str) or not touched([key]):
            hint = did_you_mean(key, map(written, KEYS), "docs/auto.md lists the fields")
            raise UserError(f"data.by_hand[{i}]={key!r} is not a field that data.auto sets; {hint}")


def overridden(cfg: Any) -> set[str]:
    """Return those of `KEYS` that overrides, or the list `data.by_hand` of a file, name."""
    found = set(touched((cfg.get("data") or {}).get("by_hand") or ()))
    length = {EPOCHS, ITERATIONS}  # a run has one
    return found | length if found & length else found


def touched(keys: Iterable[str]) -> list[str]:
    """Return those of `KEYS` that are given, or are a parent or a child of a given key."""
    given = [key.replace("[", ".").replace("]", "") + "." for key in keys]
    return [key for key in KEYS if any(_related(key + ".", other) for other in given)]


def _related(a: str, b: str) -> bool:
    return a.startswith(b) or b.startswith(a)


def written(key: str) -> str:
    """Return a dotted key as users write it, with list indices in brackets."""
    parts = key.split(".")
    return parts[0] + "".join(f"[{p}]" if p.isdecimal() else f".{p}" for p in parts[1:])
