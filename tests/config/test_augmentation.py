"""Presets of augmentation in configs of all kinds: what they keep, replace, add and refuse."""

import copy
import json
import re

import pytest
from detectron2 import model_zoo
from detectron2.config import LazyCall as L
from detectron2.config import instantiate
from omegaconf import OmegaConf

from d2ext.config.augmentation import augmentation_lines, with_augmentation
from d2ext.config.check import PRESETS, shared_fields, training_fields
from d2ext.config.load import load_config
from d2ext.config.model_kind import returns_masks
from d2ext.errors import UserError
from tests.configs.test_recipes import RECIPES

MASK = "configs/custom/mask_rcnn_lite0_fpn.py"
FASTER = "configs/custom/faster_rcnn_lite0_fpn.py"
OURS = "d2ext.data.loading.augment."
BLUR = f"{OURS}quality.RandomBlur"


@pytest.fixture(scope="module")
def loaded(repo):
    """Return a function that loads a recipe once, with a value for `data.augmentation`."""
    known = {}

    def load(recipe, chosen, **mapper):
        if recipe not in known:
            known[recipe] = load_config(repo / recipe)
        cfg = copy.deepcopy(known[recipe])
        cfg.data.augmentation = chosen
        cfg.dataloader.train.mapper.update(mapper)
        return cfg

    return load


def _lines(cfg):
    return augmentation_lines(cfg, with_augmentation(cfg))


def _names(cfg):
    """Return the names of the augmentations, in order; of those applied to a share, its name."""
    nodes = [node.get("tfm_or_aug") or node for node in cfg.dataloader.train.mapper.augmentations]
    return [
        str(getattr(node._target_, "__name__", node._target_)).rpartition(".")[2] for node in nodes
    ]


@pytest.mark.parametrize("recipe", RECIPES)
def test_every_recipe_takes_every_preset(repo, recipe):
    """Sizes are set first, in the recipe's order; everything else is replaced."""
    given = load_config(repo / recipe)
    before = _names(given)
    sizes = [name for name in before if "Resize" in name or "Crop" in name]
    for preset in PRESETS:
        given.data.augmentation = preset
        cfg = with_augmentation(given)
        assert given.data.augmentation == preset and _names(given) == before
        names = _names(cfg)
        assert names[: len(sizes)] == sizes
        added = names[len(sizes) :]
        masks = returns_masks(cfg.model) and cfg.dataloader.train.mapper.use_instance_mask
        quality = ["RandomBlur", "RandomNoise", "RandomJpeg"]
        rotation = ["RandomRotateShear"] if masks else []
        assert (
            added
            == {
                "none": [],
                "light": ["RandomFlip", "ColorJitter"],
                "strong": ["RandomFlip", *rotation, "ColorJitter", *quality],
                "aerial": ["RandomFlip", "RandomQuarterTurn", "ColorJitter"],
            }[preset]
        )
        strong = masks and preset == "strong"
        assert bool(cfg.dataloader.train.get("copy_paste")) == strong
        recomputes = cfg.dataloader.train.mapper.get("recompute_boxes", False)
        assert recomputes == (strong or given.dataloader.train.mapper.get("recompute_boxes", False))
        assert with_augmentation(cfg) is cfg  # applying it again changes nothing
        OmegaConf.to_container(cfg, resolve=True)
        assert augmentation_lines(given, cfg)[0].startswith(f"{preset}: ")


def test_recipes_keep_their_own_augmentation_by_default(loaded):
    cfg = loaded(MASK, None)
    assert with_augmentation(cfg) is cfg
    assert _lines(cfg) == ["the recipe's: ResizeShortestEdge, RandomFlip"]


def test_the_plan_says_what_is_on_and_why_something_is_off(loaded):
    lines = _lines(loaded(MASK, "strong"))
    assert lines == [
        "strong: ResizeShortestEdge, RandomFlip, RandomRotateShear (30 %), ColorJitter"
        " (80 %), RandomBlur (10 %), RandomNoise (10 %), RandomJpeg (10 %), copy-paste (50 %)",
        "boxes are fitted to the augmented masks (dataloader.train.mapper.recompute_boxes=True)",
    ]
    text = "\n".join(_lines(loaded(FASTER, "strong")))
    assert "no copy-paste, because the model has no masks" in text
    assert "no rotation, because boxes without masks" in text
    cfg = loaded(MASK, "strong", use_instance_mask=False)
    assert "copy-paste, because dataloader.train.mapper.use_ins" in "\n".join(_lines(cfg))
    cfg = loaded(MASK, "strong")
    cfg.dataloader.train.copy_paste = None  # set by hand, so it stays
    assert with_augmentation(cfg).dataloader.train.copy_paste is None
    assert "dataloader.train.copy_paste is null" in "\n".join(_lines(cfg))
    cfg = loaded(MASK, "light")
    cfg.dataloader.train.copy_paste = {"_target_": f"{OURS}copy_paste.CopyPaste", "prob": 0.2}
    assert "ColorJitter, copy-paste (20 %)" in _lines(cfg)[0]


@pytest.mark.parametrize(
    ("image_format", "expected"), [("RGB", "RGB"), ("BGR", "BGR"), ("L", "L"), (None, "RGB")]
)
def test_colors_follow_the_image_format_of_the_mapper(loaded, image_format, expected):
    for preset in ("light", "strong"):
        cfg = with_augmentation(loaded(MASK, preset, image_format=image_format))
        nodes = [n.get("tfm_or_aug") or n for n in cfg.dataloader.train.mapper.augmentations]
        formats = [node.image_format for node in nodes if "image_format" in node]
        assert formats == [expected] * (1 if preset == "light" else 2)
        instantiate(cfg.dataloader.train.mapper.augmentations)
    with pytest.raises(UserError, match="light cannot change the colors of .*image_format=YUV"):
        with_augmentation(loaded(MASK, "light", image_format="YUV-BT.601"))


def test_rotated_corners_get_the_mean_color_of_the_model(loaded):
    def pad_value(**model):
        cfg = loaded(MASK, "strong")
        cfg.model.update(model)
        nodes = [
            n.get("tfm_or_aug")
            for n in with_augmentation(cfg).dataloader.train.mapper.augmentations
        ]
        return list(next(n.pad_value for n in nodes if n and "pad_value" in n))

    assert pad_value(pixel_mean=[100, 110, 120]) == [100, 110, 120]
    assert pad_value(pixel_mean=[0.5, 0.4, 0.4]) == [128, 128, 128]  # not in levels
    assert pad_value(pixel_mean="${model.input_format}") == [128, 128, 128]


def test_a_list_of_augmentations_and_presets(loaded):
    blur = {"_target_": "detectron2.data.transforms.RandomApply", "tfm_or_aug": {"_target_": BLUR}}
    jpeg = {"_target_": f"{OURS}quality.RandomJpeg"}
    given = loaded(
        MASK, ["light", blur, jpeg, {"_target_": f"{OURS}object_crop.ObjectCrop", "size": [9, 9]}]
    )
    cfg = with_augmentation(given)
    expected = [
        "ResizeShortestEdge",
        "RandomFlip",
        "ColorJitter",
        "RandomBlur",
        "RandomJpeg",
        "ObjectCrop",
    ]
    assert _names(cfg) == expected
    assert cfg.dataloader.train.mapper.augmentations[4].image_format == "RGB"
    assert cfg.dataloader.train.mapper.recompute_boxes  # because of the crop
    assert with_augmentation(cfg) is cfg
    assert _lines(given)[0].startswith("your list: ResizeShortestEdge, ")


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        (5, r"data.augmentation\[1\]=5: takes a dict with the _target_"),
        ({"prob": 1}, r"data.augmentation\[1\]={'prob': 1}: takes a dict"),
        ("lihgt", r"data.augmentation\[1\]='lihgt' is not the name of a preset; did you .*'light'"),
        ({"_target_": "nothing.Here"}, r"data.augmentation\[1\]._target_=nothing.Here cannot be"),
        ({"_target_": f"{OURS}color.Jitter"}, r"\[1\]._target_=.*color.Jitter cannot be imported"),
        ({"_target_": BLUR, "sigmas": 3}, r"data.augmentation\[1\] cannot be built: TypeError"),
        ({"_target_": BLUR, "sigma": [0, 1]}, r"data.augmentation\[1\] .*give positive numbers"),
        ({"_target_": BLUR, "sigma": [2, 1]}, r"data.augmentation\[1\] .*the smaller one first"),
        ({"_target_": f"{OURS}copy_paste.CopyPaste"}, "; set dataloader.train.copy_paste instead"),
        ({"_target_": "albumentations.NoOp"}, "; put it into the transforms of .*Pipeline"),
        ({"_target_": "collections.Counter"}, r"\[1\]: .*Counter makes a Counter; give a Detect"),
    ],
)
def test_invalid_entries_are_named(loaded, entry, words):
    with pytest.raises(UserError, match=words) as e:
        with_augmentation(loaded(MASK, ["none", entry]))
    assert len(str(e.value).splitlines()) == 1


def test_a_module_that_cannot_be_imported_says_why(loaded, tmp_path, monkeypatch):
    (tmp_path / "my_flips.py").write_text("import a_missing_package\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UserError, match=r"its module .*No module named 'a_missing_package'; fix"):
        with_augmentation(loaded(MASK, [{"_target_": "my_flips.Flip"}]))


def test_overrides_set_presets_where_there_is_no_section_data(repo, tmp_path):
    cityscapes = "configs/cityscapes/mask_rcnn_r50_fpn_1x_cityscapes.py"
    for file in (
        model_zoo.get_config_file("COCO-Detection/retinanet_R_50_FPN_1x.py"),
        repo / cityscapes,
    ):
        cfg = load_config(file, ["data.augmentation=aerial"])
        assert "RandomQuarterTurn" in _names(with_augmentation(cfg))
    text = f"[light, {{_target_: {BLUR}, sigma: [1, 2]}}]"
    cfg = with_augmentation(load_config(repo / cityscapes, [f"data.augmentation={text}"]))
    assert _names(cfg)[-1] == "RandomBlur"
    for value, hint in (("storng", "; did you mean 'strong'?"), ("3", "")):
        words = rf"data.augmentation=\S*{value}\S*: takes .*strong.*null{re.escape(hint)}$"
        with pytest.raises(UserError, match=words):
            load_config(repo / MASK, [f"data.augmentation={value}"])


@pytest.mark.parametrize(
    ("name", "pixel_format"),
    [("COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_1x.yaml", "BGR")],
)
def test_yacs_configs(name, pixel_format):
    cfg = load_config(
        model_zoo.get_config_file(name), ["data.augmentation=strong", "INPUT.RANDOM_FLIP=none"]
    )
    made = with_augmentation(cfg)
    assert _names(made)[:3] == ["ResizeShortestEdge", "RandomFlip", "RandomRotateShear"]
    mapper = made.dataloader.train.mapper
    assert mapper._target_ == "d2ext.data.loading.mapper.Mapper"  # for boxes and padded masks
    assert mapper.recompute_boxes is True and made.dataloader.train.copy_paste.prob == 0.5
    rotation = mapper.augmentations[2].tfm_or_aug
    assert list(rotation.pad_value) == [103.53, 116.28, 123.675]
    assert mapper.augmentations[3].tfm_or_aug.image_format == pixel_format
    instantiate(mapper)


def test_lazy_configs_of_detectron2_with_keypoints():
    """A config without flips gets the indices that flips need."""
    file = model_zoo.get_config_file("COCO-Keypoints/keypoint_rcnn_R_50_FPN_1x.py")
    cfg = load_config(file, ["data.augmentation=light"])
    cfg.dataloader.train.mapper.keypoint_hflip_indices = None
    made = with_augmentation(cfg).dataloader.train.mapper
    assert made.keypoint_hflip_indices._target_.endswith("keypoints.flip_indices")
    assert made.keypoint_hflip_indices.dataset_names == "keypoints_coco_2017_train"


def test_a_file_may_set_a_preset_for_own_data(tmp_path, tiny_coco):
    """The files of your own data do not reset it."""
    (tmp_path / "mine.py").write_text(
        "import d2ext\n"
        "globals().update(d2ext.get_config('mask_rcnn/mask_rcnn_r50_fpn_1x_coco.py'))\n"
        "data['augmentation'] = 'light'\n"
    )
    cfg = load_config(tmp_path / "mine.py", ["data.train.json=a.json", "data.train.images=b"])
    assert cfg.data.augmentation == "light" and cfg.data.train.json == "a.json"


def test_mappers_without_a_list_are_refused(loaded):
    class Theirs:
        """A mapper with other arguments, as in detrex."""

        def __init__(self, augmentation, augmentation_with_crop):
            pass

    cfg = loaded(MASK, "light")
    cfg.dataloader.train.mapper = L(Theirs)(augmentation=[], augmentation_with_crop=[])
    with pytest.raises(UserError, match="data.augmentation=light: .*mapper has no list `augment"):
        with_augmentation(cfg)
    cfg.data.augmentation = None
    assert _lines(cfg) == []


def test_loaders_of_others_get_no_copy_paste(loaded):
    cfg = loaded(MASK, "strong")
    cfg.dataloader.train._target_ = "detectron2.data.build_detection_train_loader"
    assert "copy_paste" not in with_augmentation(cfg).dataloader.train
    assert "a loader of the config's own" in "\n".join(_lines(cfg))


def test_another_preset_is_a_change_on_resume_and_between_machines(loaded):
    none, light, strong = (loaded(MASK, preset) for preset in (None, "light", "strong"))
    for fields in (shared_fields, training_fields):
        assert fields(light)["data.augmentation"] == "light"
        assert fields(light) != fields(strong)
        assert "data.augmentation" not in fields(none)
        assert fields(loaded(MASK, []))["data.augmentation"] == "[]"
    assert (
        training_fields(loaded(MASK, [{"_target_": BLUR}]))["data.augmentation.0._target_"] == BLUR
    )


def test_the_saved_config_has_the_name(loaded, tmp_path):
    from d2ext.config.yaml_io import parse_saved, saved_text

    text, lost = saved_text(loaded(MASK, ["strong", {"_target_": BLUR}]))
    assert lost is None
    assert json.loads(json.dumps(OmegaConf.to_container(parse_saved(text).data.augmentation))) == [
        "strong",
        {"_target_": BLUR},
    ]
