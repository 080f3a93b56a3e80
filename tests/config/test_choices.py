"""Values set by hand are recognized, and chosen values are applied to a config."""

from pathlib import Path

import detectron2
import pytest
from omegaconf import OmegaConf

import d2ext
from d2ext.config import by_hand as keys
from d2ext.config.choices import Choice, recipe_of, set_by_hand, with_choices
from d2ext.config.load import load_config
from d2ext.config.recipes import copy_recipe, recipes
from d2ext.errors import UserError

RECIPE = "custom/mask_rcnn_lite0_fpn.py"
MAPPER = "dataloader.train.mapper"


def hand(cfg):
    return set_by_hand(cfg, recipe_of(cfg))


@pytest.mark.parametrize("name", [name for name, _ in recipes() if name.startswith("custom/")])
def test_nothing_in_a_recipe_is_set_by_hand(name):
    cfg = d2ext.get_config(name)
    assert cfg.data.auto and cfg.data.recipe == name
    assert hand(cfg) == set()


def test_other_recipes_are_not_fitted_even_with_data_of_the_user():
    cfg = d2ext.get_config("mask_rcnn/mask_rcnn_r50_fpn_1x_coco.py", ["data.train.json=a.json"])
    assert not cfg.data.auto and cfg.data.recipe is None


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("optimizer.lr=5e-4", {keys.RATE}),  # the recipe's own value
        (f"{MAPPER}.augmentations[0].short_edge_length=[640]", {keys.SHORT_SIDES}),
        ("train.max_epochs=24", {keys.EPOCHS, keys.ITERATIONS}),
        ("train.max_iter=9", {keys.EPOCHS, keys.ITERATIONS}),
        ("dataloader.train.total_batch_size=8", {keys.TOTAL_BATCH}),
        ("dataloader.tta={min_sizes: [300]}", {keys.TTA_SIZES, keys.TTA_MAX_SIZE}),
        ("model.proposal_generator.anchor_generator.sizes[0]=[9, 12]", {keys.ANCHORS}),
        (f"{MAPPER}.augmentations[1]={{horizontal: false}}", {keys.CROP}),
        (f"{MAPPER}.augmentations[1].horizontal=false", set()),  # the recipe's flip
        (f"+{MAPPER}.recompute_boxes=True", {keys.RECOMPUTE_BOXES}),
        ("train.checkpointer={period: 10}", {keys.CHECKPOINTS}),
        ("train.seed=3", set()),
    ],
)
def test_overrides_are_set_by_hand(override, expected):
    cfg = d2ext.get_config(RECIPE, [override])
    assert hand(cfg) == expected
    # Without a recipe to compare with, overrides still count.
    cfg.data.recipe = None
    assert hand(cfg) == expected


def test_a_list_of_augmentations_sets_sizes_and_crop():
    resize = "{_target_: detectron2.data.transforms.ResizeShortestEdge, short_edge_length: 99}"
    cfg = d2ext.get_config(RECIPE, [f"{MAPPER}.augmentations=[{resize}]"])
    assert hand(cfg) == {keys.SHORT_SIDES, keys.MAX_SIZE, keys.CROP}


def test_changes_in_python_and_in_a_copy_are_set_by_hand(tmp_path):
    cfg = d2ext.get_config(RECIPE)
    cfg.train.reference_batch_size = 8
    assert hand(cfg) == {keys.BATCH, keys.TOTAL_BATCH}  # an interpolation of it
    cfg = d2ext.get_config(RECIPE)
    crop = {"_target_": "detectron2.data.transforms.RandomCrop", "crop_size": [9, 9]}
    cfg.dataloader.train.mapper.augmentations.insert(1, crop)
    assert hand(cfg) == {keys.CROP}
    copy = copy_recipe(RECIPE, tmp_path / "mine.py")
    assert hand(load_config(copy)) == set()
    text = copy.read_text()
    copy.write_text(text.replace("train.max_epochs = 24", "train.max_epochs = 30"))
    assert text != copy.read_text()
    assert hand(load_config(copy)) == {keys.EPOCHS}


def test_a_file_names_what_is_set_by_hand(tmp_path):
    file = tmp_path / "mine.py"
    lines = ["import d2ext", f'cfg = d2ext.get_config("{RECIPE}", ["optimizer.lr=5e-4"])']
    lines += ["globals().update(cfg)", 'data.by_hand.append("train.max_epochs")']
    file.write_text("\n".join(lines))
    cfg = load_config(file, ["train.warmup_iters=50"])
    assert hand(cfg) == {keys.RATE, keys.EPOCHS, keys.ITERATIONS, keys.WARMUP}


def test_by_hand_names_only_fields_that_may_be_chosen():
    with pytest.raises(UserError, match=r"by_hand\[0\]='optimizer.lrr' is not .* 'optimizer.lr'"):
        d2ext.get_config(RECIPE, ["data.by_hand=[optimizer.lrr]"])


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("custom/mask_rcnn_lite0_fnp.py", "did you mean 'custom/mask_rcnn_lite0_fpn.py'?"),
        ("mine.py", "`d2ext recipes` lists them"),
        ("/nowhere/mine.py", "`d2ext recipes` lists them"),
        ("notes.txt", "`d2ext recipes` lists them"),
        ("custom", "`d2ext recipes` lists them"),
        ("common/train.py", "`d2ext recipes` lists them"),
    ],
)
def test_an_unknown_recipe_is_an_error(tmp_path, monkeypatch, name, hint):
    """So are files that are not recipes, such as parts of recipes."""
    monkeypatch.chdir(tmp_path)
    for file in ("mine.py", "notes.txt"):
        (tmp_path / file).write_text("cfg = 1")
    cfg = d2ext.get_config(RECIPE, [f"data.recipe={name}"])
    with pytest.raises(UserError) as e:
        hand(cfg)
    assert str(e.value) == f"data.recipe: there is no recipe {name!r}; {hint}"


def test_chosen_values_are_applied_once():
    cfg = d2ext.get_config(RECIPE, ["train.seed=3"])
    crop = {"_target_": "d2ext.data.loading.augment.object_crop.ObjectCrop", "size": [9, 9]}
    values = {
        keys.SHORT_SIDES: [64, 96],
        keys.CROP: crop,
        keys.RECOMPUTE_BOXES: True,
        keys.ANCHORS: [[8], [16], [32], [64]],
        keys.BATCH: 2,
    }
    made = with_choices(cfg, [Choice(key, value, "") for key, value in values.items()])
    mapper = made.dataloader.train.mapper
    assert mapper.augmentations[0].short_edge_length == [64, 96]
    assert mapper.augmentations[0].max_size == 800
    assert mapper.augmentations[1] == crop and len(mapper.augmentations) == 3
    assert mapper.recompute_boxes is True
    assert made.model.proposal_generator.anchor_generator.sizes == [[8], [16], [32], [64]]
    assert made.dataloader.train.total_batch_size == 2  # an interpolation
    assert (made.data.auto, made.data.recipe, made.data.by_hand) == (False, None, [])
    assert cfg.data.auto and len(cfg.dataloader.train.mapper.augmentations) == 2


@pytest.mark.parametrize(
    "name",
    [
        "COCO-Detection/retinanet_R_50_FPN_1x.py",
        "COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_1x.yaml",
    ],
)
def test_choices_follow_interpolations_of_imported_configs(name):
    """There, `dataloader.val` refers to `dataloader.test`."""
    folder = Path(detectron2.__file__).parent / "model_zoo/configs"
    own = [f"data.{s}.{key}={s}.json" for s in ("train", "val") for key in ("json", "images")]
    cfg = load_config(folder / name, [*own, "data.auto=True"])
    before = OmegaConf.to_container(cfg.dataloader.val.dataset)
    made = with_choices(
        cfg, [Choice(keys.VAL_SHORT_SIDE, 64, ""), Choice(keys.VAL_MAX_SIZE, 99, "")]
    )
    for loader in (made.dataloader.val, made.dataloader.test):
        resize = loader.mapper.augmentations[0]
        assert (resize.short_edge_length, resize.max_size) == (64, 99)
        assert OmegaConf.to_container(loader.dataset) == before != {}
    assert cfg.dataloader.val.mapper.augmentations[0].short_edge_length != 64


def test_a_budget_without_data_auto_records_overrides():
    overrides = ["train.budget=10 min", "train.eval_period=5"]
    cfg = d2ext.get_config("mask_rcnn/mask_rcnn_r50_fpn_1x_coco.py", overrides)
    assert hand(cfg) == {keys.EVALUATIONS}
    assert with_choices(cfg, []).train.budget is None
