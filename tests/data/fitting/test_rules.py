"""Rules that fit a recipe to hand-made fingerprints, on both sides of their bounds."""

import math
from dataclasses import replace

import msgspec
import pytest

from d2ext.config import by_hand as keys
from d2ext.data.fitting.fingerprint import PERCENTS, Fingerprint
from d2ext.data.fitting.rules import Hardware, RecipeValues, fit

CPU, GPU = Hardware("cpu"), Hardware("cuda")
LITE0 = RecipeValues(
    short_sides=[320, 352, 384, 416, 448, 480],
    max_size=800,
    val_short_side=480,
    val_max_size=800,
    tta_sizes=[400, 480, 560],
    tta_max_size=960,
    anchors=[[16, 28], [48, 72], [112, 168], [256, 384]],
    strides=[8, 16, 32, 64],
    object_crop=True,
    masks=True,
    batch=4,
    rate=5e-4,
    tuned_batch=4,
    epochs=24,
    warmup=50,
    classes_oversampled=True,
)


def data(images=1000, size=0.3, spread=3.0, classes=(1000,), aspect=1.33, length=None):
    """Return a fingerprint of objects whose sizes spread by a factor around their median."""
    sizes = {p: size * spread ** ((p - 50) / 50) for p in PERCENTS}
    return Fingerprint(
        images=images,
        objects=5 * images,
        images_of_class=list(classes),
        short_side=dict.fromkeys(PERCENTS, 480),
        aspect=dict.fromkeys(PERCENTS, aspect),
        size=sizes,
        length={p: length or s for p, s in sizes.items()},
    )


def chosen(fingerprint, recipe=LITE0, hardware=CPU, by_hand=()):
    choices, _ = fit(fingerprint, recipe, hardware, by_hand)
    assert all(choice.reason for choice in choices)
    return {choice.key: choice.value for choice in choices}


def sizes_of(found):
    return {key: value for key, value in found.items() if "size" in key or "short" in key}


def test_data_that_the_recipe_was_made_for_changes_nothing():
    wide = data(size=0.2, spread=5)  # 17 to 375 pixels; the recipe's anchors have 16 to 384
    assert chosen(wide) == {}
    assert fit(wide, LITE0, GPU) == ([], [])


def test_small_objects_get_larger_images():
    small = 0.056  # of the short side, for a quarter of the objects: 32 pixels at 571
    found = chosen(data(size=small, spread=1.0))
    assert found[keys.VAL_SHORT_SIDE] == 576
    assert found[keys.SHORT_SIDES] == [384, 416, 448, 512, 544, 576]
    assert found[keys.MAX_SIZE] == found[keys.VAL_MAX_SIZE] == 960  # in the recipe's proportion
    assert found[keys.TTA_SIZES] == [480, 576, 672] and found[keys.TTA_MAX_SIZE] == 1152
    assert keys.CROP not in found  # not large enough
    assert keys.VAL_SHORT_SIDE not in chosen(data(size=32 / 480, spread=1.0))


def test_much_larger_images_are_cropped_for_training():
    found = chosen(data(size=0.03, spread=1.0))
    assert found[keys.VAL_SHORT_SIDE] == 1056
    assert found[keys.CROP]["size"] == [480, 480] and found[keys.RECOMPUTE_BOXES] is True
    assert keys.RECOMPUTE_BOXES not in chosen(
        data(size=0.03, spread=1.0), replace(LITE0, masks=False)
    )


@pytest.mark.parametrize(
    ("fingerprint", "recipe"),
    [
        (data(size=0.03, spread=1.0, length=0.5), LITE0),  # 528 pixels
        (data(size=0.03, spread=1.0), replace(LITE0, object_crop=False)),
    ],
)
def test_without_crops_images_grow_less(fingerprint, recipe):
    """Objects that do not fit into a crop, or a mapper that passes no boxes, prevent crops."""
    found = chosen(fingerprint, recipe)
    assert keys.CROP not in found
    assert found[keys.VAL_SHORT_SIDE] == 608  # 1.3 times the recipe's


def test_sizes_have_limits():
    assert chosen(data(size=0.005, spread=1.0, aspect=1.2))[keys.VAL_SHORT_SIDE] == 1600
    long = chosen(data(size=0.005, spread=1.0, aspect=2.5))
    assert long[keys.VAL_SHORT_SIDE] == 992  # a long side of up to 2500 pixels
    assert long[keys.MAX_SIZE] == 2480  # the bound does not shrink the images again


def test_the_users_sizes_stay():
    small = data(size=0.03, spread=1.0)
    assert sizes_of(chosen(small, by_hand=[keys.SHORT_SIDES])).keys() <= {keys.ANCHORS}
    assert sizes_of(chosen(small, by_hand=[keys.MAX_SIZE])).keys() <= {keys.ANCHORS}
    found = chosen(small, by_hand=[keys.VAL_SHORT_SIDE, keys.TTA_SIZES])
    assert keys.VAL_SHORT_SIDE not in found and keys.TTA_SIZES not in found
    assert max(found[keys.SHORT_SIDES]) == 1056
    choices, _ = fit(small, LITE0, CPU, [keys.VAL_SHORT_SIDE])
    assert choices[0].reason.endswith(
        "; evaluation keeps your size, so objects are smaller there than in training"
    )
    assert not sizes_of(chosen(small, replace(LITE0, crops=True))).keys() - {keys.ANCHORS}
    assert fit(small, replace(LITE0, crops=True), CPU)[1] == [
        "image sizes: other augmentations set them"
    ]


def test_anchors_follow_a_bound_of_the_long_side():
    wide = data(size=0.5, spread=2.5, aspect=2.0)
    limited = chosen(wide, replace(LITE0, max_size=400), by_hand=[keys.MAX_SIZE])
    assert limited[keys.ANCHORS][0][0] == pytest.approx(0.5 * 2.5 ** (-48 / 50) * 200, abs=1)


def test_anchors_follow_the_sizes_in_training_images():
    side = 400  # mean of the recipe's short sides
    found = chosen(data(size=0.3, spread=2.5))[keys.ANCHORS]
    flat = [size for level in found for size in level]
    assert [len(level) for level in found] == [2, 2, 2, 2]  # the shapes of the weights stay
    assert flat == sorted(flat)
    assert flat[0] == pytest.approx(0.3 * 2.5 ** (-48 / 50) * side, abs=1)
    assert flat[-1] == pytest.approx(0.3 * 2.5 ** (48 / 50) * side, abs=1)
    ratios = [b / a for a, b in zip(flat, flat[1:], strict=False)]
    assert max(ratios) / min(ratios) < 1.03


def test_levels_that_are_too_fine_for_all_objects_keep_their_anchors():
    found = chosen(data(size=0.6, spread=1.5))[keys.ANCHORS]  # 162 to 354 pixels
    assert found[:2] == LITE0.anchors[:2]  # up to 8 strides: 64 and 128 pixels
    flat = [size for level in found[2:] for size in level]
    assert flat[0] == pytest.approx(163, abs=1) and flat[-1] == pytest.approx(354, abs=1)
    huge = chosen(data(size=2.0, spread=1.1))[keys.ANCHORS]  # the coarsest level has no other
    assert huge[:3] == LITE0.anchors[:3]
    assert huge[3][0] == pytest.approx(2 * 400 * 1.1**-0.96, abs=1)


def test_anchors_are_not_smaller_than_their_stride_allows():
    found = chosen(data(size=0.08, spread=1.0))[keys.ANCHORS]
    assert all(min(level) >= 1.5 * stride for level, stride in zip(found, LITE0.strides))  # noqa: B905
    flat = [size for level in found for size in level]
    assert all(b > a for a, b in zip(flat, flat[1:], strict=False))  # although all sizes are equal


def test_close_anchors_and_those_of_trained_detectors_stay():
    wide = data(size=0.2, spread=5)  # 17 to 375 pixels
    for first, last in ((15, 330), (19, 430)):
        near = replace(LITE0, anchors=[[first, 28], [48, 72], [112, 168], [256, last]])
        assert keys.ANCHORS not in chosen(wide, near)
    for first, last in ((14, 384), (20, 384), (16, 320), (16, 440)):
        off = replace(LITE0, anchors=[[first, 28], [48, 72], [112, 168], [256, last]])
        assert keys.ANCHORS in chosen(wide, off)
    far = data(size=0.5, spread=1.6)
    recipe = replace(LITE0, detector_weights=True)
    choices, skipped = fit(far, recipe, CPU)
    assert keys.ANCHORS not in {choice.key for choice in choices}
    assert skipped == ["anchors: the initial weights are those of a detector"]
    theirs = [[9, 14], [22, 34], [52, 80], [120, 184]]
    known = replace(recipe, detector={keys.ANCHORS: theirs})
    assert chosen(far, known)[keys.ANCHORS] == theirs and not fit(far, known, CPU)[1]
    other = replace(known, detector={keys.ANCHORS: [[9], [22], [52], [120]]})  # of another model
    assert keys.ANCHORS not in chosen(far, other)


def test_few_images_get_small_batches_on_a_cpu():
    found = chosen(data(images=499, size=0.2, spread=5))
    assert found[keys.BATCH] == 2 and found[keys.RATE] == 0.000354  # 5e-4 / sqrt(2)
    assert keys.BATCH not in chosen(data(images=500))
    assert keys.BATCH not in chosen(data(images=499), hardware=GPU)
    assert chosen(data(images=99), hardware=Hardware("cpu", cores=8))[keys.BATCH] == 2
    assert keys.BATCH not in chosen(data(images=99), hardware=Hardware("cpu", cores=9))
    assert chosen(data(images=99), hardware=Hardware("cpu", unit=2))[keys.BATCH] == 2
    assert keys.BATCH not in chosen(data(images=99), hardware=Hardware("cpu", unit=4))


def test_a_small_batch_divides_among_the_workers_that_the_rate_is_for():
    few = data(images=499, size=0.2, spread=5)
    recipe = replace(LITE0, batch=16, workers=8)
    found = chosen(few, recipe)
    assert (found[keys.BATCH], found[keys.WORKERS]) == (2, 1)
    assert keys.WORKERS not in chosen(few, replace(LITE0, workers=2))
    # `train.auto_scale_lr` chooses the batch itself, and some loaders have one of their own.
    for other in (replace(recipe, scaled=True), replace(recipe, follows=False)):
        assert not {keys.BATCH, keys.WORKERS} & chosen(few, other).keys()
    assert keys.BATCH not in chosen(few, recipe, by_hand=[keys.WORKERS])


def test_the_rate_follows_the_users_batch():
    wide = data(images=499, size=0.2, spread=5)
    recipe = replace(LITE0, batch=16)  # the recipe's rate is for 4
    found = chosen(wide, recipe, by_hand=[keys.BATCH])
    assert keys.BATCH not in found and found[keys.RATE] == pytest.approx(1e-3)
    assert chosen(wide, replace(recipe, linear=True), by_hand=[keys.BATCH])[keys.RATE] == 2e-3
    assert keys.RATE not in chosen(wide, recipe, by_hand=[keys.BATCH, keys.RATE])
    assert chosen(wide, recipe, by_hand=[keys.TOTAL_BATCH])[keys.RATE] == pytest.approx(1e-3)
    scaled = replace(recipe, scaled=True)  # `train.auto_scale_lr` scales it
    assert keys.RATE not in chosen(wide, scaled, by_hand=[keys.TOTAL_BATCH])


@pytest.mark.parametrize("images", [1000, 61])  # with the recipe's batch of 4, and with 2
def test_layers_that_start_from_random_weights_train_faster(images):
    wide = data(images=images, size=0.2, spread=5)
    backbone = replace(LITE0, backbone_weights=True, sets_rates=True)
    found = chosen(wide, backbone)
    own = chosen(wide).get(keys.RATE, LITE0.rate)
    assert found[keys.RATE] == pytest.approx(3 * own, rel=0.01)
    factors = found[keys.RATE_FACTORS]["factors"]
    assert factors["backbone.bottom_up"] * found[keys.RATE] == pytest.approx(own, rel=0.01)
    for other in (replace(backbone, sets_rates=False), replace(backbone, backbone_weights=False)):
        assert keys.RATE_FACTORS not in chosen(wide, other)
    for key in (keys.RATE, keys.RATE_FACTORS):
        assert keys.RATE_FACTORS not in chosen(wide, backbone, by_hand=[key])


def test_a_box_head_that_starts_from_random_weights_gets_convolutions():
    wide = data(size=0.2, spread=5)
    recipe = replace(LITE0, box_channels=96, backbone_weights=True)
    assert chosen(wide, recipe) == {keys.BOX_CONVOLUTIONS: [96, 96]}
    assert chosen(wide, recipe, by_hand=[keys.BOX_CONVOLUTIONS]) == {}
    assert chosen(wide, replace(recipe, box_channels=None)) == {}
    trained = replace(recipe, backbone_weights=False)  # a detector's, or random
    assert chosen(wide, trained) == {}
    trained = replace(trained, detector={keys.BOX_CONVOLUTIONS: [96]})
    assert chosen(wide, trained) == {keys.BOX_CONVOLUTIONS: [96]}


def test_small_sets_are_trained_for_enough_steps():
    found = chosen(data(images=61, size=0.2, spread=5))
    assert found[keys.EPOCHS] == math.ceil(1000 * 2 / 61) == 33
    assert found[keys.EVALUATIONS] == found[keys.CHECKPOINTS] == "11 epochs"
    assert keys.WARMUP not in found
    assert chosen(data(images=40, size=0.2, spread=5))[keys.EPOCHS] == 42  # 1.75 times 24
    assert chosen(data(images=4, size=0.2, spread=5))[keys.EPOCHS] == 250  # 500 steps
    assert keys.EPOCHS not in chosen(data(images=167, size=0.2, spread=5), hardware=GPU)
    assert chosen(data(images=166, size=0.2, spread=5), hardware=GPU)[keys.EPOCHS] == 25


def test_the_length_counts_images_of_an_epoch_and_of_a_step():
    few = data(images=61, size=0.2, spread=5)
    assert chosen(few, replace(LITE0, images=80))[keys.EPOCHS] == 1000 * 2 / 80 == 25
    assert keys.EPOCHS not in chosen(few, replace(LITE0, images=610))
    scaled = replace(LITE0, scaled=True, workers=1)  # 8 images per step on 2 workers
    found = chosen(few, scaled, Hardware("cpu", unit=2, workers=2))
    assert found[keys.EPOCHS] == math.ceil(500 * 8 / 61) == 66


def test_a_recipe_without_periodic_evaluations_gets_none():
    found = chosen(data(images=61, size=0.2, spread=5), replace(LITE0, evaluates=False))
    assert keys.EVALUATIONS not in found and keys.CHECKPOINTS in found


def test_a_short_run_has_a_shorter_warmup():
    recipe = replace(LITE0, warmup=100)
    assert chosen(data(images=4, size=0.2, spread=5), recipe)[keys.WARMUP] == 50  # of 500 steps


def test_larger_images_take_fewer_epochs():
    small = data(images=40, size=0.0527, spread=1.0)
    sizes = chosen(small)
    assert keys.CROP not in sizes and max(sizes[keys.SHORT_SIDES]) == 608  # was 480
    pixels = (608 / 480) ** 2
    assert sizes[keys.EPOCHS] == pytest.approx(42 / pixels, abs=1.5)


@pytest.mark.parametrize("key", [keys.EPOCHS, keys.ITERATIONS])
def test_the_users_length_keeps_its_periods(key):
    found = chosen(data(images=61, size=0.2, spread=5), by_hand=[key])
    assert not {keys.EPOCHS, keys.EVALUATIONS, keys.CHECKPOINTS, keys.WARMUP} & found.keys()


def test_images_with_rare_classes_are_repeated():
    found = chosen(data(images=1000, size=0.2, spread=5, classes=(800, 0, 20)))
    assert found == {keys.OVERSAMPLING: 0.08}  # the rarest class twice as often: sqrt(0.08 / 0.02)
    for counts in ((290, 29), (3000, 30)):  # a tenth, and enough images
        assert chosen(data(images=1000, size=0.2, spread=5, classes=counts)) == {}
    given = replace(LITE0, oversampling=0.5)
    assert chosen(data(size=0.2, spread=5, classes=(800, 20)), given) == {}


def test_rules_that_do_not_apply_are_named():
    choices, skipped = fit(data(images=61), RecipeValues(), CPU)
    assert choices == []
    assert skipped == [
        "image sizes: the first augmentation is not a ResizeShortestEdge",
        "anchors: the model has no model.proposal_generator.anchor_generator.sizes for each level",
        "batch and length: dataloader.train has no total_batch_size",
    ]


def test_choices_can_be_stored():
    choices, _ = fit(data(images=61, size=0.03, spread=1.0, classes=(50, 2)), LITE0, CPU)
    text = msgspec.json.encode(choices)
    assert msgspec.json.decode(text, type=list[type(choices[0])]) == choices
    assert len({choice.reason for choice in choices}) <= 8  # lines of the plan
