"""Choose sizes, anchors, batch, length and sampling of a training by published rules.

Each rule is a pure function of the data's fingerprint, the recipe's values and the hardware, and
returns the values to change, with a reason for the plan.
"""

import math
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import msgspec
import numpy as np

from d2ext.config import by_hand as keys
from d2ext.config.choices import Choice
from d2ext.data.fitting.fingerprint import Fingerprint, percent
from d2ext.text import plural

_SMALL = 25  # percent of the objects that count as small
_PIXELS = 32  # size that small objects should get: COCO's bound of "small"
_MULTIPLE = 32  # of short sides, in pixels
_LARGEST = 1600  # short side
_LONGEST = 2500  # long side of the median image
_OWN_SIZES = {keys.SHORT_SIDES, keys.MAX_SIZE}
_CROP_FROM = 1.3  # times the recipe's largest short side, from which training uses crops
_CLOSE = 1.15  # ratio of the smallest and largest anchors up to which the recipe's stay
_ANCHOR_PERCENTS = (2, 98)  # objects between which anchors are spread
_ANCHOR_RATIO = 1.2  # smallest ratio of two sizes of anchors
_PER_STRIDE = 1.5  # smallest size of anchors, in strides of their level
_MOST_PER_STRIDE = 8  # size of FPN's anchors
_FEW_IMAGES, _FEW_CORES, _SMALL_BATCH = 500, 8, 2
_ENOUGH_STEPS, _FEWEST_STEPS = 1000, 500
_MOST_TIMES = 1.75  # as many pixels as the recipe trains on
_PERIODS = 3  # evaluations of a run whose length is chosen
_BOX_CONVOLUTIONS = 2
_NEW_LAYERS, BACKBONE = 3, "backbone.bottom_up"  # times the rate of the backbone
_MOST_WARMUP = 0.1  # share of the run
_RARE, _RARE_IMAGES = 10, 30


class Hardware(msgspec.Struct, frozen=True):
    """Describe what a run trains on.

    Attributes:
        device: `cpu` or `cuda`.
        cores: Number of CPU cores for a process.
        unit: A batch must be a multiple of this number: workers x micro-batches.
        workers: Number of processes on all machines.
    """

    device: str
    cores: int = 1
    unit: int = 1
    workers: int = 1


@dataclass(frozen=True)
class RecipeValues:
    """Values of a config that the rules read; None if the config has no such field.

    Attributes:
        short_sides: Short sides of the training images in pixels.
        max_size: Bound of their long side.
        crops: Whether training crops or resizes the images further.
        val_short_side, val_max_size: Size of the images in evaluations.
        tta_sizes, tta_max_size: Sizes of test-time augmentation.
        anchors: Sizes of the anchors of each level, in pixels of the training image.
        strides: Strides of the levels.
        detector_weights: Whether training starts from a trained detector, whose anchors must stay.
        detector: Anchors and convolutions of the box head of that detector, by key, if they are
            known.
        backbone_weights: Whether training starts from a trained backbone, with all other layers
            random.
        box_channels: Channels of a box head without convolutions; None for other heads.
        sets_rates: Whether the optimizer has the same rate for all parts of the model, which
            factors could change.
        object_crop: Whether the mapper passes boxes to `ObjectCrop`.
        masks: Whether boxes can be computed again from masks.
        images: Images of an epoch, of which some may be dropped or repeated; None: those with
            objects.
        batch: Images per optimizer step, before `train.auto_scale_lr`.
        follows: Whether the loader's batch follows `train.reference_batch_size`.
        workers: Number of workers that the rate was tuned for.
        rate: Learning rate.
        tuned_batch: Batch that the rate was tuned for.
        linear: Whether the rate scales linearly with the batch, or with its square root.
        scaled: Whether `train.auto_scale_lr` scales batch and rate with the number of workers.
        epochs, iterations: Length of the run; one of them.
        warmup: Iterations of warm-up.
        evaluates: Whether the recipe evaluates periodically.
        oversampling: Threshold of class-balanced sampling.
        classes_oversampled: Whether the dataset has such a threshold.
    """

    short_sides: list[int] | None = None
    max_size: int | None = None
    crops: bool = False
    val_short_side: int | None = None
    val_max_size: int | None = None
    tta_sizes: list[int] | None = None
    tta_max_size: int | None = None
    anchors: list[list[float]] | None = None
    strides: list[int] | None = None
    detector_weights: bool = False
    detector: Mapping[str, Any] = field(default_factory=dict)
    backbone_weights: bool = False
    box_channels: int | None = None
    sets_rates: bool = False
    object_crop: bool = False
    masks: bool = False
    images: int | None = None
    batch: int | None = None
    follows: bool = True
    workers: int | None = None
    rate: float | None = None
    tuned_batch: int | None = None
    linear: bool = False
    scaled: bool = False
    epochs: float | None = None
    iterations: int | None = None
    warmup: int | None = None
    evaluates: bool = True
    oversampling: float | None = None
    classes_oversampled: bool = False


@dataclass(frozen=True)
class Situation:
    """Hold what a rule decides on.

    Attributes:
        data: Fingerprint of the training set.
        recipe: Values of the config.
        hardware: What the run trains on.
        by_hand: Keys whose values stay.
        chosen: Values that earlier rules have chosen, by key.
    """

    data: Fingerprint
    recipe: RecipeValues
    hardware: Hardware
    by_hand: Collection[str]
    chosen: Mapping[str, Any]


def fit(
    data: Fingerprint, recipe: RecipeValues, hardware: Hardware, by_hand: Collection[str] = ()
) -> tuple[list[Choice], list[str]]:
    """Apply all rules.

    Args:
        data: Fingerprint of the training set.
        recipe: Values of the config.
        hardware: What the run trains on.
        by_hand: Keys whose values stay.

    Returns:
        Values to change, and why rules do not apply to this config.
    """
    choices: list[Choice] = []
    for rule in (image_sizes, anchors, box_head, batch, rates, length, rare_classes):
        chosen = {choice.key: choice.value for choice in choices}
        found = rule(Situation(data, recipe, hardware, by_hand, chosen))
        choices += [choice for choice in found if choice.key not in by_hand]
    return choices, list(_not_applicable(recipe))


def _not_applicable(recipe: RecipeValues) -> Iterator[str]:
    """Yield why rules do not apply to a config."""
    if not recipe.short_sides or not recipe.max_size:
        yield "image sizes: the first augmentation is not a ResizeShortestEdge"
    elif recipe.crops:
        yield "image sizes: other augmentations set them"
    if not recipe.anchors:
        yield f"anchors: the model has no {keys.ANCHORS} for each level"
    elif recipe.detector_weights and keys.ANCHORS not in recipe.detector:
        yield "anchors: the initial weights are those of a detector"
    if not recipe.batch:
        yield "batch and length: dataloader.train has no total_batch_size"


def image_sizes(s: Situation) -> Iterator[Choice]:
    """Enlarge images until small objects have enough pixels, and crop them for training.

    nnU-Net chooses resolution and patch size from the fingerprint; SAHI
    (https://arxiv.org/abs/2202.06934) trains and infers on enlarged slices for small objects. The
    pixels are those up to which COCO calls objects small. Sizes for evaluation and test-time
    augmentation scale with those for training. If the user sets a size for training, no size
    changes; a size for evaluation stays.
    """
    recipe, data = s.recipe, s.data
    sides, most = recipe.short_sides, recipe.max_size
    if not sides or not most or recipe.crops or not _OWN_SIZES.isdisjoint(s.by_hand):
        return
    own = max(sides)
    wanted = _PIXELS / data.size[_SMALL]
    largest = min(_LARGEST, max(_LONGEST / data.aspect[50], own))
    side = min(_rounded(wanted), _below(largest))
    # Crops are as large as the recipe's images, so that a step takes no longer.
    fits = data.length[95] * side <= own
    crops = side > _CROP_FROM * own and fits and recipe.object_crop and keys.CROP not in s.by_hand
    if not crops:
        side = min(side, _below(_CROP_FROM * own))
    if side <= own:
        return
    factor = side / own
    long = round(side * max(most / own, min(data.aspect[95], _LONGEST / side)))
    limit = "" if side >= wanted - _MULTIPLE else ", the most that the limits allow"
    why = (
        f"short side {side} (was {own}): the {_SMALL} % smallest objects, up to"
        f" {percent(data.size[_SMALL])} of it, get up to {data.size[_SMALL] * side:.0f}"
        f" pixels{limit}"
    )
    if not {keys.VAL_SHORT_SIDE, keys.VAL_MAX_SIZE}.isdisjoint(s.by_hand):
        why += "; evaluation keeps your size, so objects are smaller there than in training"
    yield Choice(keys.SHORT_SIDES, [_rounded(one * factor) for one in sides], why)
    yield Choice(keys.MAX_SIZE, long, why)
    if recipe.val_short_side:
        yield Choice(keys.VAL_SHORT_SIDE, _rounded(recipe.val_short_side * factor), why)
    if recipe.val_max_size:
        yield Choice(keys.VAL_MAX_SIZE, long, why)
    if recipe.tta_sizes:
        yield Choice(keys.TTA_SIZES, [_rounded(one * factor) for one in recipe.tta_sizes], why)
    if recipe.tta_max_size:
        yield Choice(keys.TTA_MAX_SIZE, round(recipe.tta_max_size * factor), why)
    if crops:
        why = f"training on crops of {own} x {own} pixels around an object: a step takes no longer"
        crop = "d2ext.data.loading.augment.object_crop.ObjectCrop"
        yield Choice(keys.CROP, {"_target_": crop, "size": [own, own]}, why)
        if recipe.masks:
            yield Choice(keys.RECOMPUTE_BOXES, True, why)


def anchors(s: Situation) -> Iterator[Choice]:
    """Spread anchors geometrically over the sizes of the objects in training images.

    YOLO9000 (https://arxiv.org/abs/1612.08242) fits anchors to the data; a geometric sequence keeps
    the order of the levels, as in FPN (https://arxiv.org/abs/1612.03144). Anchors that are smaller
    than the distance of the cells of their level would miss objects between these. Levels that are
    too fine for all objects, whose cells see only a part of each, keep their anchors. The numbers
    of levels and of sizes stay, and so do the shapes of the weights. A trained detector keeps its
    own anchors.
    """
    recipe, data = s.recipe, s.data
    theirs = recipe.detector.get(keys.ANCHORS)
    fits = theirs and recipe.anchors and list(map(len, theirs)) == list(map(len, recipe.anchors))
    if theirs and fits and theirs != recipe.anchors:
        why = f"anchors {theirs[0][0]} to {theirs[-1][-1]} pixels: those of the initial weights"
        yield Choice(keys.ANCHORS, theirs, why)
    sides = s.chosen.get(keys.SHORT_SIDES, recipe.short_sides)
    if not recipe.anchors or recipe.detector_weights or not sides:
        return
    most = s.chosen.get(keys.MAX_SIZE, recipe.max_size) or math.inf
    side = min(float(np.mean(sides)), most / data.aspect[50])
    low, high = (data.size[share] * side for share in _ANCHOR_PERCENTS)
    strides = recipe.strides or [0] * len(recipe.anchors)
    coarse = [not stride or _MOST_PER_STRIDE * stride >= low for stride in strides]
    first = coarse.index(True) if any(coarse) else len(coarse) - 1
    count = sum(map(len, recipe.anchors[first:]))
    # Objects of one size still vary in shape, so that neighbors must not coincide.
    widest = max(high / low, _ANCHOR_RATIO ** (count - 1))
    center, half = math.sqrt(low * high), math.sqrt(widest)
    spread = iter(np.geomspace(center / half, center * half, count).tolist())
    sizes = recipe.anchors[:first] + [
        [round(max(next(spread), _PER_STRIDE * stride * _ANCHOR_RATIO**i)) for i in range(len(own))]
        for own, stride in zip(recipe.anchors[first:], strides[first:], strict=True)
    ]
    ends = ((sizes[first][0], recipe.anchors[first][0]), (sizes[-1][-1], recipe.anchors[-1][-1]))
    if all(max(a / b, b / a) <= _CLOSE for a, b in ends):
        return
    yield Choice(
        keys.ANCHORS,
        sizes,
        f"anchors {sizes[first][0]} to {sizes[-1][-1]} pixels: 96 % of the objects have"
        f" {low:.0f} to {high:.0f} in training images",
    )


def box_head(s: Situation) -> Iterator[Choice]:
    """Add convolutions to a box head that starts from random weights.

    Double-Head R-CNN (https://arxiv.org/abs/1904.06493) finds that convolutions localize better
    than fully connected layers. They also need fewer images to learn to. A trained detector keeps
    its own.
    """
    theirs = s.recipe.detector.get(keys.BOX_CONVOLUTIONS)
    if theirs and s.recipe.box_channels:
        why = f"box head with {len(theirs)} convolutions: that of the initial weights"
        yield Choice(keys.BOX_CONVOLUTIONS, theirs, why)
    if channels := s.recipe.box_channels if s.recipe.backbone_weights else None:
        why = f"box head with {_BOX_CONVOLUTIONS} convolutions, which learn from fewer images"
        yield Choice(keys.BOX_CONVOLUTIONS, [channels] * _BOX_CONVOLUTIONS, why)


def batch(s: Situation) -> Iterator[Choice]:
    """Use small batches for few images on few cores, and let the learning rate follow the batch.

    A step of half as many images takes about half as long on few CPU cores, so that a run of the
    same duration takes twice as many steps; nnU-Net, too, uses batches of 2. The rate scales
    linearly with the batch for SGD (Goyal et al. 2017, https://arxiv.org/abs/1706.02677), and with
    its square root for the Adam family (Malladi et al. 2022, https://arxiv.org/abs/2205.10287). A
    rate that the user has not set also follows the user's batch. `train.auto_scale_lr` chooses the
    batch by the number of workers, and so prevents small batches.
    """
    recipe, size, rate = s.recipe, s.recipe.batch, s.recipe.rate
    if not size:
        return
    few = s.data.images < _FEW_IMAGES
    slow = s.hardware.device == "cpu" and s.hardware.cores <= _FEW_CORES
    free = recipe.follows and not recipe.scaled
    free &= {keys.BATCH, keys.WORKERS, keys.TOTAL_BATCH}.isdisjoint(s.by_hand)
    if few and slow and free and size > _SMALL_BATCH and _SMALL_BATCH % s.hardware.unit == 0:
        size = _SMALL_BATCH
        why = f"{size} images per step (was {recipe.batch}): more steps with few images"
        yield Choice(keys.BATCH, size, why)
        if recipe.workers and size % recipe.workers:  # each needs an image
            yield Choice(keys.WORKERS, 1, why)
    tuned = recipe.tuned_batch
    # `train.auto_scale_lr` scales the rate of another `total_batch_size` itself.
    scaled = recipe.scaled and keys.TOTAL_BATCH in s.by_hand
    if not tuned or not rate or size == tuned or scaled:
        return
    factor = size / tuned if recipe.linear else math.sqrt(size / tuned)
    rule = "linear" if recipe.linear else "square-root"
    new = float(f"{rate * factor:.3g}")
    why = f"learning rate {new:g} (was {rate:g}) for {size} images per step, by the {rule} rule"
    yield Choice(keys.RATE, new, why)


def rates(s: Situation) -> Iterator[Choice]:
    """Train layers that start from random weights faster than a trained backbone.

    Large steps destroy what a backbone has learned on many images, and small ones leave the other
    layers undertrained: discriminative fine-tuning (Howard and Ruder 2018,
    https://arxiv.org/abs/1801.06146). The backbone keeps the rate for the batch.
    """
    rate = s.chosen.get(keys.RATE, s.recipe.rate)
    given = not {keys.RATE, keys.RATE_FACTORS}.isdisjoint(s.by_hand)
    if not rate or given or not (s.recipe.backbone_weights and s.recipe.sets_rates):
        return
    new = float(f"{rate * _NEW_LAYERS:.3g}")
    why = f"learning rate {new:g}, and {rate:g} for the backbone, which is trained already"
    yield Choice(keys.RATE, new, why)
    factors = {BACKBONE: round(1 / _NEW_LAYERS, 4)}
    target = "d2ext.config.lr_factors.LrFactors"
    yield Choice(keys.RATE_FACTORS, {"_target_": target, "factors": factors}, why)


def length(s: Situation) -> Iterator[Choice]:
    """Train small datasets for enough steps, and space evaluations evenly over the run.

    nnU-Net trains for a fixed number of steps regardless of the dataset's size. Here, the pixels of
    all steps are limited as well, because they determine the time of a run, except for very small
    datasets. If the user sets the length, the periods stay as well.
    """
    recipe, size = s.recipe, _images_per_step(s)
    given = not {keys.EPOCHS, keys.ITERATIONS}.isdisjoint(s.by_hand)
    if not size or not recipe.epochs or given:
        return
    images = recipe.images or s.data.images
    enough, fewest = (math.ceil(steps * size / images) for steps in (_ENOUGH_STEPS, _FEWEST_STEPS))
    most = int(_MOST_TIMES * recipe.epochs / _pixel_ratio(s))
    epochs = min(enough, max(most, fewest))
    if epochs <= recipe.epochs:
        return
    steps = math.ceil(epochs * images / size)
    limit = f", at most {_MOST_TIMES:g} times the pixels" if epochs == most < enough else ""
    why = f"{epochs} epochs (was {recipe.epochs:g}): {steps} steps{limit}"
    yield Choice(keys.EPOCHS, epochs, why)
    period = max(round(epochs / _PERIODS), 1)
    if recipe.evaluates:
        yield Choice(keys.EVALUATIONS, plural(period, "epoch"), why)
    yield Choice(keys.CHECKPOINTS, plural(period, "epoch"), why)
    if recipe.warmup and recipe.warmup > _MOST_WARMUP * steps:
        yield Choice(keys.WARMUP, max(int(_MOST_WARMUP * steps), 1), why)


def _images_per_step(s: Situation) -> float | None:
    """Return the images per optimizer step, with those that `train.auto_scale_lr` adds."""
    size = s.chosen.get(keys.BATCH, s.recipe.batch)
    if size and s.recipe.scaled and s.recipe.follows and s.recipe.workers:
        return size * s.hardware.workers / s.recipe.workers
    return size


def _pixel_ratio(s: Situation) -> float:
    """Return by how much the chosen sizes multiply the pixels of a median training image."""
    own, new, aspect = s.recipe.short_sides, s.chosen.get(keys.SHORT_SIDES), s.data.aspect[50]
    if not own or not new:
        return 1.0
    before = np.mean(own) ** 2 * min(aspect, (s.recipe.max_size or math.inf) / max(own))
    after = np.mean(new) ** 2 * aspect
    if crop := s.chosen.get(keys.CROP):
        after = min(after, math.prod(crop["size"]))
    return float(after / before)


def rare_classes(s: Situation) -> Iterator[Choice]:
    """Show images with rare classes more often.

    Repeat factor sampling of LVIS (Gupta et al. 2019, https://arxiv.org/abs/1908.03195): images
    with a class that is in fewer images than a tenth of those of the most frequent class are shown
    sqrt(threshold / share) times.
    """
    if not s.recipe.classes_oversampled or s.recipe.oversampling is not None:
        return
    counts = [count for count in s.data.images_of_class if count]
    least, most = min(counts), max(counts)
    if least * _RARE >= most or least >= _RARE_IMAGES:
        return
    threshold = float(f"{most / _RARE / s.data.images:.3g}")
    times = math.sqrt(threshold * s.data.images / least)
    yield Choice(
        keys.OVERSAMPLING,
        threshold,
        f"images of rare classes up to {times:.2g} times as often: the rarest class is in"
        f" {plural(least, 'image')}, the most frequent in {most}",
    )


def _rounded(pixels: float) -> int:
    """Return a number of pixels rounded to a multiple of 32, at least one."""
    return max(round(pixels / _MULTIPLE), 1) * _MULTIPLE


def _below(pixels: float) -> int:
    """Return the largest multiple of 32 up to a number of pixels."""
    return int(pixels // _MULTIPLE) * _MULTIPLE
