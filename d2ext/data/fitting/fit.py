"""Fit a config to its training data, or take the values that its run has kept."""

import dataclasses
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
from omegaconf import OmegaConf

from d2ext.config import by_hand as keys
from d2ext.config.augmentation import sets_size
from d2ext.config.check import target_name
from d2ext.config.choices import Choice, is_auto, recipe_of, set_by_hand, with_choices
from d2ext.config.lr_scaling import is_adaptive
from d2ext.config.options import TrainOptions
from d2ext.config.tiles import tile_options
from d2ext.data.fitting.fingerprint import Fingerprint, fingerprint
from d2ext.data.fitting.rules import BACKBONE, Hardware, RecipeValues, fit
from d2ext.data.records.columns import Columns
from d2ext.data.tiles.records import Tiles
from d2ext.errors import UserError, config_errors
from d2ext.files import read_kept

AUTO = "auto.json"  # name in the run directory
_RESIZE = "detectron2.data.transforms.augmentation_impl.ResizeShortestEdge"
_BOX_HEAD = "detectron2.modeling.roi_heads.box_head.FastRCNNConvFCHead"
_PARAMETERS = "detectron2.solver.build.get_default_optimizer_params"
_MAPPER = "d2ext.data.loading.mapper.Mapper"


class Fitted(msgspec.Struct, frozen=True, kw_only=True):
    """The values that a run chose for its config, in auto.json.

    Attributes:
        choices: Chosen values with their reasons.
        by_hand: Keys that the user has set since, whose values stay.
        skipped: Rules that do not apply to the config, with the reason.
        fingerprint: Fingerprint of the training data; None if only the length was chosen.
        budget: `train.budget` of the run; None without one.
    """

    choices: list[Choice]
    by_hand: list[str] = []
    skipped: list[str] = []
    fingerprint: Fingerprint | None = None
    budget: str | None = None

    def settled(self) -> "Fitted":
        """Return these choices for the run's config.yaml, which contains them: no value changes."""
        return msgspec.structs.replace(self, by_hand=list(keys.KEYS))

    @property
    def applied(self) -> list[Choice]:
        """Return the choices for fields that the user has not set."""
        return [choice for choice in self.choices if choice.key not in self.by_hand]

    def with_length(self, choices: Sequence[Choice], budget: str) -> "Fitted":
        """Return these choices and those made for a budget."""
        return msgspec.structs.replace(self, choices=[*self.choices, *choices], budget=budget)

    def lines(self) -> list[str]:
        """Return the choices as lines for the plan; each reason once."""
        if len(self.by_hand) == len(keys.KEYS):
            return ["the values of the run's config.yaml stay"]
        lines = list(dict.fromkeys(choice.reason for choice in self.applied))
        if self.by_hand:
            lines.append(f"set by hand and kept: {', '.join(map(keys.written, self.by_hand))}")
        if self.skipped:
            lines.append(f"not chosen: {'; '.join(self.skipped)}")
        return lines or ["the recipe's values fit the data"]


def kept_choices(folder: Path) -> Fitted | None:
    """Read the choices of the run in a folder; return None if it has none.

    Raises:
        UserError: The file is damaged.
    """
    return read_kept(
        folder / AUTO,
        Fitted,
        "the values chosen for the run are unknown; restore it, or use the run's config.yaml, which"
        " contains them",
    )


def fitted(
    cfg: Any,
    hardware: Hardware,
    kept: Fitted | None = None,
    detector: Mapping[str, Any] | None = None,
) -> Fitted | None:
    """Choose values that fit the training data, if `data.auto` is set.

    The length of a run with a budget is not chosen.

    Args:
        cfg: Config with registered datasets.
        hardware: What the run trains on.
        kept: Choices of the run that is resumed or evaluated, which are used instead.
        detector: Anchors and box head of the detector that training starts from, by key, if they
            are known.

    Returns:
        The choices; None without `data.auto` and without `train.budget`.

    Raises:
        UserError: `data.recipe` does not exist.
    """
    auto, budget = is_auto(cfg), cfg.train.get("budget")
    if not auto and not budget:
        return None
    recipe = recipe_of(cfg)
    by_hand = set_by_hand(cfg, recipe)
    if kept:
        return msgspec.structs.replace(kept, by_hand=_ordered(by_hand))
    if not auto:
        return Fitted(choices=[], by_hand=_ordered(by_hand))
    found = _training_fingerprint(cfg)
    if not found:
        why = "dataloader.train has no dataset whose objects are known"
        return Fitted(choices=[], by_hand=_ordered(by_hand), skipped=[why])
    values = recipe_values(cfg, recipe)
    choices, _ = fit(found, values, hardware, by_hand)
    # Oversampling does not depend on the number of images in an epoch, which it changes.
    sampled = with_choices(cfg, [choice for choice in choices if choice.key == keys.OVERSAMPLING])
    values = dataclasses.replace(values, images=_epoch(sampled), detector=detector or {})
    choices, skipped = fit(found, values, hardware, by_hand)
    return Fitted(choices=choices, by_hand=_ordered(by_hand), skipped=skipped, fingerprint=found)


def _ordered(by_hand: Collection[str]) -> list[str]:
    return [key for key in keys.KEYS if key in by_hand]


def columns_fingerprint(columns: Columns, num_classes: int) -> Fingerprint | None:
    """Return the fingerprint of columns with boxes; see `fingerprint`."""
    objects = columns.objects_only()
    assert objects.boxes is not None
    return fingerprint(
        columns.widths,
        columns.heights,
        objects.images(),
        objects.boxes,
        objects.categories,
        num_classes,
    )


def _training_fingerprint(cfg: Any) -> Fingerprint | None:
    """Return the fingerprint of the training sets, or of their tiles; None if it is unknown."""
    from detectron2.data import DatasetCatalog, MetadataCatalog

    from d2ext.data.records.records import columns_of, join

    names = OmegaConf.select(cfg, "dataloader.train.dataset.names") or []
    names = [names] if isinstance(names, str) else list(names)
    if not names or any(name not in DatasetCatalog.list() for name in names):
        return None
    try:
        with config_errors("datasets"):
            records = join([DatasetCatalog.get(name) for name in names])
            if tiles := tile_options(cfg):
                records = Tiles(records, tiles)
    except UserError:  # `check_datasets` reads them again and names the one that fails
        return None
    classes = MetadataCatalog.get(names[0]).get("thing_classes", [])
    return columns_fingerprint(columns_of(records, boxes=True), len(classes))


def _epoch(cfg: Any) -> int | None:
    """Return the number of images in an epoch; None if it is unknown."""
    from detectron2.config import instantiate

    try:
        with config_errors("dataloader.train.dataset"):
            images = instantiate(cfg.dataloader.train.get("dataset"))
    except UserError:  # preflight builds it again and reports the error
        return None
    return len(images) if hasattr(images, "__len__") else None


def recipe_values(cfg: Any, recipe: Any = None) -> RecipeValues:
    """Read the values that the rules use from a config.

    Args:
        cfg: Config returned by `load_config`.
        recipe: Recipe that the config was made from, returned by `recipe_of`, if known.
    """
    loader, train = cfg.dataloader.train, TrainOptions.from_config(cfg.train)
    mapper = loader.get("mapper") or {}
    augmentations = mapper.get("augmentations") or []
    sides, most = _resize(augmentations)
    val_sides, val_most = _resize(OmegaConf.select(cfg, "dataloader.val.mapper.augmentations"))
    given = (cfg.get("data") or {}).get("augmentation")  # may crop as well
    tta = cfg.dataloader.get("tta") or {}
    ours = target_name(mapper.get("_target_", "")) == _MAPPER
    tuned = recipe.train.get("reference_batch_size") if recipe else train.reference_batch_size
    dataset, rate = loader.get("dataset") or {}, cfg.optimizer.get("lr")
    source = train.init_checkpoint or ""
    return RecipeValues(
        short_sides=sides,
        max_size=most,
        crops=any(sets_size(a) for a in augmentations[1:]) or sets_size(given),
        val_short_side=max(val_sides) if val_sides else None,
        val_max_size=val_most,
        tta_sizes=list(tta.get("min_sizes") or []) or None,
        tta_max_size=tta.get("max_size"),
        anchors=_anchors(cfg),
        strides=_strides(cfg),
        detector_weights=bool(source)
        and not source.startswith("package://")
        and "ImageNet" not in source,
        backbone_weights=source.startswith("package://"),
        box_channels=_box_channels(cfg),
        sets_rates=_sets_rates(cfg),
        object_crop=ours,
        masks=bool(ours and mapper.get("use_instance_mask") and not mapper.get("recompute_boxes")),
        batch=loader.get("total_batch_size"),
        follows=OmegaConf.is_interpolation(loader, "total_batch_size"),
        workers=train.reference_world_size,
        rate=rate if isinstance(rate, int | float) else None,
        tuned_batch=tuned,
        linear=not is_adaptive(cfg.optimizer),
        scaled=train.auto_scale_lr.enabled,
        epochs=None if train.budget else train.max_epochs,
        iterations=train.max_iter,
        warmup=train.warmup_iters,
        evaluates=train.eval_period != 0,
        oversampling=dataset.get("oversample_threshold"),
        classes_oversampled="oversample_threshold" in dataset,
    )


def _resize(augmentations: Sequence[Any] | None) -> tuple[list[int] | None, int | None]:
    """Return short sides and the bound of the long side of a leading ResizeShortestEdge."""
    first = augmentations[0] if augmentations else {}
    if not hasattr(first, "get") or target_name(first.get("_target_", "")) != _RESIZE:
        return None, None
    sides = first.get("short_edge_length")
    listed = [sides] if isinstance(sides, int) else list(sides or ())
    return listed or None, first.get("max_size")


def _box_channels(cfg: Any) -> int | None:
    """Return the channels of a box head that could have convolutions, but has none."""
    head = OmegaConf.select(cfg, keys.BOX_CONVOLUTIONS.rpartition(".")[0])
    if not hasattr(head, "get") or target_name(head.get("_target_", "")) != _BOX_HEAD:
        return None
    shape = head.get("input_shape") or {}
    return shape.get("channels") if head.get("conv_dims") == [] else None


def _sets_rates(cfg: Any) -> bool:
    """Return whether backbone and other layers have one learning rate, by Detectron2's groups."""
    params = cfg.optimizer.get("params") or {}
    by_detectron2 = target_name(params.get("_target_", "")) == _PARAMETERS
    return (
        by_detectron2
        and params.get("lr_factor_func") is None
        and OmegaConf.select(cfg, f"model.{BACKBONE}") is not None
    )


def _anchors(cfg: Any) -> list[list[float]] | None:
    """Return the anchor sizes of each level; None for a model without, or with ratios only."""
    sizes = OmegaConf.select(cfg, keys.ANCHORS)
    if not sizes or not all(hasattr(level, "__len__") and len(level) for level in sizes):
        return None
    return [list(level) for level in sizes]


def _strides(cfg: Any) -> list[int] | None:
    strides = OmegaConf.select(cfg, f"{keys.ANCHORS.rpartition('.')[0]}.strides")
    known = strides and len(strides) == len(_anchors(cfg) or ())
    return list(strides) if known else None
