"""Choose sizes, anchors, batch, length and sampling of a training by published rules.

Each rule is a pure function of the data's fingerprint, the recipe's values and the hardware, and
returns the values to change, with a reason for the plan.
"""

import math
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass

import msgspec
import numpy as np

from d2ext.config import by_hand as keys
from d2ext.config.choices import Choice
from d2ext.data.fitting.fingerprint import Fingerprint, percent

_SMALL = 25  # percent of the objects that count as small
_PIXELS = 32  # size that small objects should get: COCO's bound of "small"
_MULTIPLE = 32  # of short sides, in pixels
_LARGEST = 1600  # short side
_LONGEST = 2500  # long side of the median image
_CROP_FROM = 1.3  # times the recipe's largest short side, from which training uses crops
_CLOSE = 1.15  # ratio up to which anchors are as good as the recipe's
_ANCHOR_PERCENTS = (2, 98)  # objects between which anchors are spread
_ANCHOR_RATIO = 1.2  # smallest ratio of two sizes of anchors
_PER_STRIDE = 1.5  # smallest size of anchors, in strides of their level
_FEW_IMAGES, _SMALL_BATCH = 500, 2
_FEWEST_STEPS, _MOST_EPOCHS = 1000, 100
_PERIODS = 6  # evaluations of a run whose length is chosen
_MOST_WARMUP = 0.1  # share of the run
_RARE, _RARE_IMAGES = 10, 30


class Hardware(msgspec.Struct, frozen=True):
    """What a run trains on.

    Attributes:
        device: `cpu` or `cuda`.
        unit: A batch must be a multiple of this number: workers x micro-batches.
    """

    device: str
    unit: int = 1


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
        object_crop: Whether the mapper passes boxes to `ObjectCrop`.
        masks: Whether boxes can be computed again from masks.
        batch: Images per optimizer step.
        rate: Learning rate.
        tuned_batch: Batch that the rate was tuned for.
        linear: Whether the rate scales linearly with the batch, or with its square root.
        scaled: Whether `train.auto_scale_lr` scales the rate.
        epochs, iterations: Length of the run; one of them.
        warmup: Iterations of warm-up.
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
    object_crop: bool = False
    masks: bool = False
    batch: int | None = None
    rate: float | None = None
    tuned_batch: int | None = None
    linear: bool = False
    scaled: bool = False
    epochs: float | None = None
    iterations: int | None = None
    warmup: int | None = None
    oversampling: float | None = None
    classes_oversampled: bool = False


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
    chosen: list[Choice] = []
    skipped: list[str] = []
    hand = frozenset(by_hand)

    def values() -> dict[str, object]:
        return {choice.key: choice.value for choice in chosen}

    rules: list[tuple[Callable[[], Iterator[Choice]], str]] = [
        (lambda: image_sizes(data, recipe, hand), _no_sizes(recipe)),
        (lambda: anchors(data, recipe, values()), _no_anchors(recipe)),
        (lambda: batch(data, recipe, hardware, hand), "" if recipe.batch else "batch: unknown"),
        (lambda: length(data, recipe, values(), hand), "" if recipe.batch else "length: no batch"),
        (lambda: rare_classes(data, recipe), ""),
    ]
    for rule, problem in rules:
        if problem:
            skipped.append(problem)
        else:
            chosen += [choice for choice in rule() if choice.key not in hand]
    return chosen, skipped


def _no_sizes(recipe: RecipeValues) -> str:
    found = recipe.short_sides and recipe.max_size
    return "" if found else "image sizes: the first augmentation is not a ResizeShortestEdge"


def _no_anchors(recipe: RecipeValues) -> str:
    if not recipe.anchors:
        return "anchors: the model has none"
    if recipe.detector_weights:
        return "anchors: the initial weights are those of a detector"
    return ""


def image_sizes(
    data: Fingerprint, recipe: RecipeValues, by_hand: Collection[str]
) -> Iterator[Choice]:
    """Enlarge images until small objects have enough pixels, and crop them for training.

    nnU-Net chooses resolution and patch size from the fingerprint; SAHI
    (https://arxiv.org/abs/2202.06934) trains and infers on enlarged slices for small objects. The
    pixels are those that COCO calls small. Sizes for evaluation and test-time augmentation scale
    with those for training.

    Args:
        data: Fingerprint of the training set.
        recipe: Values of the config.
        by_hand: Keys whose values stay; with sizes for training, no other size changes.
    """
    sides, most = recipe.short_sides, recipe.max_size
    if not sides or not most or keys.SHORT_SIDES in by_hand or recipe.crops:
        return
    own = max(sides)
    wanted = _PIXELS / data.size[_SMALL]
    largest = min(_LARGEST, max(_LONGEST / data.aspect[50], own))
    side = min(_rounded(wanted), int(largest // _MULTIPLE * _MULTIPLE))
    # Crops are as large as the recipe's images, so that a step takes no longer.
    crops = side > _CROP_FROM * own and recipe.object_crop and keys.CROP not in by_hand
    if crops and data.length[95] * side > own:
        crops = False
    if not crops:
        side = min(side, int(_CROP_FROM * own // _MULTIPLE * _MULTIPLE))
    if side <= own:
        return
    factor = side / own
    aspect = max(most / own, min(data.aspect[95], _LONGEST / side))
    limit = "" if side >= wanted - _MULTIPLE else ", the most that the limits allow"
    why = (
        f"short side {side} (was {own}): the {_SMALL} % smallest objects, up to"
        f" {percent(data.size[_SMALL])} of it, get up to {data.size[_SMALL] * side:.0f}"
        f" pixels{limit}"
    )
    yield Choice(keys.SHORT_SIDES, [_rounded(s * factor) for s in sides], why)
    yield Choice(keys.MAX_SIZE, round(side * aspect), why)
    if recipe.val_short_side:
        yield Choice(keys.VAL_SHORT_SIDE, _rounded(recipe.val_short_side * factor), why)
    if recipe.val_max_size:
        yield Choice(keys.VAL_MAX_SIZE, round(side * aspect), why)
    if recipe.tta_sizes:
        yield Choice(keys.TTA_SIZES, [_rounded(s * factor) for s in recipe.tta_sizes], why)
    if recipe.tta_max_size:
        yield Choice(keys.TTA_MAX_SIZE, round(recipe.tta_max_size * factor), why)
    if crops:
        why = f"training on crops of {own} x {own}, around an object: a step takes no longer"
        crop = "d2ext.data.loading.augment.object_crop.ObjectCrop"
        yield Choice(keys.CROP, {"_target_": crop, "size": [own, own]}, why)
        if recipe.masks:
            yield Choice(keys.RECOMPUTE_BOXES, True, why)


def anchors(data: Fingerprint, recipe: RecipeValues, chosen: dict[str, object]) -> Iterator[Choice]:
    """Spread anchors geometrically over the sizes of the objects in training images.

    YOLO9000 (https://arxiv.org/abs/1612.08242) fits anchors to the data; a geometric sequence keeps
    the order of the levels, as in FPN (https://arxiv.org/abs/1612.03144). Anchors that are much
    smaller than the stride of their level would miss objects between its cells.

    Args:
        data: Fingerprint of the training set.
        recipe: Values of the config.
        chosen: Values chosen by other rules.
    """
    if not recipe.anchors:
        return
    sides = chosen.get(keys.SHORT_SIDES, recipe.short_sides)
    if not isinstance(sides, list):
        return
    side = float(np.mean(sides))
    low, high = (data.size[percent] * side for percent in _ANCHOR_PERCENTS)
    count = sum(len(level) for level in recipe.anchors)
    # Objects of one size still vary in shape, so neighbors must not coincide.
    least = _ANCHOR_RATIO ** (count - 1)
    if high < low * least:
        center = math.sqrt(low * high)
        low, high = center / math.sqrt(least), center * math.sqrt(least)
    spread = iter(np.geomspace(low, high, count).tolist() if count > 1 else [math.sqrt(low * high)])
    strides = recipe.strides or [0] * len(recipe.anchors)
    sizes = []
    for level, stride in zip(recipe.anchors, strides, strict=True):
        floors = [_PER_STRIDE * stride * _ANCHOR_RATIO**i for i in range(len(level))]
        row = [max(next(spread), floor) for floor in floors]
        sizes.append([round(size) for size in row])
    pairs = zip(sum(sizes, []), sum(map(list, recipe.anchors), []), strict=True)
    if all(max(a / b, b / a) <= _CLOSE for a, b in pairs):
        return
    yield Choice(
        keys.ANCHORS,
        sizes,
        f"anchors {sizes[0][0]} to {sizes[-1][-1]} pixels: 96 % of the objects have"
        f" {data.size[2] * side:.0f} to {data.size[98] * side:.0f} in training images",
    )


def batch(
    data: Fingerprint, recipe: RecipeValues, hardware: Hardware, by_hand: Collection[str]
) -> Iterator[Choice]:
    """Use small batches for few images on a CPU, and let the learning rate follow the batch.

    A step of half as many images takes half as long on a CPU, so a run takes twice as many steps;
    nnU-Net, too, prefers small batches (2 at least) to fewer steps. The rate scales linearly with
    the batch for SGD (Goyal et al. 2017, https://arxiv.org/abs/1706.02677), and with its square
    root for the Adam family (Malladi et al. 2022, https://arxiv.org/abs/2205.10287).

    Args:
        data: Fingerprint of the training set.
        recipe: Values of the config.
        hardware: What the run trains on.
        by_hand: Keys whose values stay; a rate that is not among them follows the user's batch.
    """
    size = recipe.batch
    if size is None:
        return
    if not {keys.BATCH, keys.TOTAL_BATCH} & set(by_hand):
        few = hardware.device == "cpu" and data.images < _FEW_IMAGES
        if few and size > _SMALL_BATCH and _SMALL_BATCH % hardware.unit == 0:
            size = _SMALL_BATCH
            why = f"{size} images per step (was {recipe.batch}): more steps with few images"
            yield Choice(keys.BATCH, size, why)
    tuned, rate = recipe.tuned_batch, recipe.rate
    # `train.auto_scale_lr` scales the rate of another `total_batch_size` itself.
    scaled = recipe.scaled and keys.TOTAL_BATCH in by_hand
    if not tuned or not rate or size == tuned or scaled:
        return
    factor = size / tuned if recipe.linear else math.sqrt(size / tuned)
    rule = "linear" if recipe.linear else "square-root"
    new = float(f"{rate * factor:.3g}")
    why = f"learning rate {new:g} (was {rate:g}) for {size} images per step, by the {rule} rule"
    yield Choice(keys.RATE, new, why)


def length(
    data: Fingerprint, recipe: RecipeValues, chosen: dict[str, object], by_hand: Collection[str]
) -> Iterator[Choice]:
    """Train small datasets for enough steps, and space evaluations evenly over the run.

    nnU-Net trains for a fixed number of steps regardless of the dataset's size.

    Args:
        data: Fingerprint of the training set.
        recipe: Values of the config.
        chosen: Values chosen by other rules.
        by_hand: Keys whose values stay; with the length of the run, its periods stay as well.
    """
    if not recipe.epochs or {keys.EPOCHS, keys.ITERATIONS} & set(by_hand):
        return
    size = chosen.get(keys.BATCH, recipe.batch)
    assert isinstance(size, int)
    wanted = math.ceil(_FEWEST_STEPS * size / data.images)
    epochs = min(wanted, _MOST_EPOCHS)
    if epochs <= recipe.epochs:
        return
    steps = math.ceil(epochs * data.images / size)
    why = f"{epochs} epochs (was {recipe.epochs:g}): {steps} steps"
    yield Choice(keys.EPOCHS, epochs, why)
    period = max(round(epochs / _PERIODS), 1)
    text = "1 epoch" if period == 1 else f"{period} epochs"
    yield Choice(keys.EVALUATIONS, text, why)
    yield Choice(keys.CHECKPOINTS, text, why)
    if recipe.warmup and recipe.warmup > _MOST_WARMUP * steps:
        yield Choice(keys.WARMUP, max(int(_MOST_WARMUP * steps), 1), why)


def rare_classes(data: Fingerprint, recipe: RecipeValues) -> Iterator[Choice]:
    """Show images with rare classes more often.

    Repeat factor sampling of LVIS (Gupta et al. 2019, https://arxiv.org/abs/1908.03195): classes
    that are in fewer images than a tenth of those of the most frequent class are shown
    sqrt(threshold / share) times.

    Args:
        data: Fingerprint of the training set.
        recipe: Values of the config.
    """
    if not recipe.classes_oversampled or recipe.oversampling is not None:
        return
    counts = [count for count in data.images_of_class if count]
    least, most = min(counts), max(counts)
    if least * _RARE > most or least >= _RARE_IMAGES:
        return
    threshold = float(f"{most / _RARE / data.images:.3g}")
    yield Choice(
        keys.OVERSAMPLING,
        threshold,
        f"images of rare classes up to {math.sqrt(threshold * data.images / least):.2g} times as"
        f" often: the rarest class is in {least} images, the most frequent in {most}",
    )


def _rounded(pixels: float) -> int:
    """Return a number of pixels rounded to a multiple of 32, at least one."""
    return max(round(pixels / _MULTIPLE), 1) * _MULTIPLE
