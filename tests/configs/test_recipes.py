"""Every recipe loads, names its reference, and trains a step of the model it describes."""

import json
import os
import pickle
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pycocotools.mask
import pytest
import torch
from detectron2.config import instantiate
from detectron2.data.datasets.builtin_meta import COCO_PERSON_KEYPOINT_NAMES

from d2ext.config.load import load_config
from d2ext.config.lr_scaling import check_name

BALLOON = {
    "configs/balloon/mask_rcnn_lite0_fpn_balloon.py",
    "configs/balloon/mask_rcnn_lite1_fpn_balloon.py",
    "configs/balloon/mask_rcnn_lite1_fpn_strong_balloon.py",
    "configs/balloon/mask_rcnn_r50_caffe_fpn_ms_poly_1x_balloon.py",
}
CUSTOM = {
    f"configs/custom/{meta}_rcnn_{net}_fpn.py"
    for meta in ("faster", "mask")
    for net in ("lite0", "lite1", "lite2", "r50")
}
R50_BALLOON = "configs/balloon/mask_rcnn_r50_caffe_fpn_ms_poly_1x_balloon.py"
CITYSCAPES = "configs/cityscapes/mask_rcnn_r50_fpn_1x_cityscapes.py"
FASTER, MASK = "configs/faster_rcnn/faster_rcnn_r50", "configs/mask_rcnn/mask_rcnn_r50"
FASTER_R101, MASK_R101 = FASTER.replace("r50", "r101"), MASK.replace("r50", "r101")
FASTER_X101, MASK_X101 = FASTER.replace("r50", "x101"), MASK.replace("r50", "x101")
CASCADE, RETINANET = "configs/cascade_rcnn/cascade", "configs/retinanet/retinanet_r50"
KEYPOINT = "configs/keypoint_rcnn/keypoint_rcnn_r50_caffe_fpn_ms_90k_coco.py"
VOC = (
    "configs/faster_rcnn/faster_rcnn_r50_fpn_1x_voc0712.py",
    "configs/retinanet/retinanet_r50_fpn_1x_voc0712.py",
)
OPEN_IMAGES = "configs/faster_rcnn/faster_rcnn_r50_fpn_32x2_1x_openimages.py"
CORNERNET = "configs/cornernet/cornernet_hourglass104_mstest"
PISA = "configs/pisa/pisa_faster_rcnn"
SCNET = "configs/scnet/scnet"
VITDET = "configs/vitdet/mask_rcnn_vitdet_b_100ep_coco.py"
# Workers, images per step, learning rate, length in epochs or iterations, and decay milestones.
SCHEDULES = {
    f"{CASCADE}_mask_rcnn_r50_caffe_fpn_ms_poly_3x_coco.py": (8, 16, 0.02, 36, [27, 33]),
    f"{CASCADE}_mask_rcnn_r50_fpn_1x_coco.py": (8, 16, 0.02, 12, [8, 11]),
    f"{CASCADE}_rcnn_r50_fpn_1x_coco.py": (8, 16, 0.02, 12, [8, 11]),
    f"{CORNERNET}_32x3_210e_coco.py": (32, 96, 5e-4, 210, [180]),
    f"{CORNERNET}_8x6_210e_coco.py": (8, 48, 5e-4, 210, [180]),
    f"{FASTER}_caffe_fpn_1x_coco.py": (8, 16, 0.02, 12, [8, 11]),
    f"{FASTER}_caffe_fpn_90k_coco.py": (8, 16, 0.02, 90000, [60000, 80000]),
    f"{FASTER_R101}_caffe_fpn_1x_coco.py": (8, 16, 0.02, 12, [8, 11]),
    f"{FASTER_X101}_32x4d_fpn_1x_coco.py": (8, 16, 0.02, 12, [8, 11]),
    f"{FASTER_X101}_64x4d_fpn_1x_coco.py": (8, 16, 0.02, 12, [8, 11]),
    KEYPOINT: (8, 16, 0.02, 90000, [60000, 80000]),
    f"{MASK}_caffe_fpn_1x_coco.py": (8, 16, 0.02, 12, [8, 11]),
    f"{MASK}_caffe_fpn_ms_poly_1x_coco.py": (8, 16, 0.02, 12, [8, 11]),
    f"{MASK}_caffe_fpn_ms_poly_32x3_3x_coco.py": (32, 96, 0.12, 36, [27, 33]),
    f"{MASK}_caffe_fpn_ms_poly_3x_coco.py": (8, 16, 0.02, 36, [27, 33]),
    f"{MASK}_fpn_1x_coco.py": (8, 16, 0.02, 12, [8, 11]),
    f"{MASK}_fpn_8x1_20e_coco.py": (8, 8, 0.01, 20, [16, 19]),
    f"{MASK_R101}_caffe_fpn_1x_coco.py": (8, 16, 0.02, 12, [8, 11]),
    f"{MASK_R101}_caffe_fpn_ms_poly_3x_coco.py": (8, 16, 0.02, 36, [27, 33]),
    f"{MASK_X101}_32x4d_fpn_1x_coco.py": (8, 16, 0.02, 12, [8, 11]),
    f"{MASK_X101}_64x4d_fpn_1x_coco.py": (8, 16, 0.02, 12, [8, 11]),
    f"{PISA}_r50_fpn_1x_coco.py": (8, 16, 0.02, 12, [8, 11]),
    f"{PISA}_x101_32x4d_fpn_1x_coco.py": (8, 16, 0.02, 12, [8, 11]),
    f"{RETINANET}_fpn_1x_coco.py": (8, 16, 0.01, 12, [8, 11]),
    f"{SCNET}_r101_fpn_20e_coco.py": (8, 16, 0.02, 20, [16, 19]),
    f"{SCNET}_r50_fpn_1x_coco.py": (8, 16, 0.02, 12, [8, 11]),
    f"{SCNET}_x101_64x4d_fpn_8x1_20e_coco.py": (8, 8, 0.01, 20, [16, 19]),
    VITDET: (64, 64, 1e-4, 184375, [163889, 177546]),
    CITYSCAPES: (8, 8, 0.01, 64, [56]),
    **dict.fromkeys(VOC, (8, 16, 0.01, 12, [9])),
    OPEN_IMAGES: (32, 64, 0.08, 12, [8, 11]),
}
RECIPES = sorted({*BALLOON, *CUSTOM, *SCHEDULES})
QUICK = {f"{FASTER}_caffe_fpn_90k_coco.py", f"{MASK}_fpn_1x_coco.py"}  # `make test` trains these

# Recipes with the layers of others that `make test-slow` trains; `make nightly` trains these.
VARIANTS = {
    "configs/custom/faster_rcnn_lite1_fpn.py",
    "configs/custom/faster_rcnn_lite2_fpn.py",
    f"{CASCADE}_mask_rcnn_r50_caffe_fpn_ms_poly_3x_coco.py",
    f"{CASCADE}_rcnn_r50_fpn_1x_coco.py",
    f"{CORNERNET}_8x6_210e_coco.py",
    f"{FASTER}_caffe_fpn_1x_coco.py",
    f"{FASTER_X101}_32x4d_fpn_1x_coco.py",
    f"{FASTER_X101}_64x4d_fpn_1x_coco.py",
    f"{MASK}_caffe_fpn_1x_coco.py",
    f"{MASK}_caffe_fpn_ms_poly_32x3_3x_coco.py",
    f"{MASK}_caffe_fpn_ms_poly_3x_coco.py",
    f"{MASK}_fpn_8x1_20e_coco.py",
    f"{MASK_R101}_caffe_fpn_1x_coco.py",
    f"{MASK_R101}_caffe_fpn_ms_poly_3x_coco.py",
    f"{MASK_X101}_64x4d_fpn_1x_coco.py",
    f"{PISA}_x101_32x4d_fpn_1x_coco.py",
    f"{SCNET}_r101_fpn_20e_coco.py",
    f"{SCNET}_r50_fpn_1x_coco.py",  # tests/mmdetection trains a smaller one
    f"{SCNET}_x101_64x4d_fpn_8x1_20e_coco.py",
}

# A step from random weights (the real ones need the network) on two tiny images.
RANDOM_WEIGHTS = "train.init_checkpoint="
_ONE_STEP = [
    RANDOM_WEIGHTS,
    "train.max_iter=1",
    "train.reference_world_size=1",
    "train.reference_batch_size=2",
    "dataloader.train.num_workers=0",
    "dataloader.val.num_workers=0",
]
ONE_STEP = [
    *_ONE_STEP,
    "dataloader.train.mapper.augmentations[0].short_edge_length=[64,96]",
    "dataloader.val.mapper.augmentations[0].short_edge_length=96",
]
ONE_STEP_OF_A_SMALL_VIT = [
    *_ONE_STEP,
    "train.amp.enabled=False",
    "dataloader.train.mapper.augmentations[1].target_height=64",
    "dataloader.train.mapper.augmentations[1].target_width=64",
    "dataloader.train.mapper.augmentations[2].crop_size=[64, 64]",
    "dataloader.val.mapper.augmentations[0].short_edge_length=64",
    "dataloader.val.mapper.augmentations[0].max_size=64",
    "model.backbone.square_pad=64",
    *(f"model.backbone.net.{size}" for size in ("img_size=64", "embed_dim=48", "depth=4")),
    "model.roi_heads.batch_size_per_image=16",
]
ONE_STEP_OF_A_SMALL_HOURGLASS = [
    *_ONE_STEP,
    "model.backbone.channels=[16,16,24]",
    "model.backbone.blocks=[1,1,2]",
    "dataloader.train.mapper.augmentations[2].shape=[96,96]",
]


def test_the_list_of_recipes_is_complete(repo):
    found = {str(p.relative_to(repo)) for p in (repo / "configs").glob("*/*.py")}
    assert {p for p in found if not p.startswith("configs/common")} == set(RECIPES)


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_recipe_names_its_reference_and_its_command(repo, recipe):
    cfg = load_config(repo / recipe)
    assert cfg.dataloader.train.total_batch_size == cfg.train.reference_batch_size
    assert cfg.train.reference_batch_size % cfg.train.reference_world_size == 0
    check_name(recipe, cfg.train.reference_world_size, cfg.train.reference_batch_size)
    text = (repo / recipe).read_text()
    assert f"CONFIG={recipe.removeprefix('configs/')}\n" in text
    assert "\nReference: " in text  # the source of its numbers
    given = r' "\$\{DATA\[@\]\}"'
    nodes = r' --num-gpus 8 "\$\{NODES\[@\]\}"'
    assert re.search(rf'    d2ext train "\$CONFIG"( --num-gpus 8|{given}|{nodes})?\n', text)
    data = recipe.rpartition("_")[2].removesuffix(".py")
    data = {"voc0712": "voc", "openimages": "open_images"}.get(data, data)
    there = recipe in CUSTOM or data == "balloon"
    stuff = " --stuff" if recipe.startswith(SCNET) else ""
    assert there != (f"    d2ext prepare {data}{stuff}\n" in text)


@pytest.mark.parametrize("recipe", SCHEDULES)
def test_the_schedule_of_a_recipe_matches_its_reference(repo, recipe):
    workers, images, rate, length, steps = SCHEDULES[recipe]
    cfg = load_config(repo / recipe)
    assert (cfg.train.reference_world_size, cfg.train.reference_batch_size) == (workers, images)
    assert cfg.optimizer.lr == pytest.approx(rate)
    assert (cfg.train.max_epochs or cfg.train.max_iter) == length
    multiplier = instantiate(cfg.lr_multiplier.scheduler)
    for i, step in enumerate(steps):
        assert multiplier(0.999 * step / length) == pytest.approx(0.1**i)
        assert multiplier(1.001 * step / length) == pytest.approx(0.1 ** (i + 1))


@pytest.mark.parametrize(
    "recipe", [r for r in SCHEDULES if r != VITDET and not r.startswith(CORNERNET)]
)
def test_the_style_and_scales_of_a_resnet_recipe_match_its_name(repo, recipe):
    """The weights, the model and its input all have PyTorch style or all have Caffe style."""
    cfg = load_config(repo / recipe)
    pytorch = "caffe" not in recipe and recipe != CITYSCAPES
    assert cfg.model.input_format == ("RGB" if pytorch else "BGR")
    for loader in (cfg.dataloader.train, cfg.dataloader.val):
        assert loader.mapper.image_format == cfg.model.input_format
    assert (cfg.model.pixel_std[0] == 58.395) == pytorch
    net = cfg.model.backbone.bottom_up
    if width := re.search(r"_x101_(\d+)x4d_", recipe):
        assert (net.depth, net.groups, net.width_per_group) == (101, int(width[1]), 4)
        assert f"resnext101_{width[1]}x4d" in cfg.train.init_checkpoint
    else:
        torchvisions = ("torchvision/", "https://download.pytorch.org/models/")
        assert any(source in cfg.train.init_checkpoint for source in torchvisions) == pytorch
        assert net.stages.stride_in_1x1 != pytorch
        assert net.stages.depth == (101 if "r101" in recipe else 50)
        if recipe != CITYSCAPES:
            names = f"R-{net.stages.depth}", f"resnet{net.stages.depth}-"
            assert any(name in cfg.train.init_checkpoint for name in names)
    # Multi-scale recipes have several scales.
    scales = cfg.dataloader.train.mapper.augmentations[0].short_edge_length
    several = "_ms_" in recipe or recipe == CITYSCAPES
    assert (not isinstance(scales, int)) == several


def test_the_r50_balloon_recipe_matches_the_guide(repo):
    cfg = load_config(repo / R50_BALLOON)
    assert cfg.model.roi_heads.num_classes == 1
    assert cfg.model.roi_heads.box_predictor.num_classes == 1
    assert cfg.model.roi_heads.mask_head.num_classes == 1
    assert cfg.datasets.balloon_train.classes == ["balloon"]
    assert cfg.datasets.balloon_train.palette == [[220, 20, 60]]
    assert cfg.train.max_epochs == 12
    assert cfg.train.reference_batch_size == cfg.train.reference_world_size == 1
    assert "detectron2://COCO-InstanceSegmentation/mask_rcnn" in cfg.train.init_checkpoint


def test_the_r50_balloon_recipe_trains_a_step(repo, train_net, tiny_root, tmp_path):
    options = ["--no-validate", "--work-dir", tmp_path, f"data.root={tiny_root}"]
    done = train_net(*options, *ONE_STEP, config=repo / R50_BALLOON)
    assert done.status == 0, done.stderr
    assert (tmp_path / "model_final.pth").is_file()


def _marks(recipe):
    if recipe in QUICK:
        return []
    return [pytest.mark.slow, *([pytest.mark.nightly] if recipe in VARIANTS else [])]


CUSTOM_BY_SPEED = [
    pytest.param(recipe, marks=[] if "lite0" in recipe else _marks(recipe))
    for recipe in sorted(CUSTOM)
]


@pytest.mark.parametrize("recipe", CUSTOM_BY_SPEED)
def test_a_custom_recipe_trains_a_step_with_its_documented_overrides(
    repo, train_net, tiny_coco, tmp_path, monkeypatch, recipe
):
    """The overrides are those in its docstring; the two files order categories differently."""
    for split, name in (("train", "a"), ("val", "b")):
        source = tiny_coco / "coco" / "annotations" / f"instances_{split}2017.json"
        content = json.loads(source.read_text())
        ball = next(c for c in content["categories"] if c["name"] == "sports ball")
        kite = {"id": 900 if split == "train" else 2, "name": "kite"}
        content["categories"] = [ball, kite]
        if split == "train":  # an RLE among polygons
            first = content["annotations"][0]
            image = next(i for i in content["images"] if i["id"] == first["image_id"])
            size = image["height"], image["width"]
            (rle,) = pycocotools.mask.frPyObjects(first["segmentation"], *size)
            first["segmentation"] = {**rle, "counts": rle["counts"].decode()}
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
        shutil.copytree(tiny_coco / "coco" / f"{split}2017", tmp_path / "imgs", dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    given = re.search(r"DATA=\((.*)\)", (repo / recipe).read_text())[1].split()
    # Weights inside a package need no network.
    options = ONE_STEP if "r50" in recipe else [o for o in ONE_STEP if o != RANDOM_WEIGHTS]
    done = train_net("--work-dir", "run", *given, *options, config=repo / recipe)
    assert done.status == 0, done.stderr
    weights = torch.load(tmp_path / "run" / "model_final.pth", weights_only=True)["model"]
    assert len(weights["roi_heads.box_predictor.cls_score.bias"]) == 3
    assert re.search(r"custom_train +6 +\d+  sports ball \d+, kite 0", done.stdout)
    assert re.search(r"custom_val +2 +\d+  sports ball \d+, kite 0", done.stdout)
    results = json.loads((tmp_path / "run" / "results.json").read_text())["last"]["results"]
    assert "custom_val/coco/bbox/AP-sports ball" in results
    assert ("custom_val/coco/segm/AP-sports ball" in results) == ("mask" in recipe)
    assert (tmp_path / "run" / "model_best.pth").is_file()


@pytest.mark.parametrize("recipe", [r for r in CUSTOM_BY_SPEED if "faster" in r.values[0]])
def test_faster_rcnn_recipes_train_with_boxes_only(repo, train_net, tiny_coco, tmp_path, recipe):
    data = []
    for split in ("train", "val"):
        source = tiny_coco / "coco" / "annotations" / f"instances_{split}2017.json"
        content = json.loads(source.read_text())
        for annotation in content["annotations"]:
            del annotation["segmentation"], annotation["area"]
        (tmp_path / f"{split}.json").write_text(json.dumps(content))
        data.append(f"data.{split}.json={tmp_path / split}.json")
        data.append(f"data.{split}.images={tiny_coco / 'coco' / split}2017")
    done = train_net("--work-dir", tmp_path / "run", *data, *ONE_STEP, config=repo / recipe)
    assert done.status == 0, done.stderr
    weights = torch.load(tmp_path / "run" / "model_best.pth", weights_only=True)["model"]
    assert not any("mask" in name for name in weights)
    results = json.loads((tmp_path / "run" / "results.json").read_text())["last"]["results"]
    assert {key.split("/")[2] for key in results} == {"bbox"}
    predictions = json.loads((tmp_path / "run" / "predictions" / "custom_val.json").read_text())
    assert not any("segmentation" in p for p in predictions)


def test_missing_data_overrides_are_a_one_line_error(repo, train_net, tmp_path):
    recipe = repo / min(CUSTOM)
    done = train_net("--work-dir", tmp_path / "run", config=recipe)
    assert done.status == 2
    assert "the annotation file is not given" in done.stderr
    assert "data.train.json=FILE and data.train.images=FOLDER" in done.stderr
    done = train_net("--work-dir", tmp_path / "run", "data.train.json=a.json", config=recipe)
    assert "the folder of its images is not given" in done.stderr


@pytest.mark.parametrize(
    "recipe",
    [
        pytest.param(recipe, marks=_marks(recipe))
        for recipe in SCHEDULES
        if recipe not in {CITYSCAPES, KEYPOINT, OPEN_IMAGES, *VOC}
    ],
)
def test_a_coco_recipe_trains_a_step(repo, train_net, tiny_coco, tmp_path, recipe):
    options = ["--no-validate", "--work-dir", tmp_path, f"data.root={tiny_coco}"]
    one_step = ONE_STEP_OF_A_SMALL_VIT if recipe == VITDET else ONE_STEP
    if recipe.startswith(CORNERNET):
        one_step = ONE_STEP_OF_A_SMALL_HOURGLASS
    done = train_net(*options, *one_step, config=repo / recipe)
    assert done.status == 0, done.stderr
    weights = torch.load(tmp_path / "model_final.pth", weights_only=True)["model"]
    ends = ("cls_score.bias", "heat.1.bias")
    outputs = [len(bias) for name, bias in weights.items() if name.endswith(ends)]
    if "retinanet" in recipe:
        assert outputs == [9 * 80]  # anchors and classes
    elif "cornernet" in recipe:
        assert outputs == [80] * 4  # two corners in two feature maps
    else:
        cascade = "cascade" in recipe or recipe.startswith(SCNET)
        assert outputs == [81] * (3 if cascade else 1)
    with_masks = "mask" in recipe or recipe.startswith(SCNET)
    assert with_masks == any("mask_head" in name for name in weights)


@pytest.mark.slow
@pytest.mark.parametrize("recipe", sorted({*VOC, OPEN_IMAGES}))
def test_a_voc_or_open_images_recipe_trains_a_step_and_evaluates(
    repo, train_net, tiny_voc, tiny_open_images, tmp_path, recipe
):
    """Faster runs of these recipes, with a smaller model, are in tests/cli."""
    root, classes = (tiny_open_images, 4) if recipe == OPEN_IMAGES else (tiny_voc, 20)
    options = ["--work-dir", tmp_path, f"data.root={root}", *ONE_STEP]
    if recipe in VOC:
        options.append("datasets.voc2007_trainval.min_box_side=0")
    done = train_net(*options, config=repo / recipe)
    assert done.status == 0, done.stderr
    weights = torch.load(tmp_path / "model_final.pth", weights_only=True)["model"]
    outputs = [len(bias) for name, bias in weights.items() if name.endswith("cls_score.bias")]
    assert outputs == [9 * 20 if "retinanet" in recipe else classes + 1]
    results = json.loads((tmp_path / "results.json").read_text())["last"]["results"]
    metric = "open_images" if recipe == OPEN_IMAGES else "voc"
    assert {key.split("/")[1] for key in results} == {metric}


@pytest.mark.parametrize("recipe", sorted(VOC))
def test_a_voc_recipe_has_mmdetection_s_settings(repo, recipe):
    cfg = load_config(repo / recipe)
    assert cfg.train.warmup_iters == 0
    assert cfg.evaluators.voc.mode == "11points"
    for loader in (cfg.dataloader.train, cfg.dataloader.val):
        resize = loader.mapper.augmentations[0]
        assert (resize.short_edge_length, resize.max_size) == (600, 1000)
    trained = [cfg.datasets[name] for name in cfg.dataloader.train.dataset.names]
    assert [d.min_box_side for d in trained] == [32, 32]
    assert "min_box_side" not in cfg.datasets[cfg.dataloader.val.dataset.names]


def test_the_open_images_recipe_has_mmdetection_s_settings(repo):
    cfg = load_config(repo / OPEN_IMAGES)
    assert (cfg.train.warmup_iters, cfg.lr_multiplier.warmup_factor) == (26000, 1 / 64)
    assert cfg.train.clip_grad_norm == 35
    resize = cfg.dataloader.train.mapper.augmentations[0]
    assert (resize.short_edge_length, resize.max_size) == (800, 1024)


@pytest.mark.parametrize("name", ["32x3", "8x6"])
def test_a_cornernet_recipe_has_mmdetection_s_settings(repo, name):
    cfg = load_config(repo / f"{CORNERNET}_{name}_210e_coco.py")
    assert (cfg.train.warmup_iters, cfg.lr_multiplier.warmup_factor) == (500, 1 / 3)
    assert cfg.train.clip_grad_norm == 35 and cfg.train.init_checkpoint == ""
    assert cfg.model.input_format == "RGB" and cfg.model.pixel_std[0] == 58.395
    assert cfg.model.test_flip and cfg.model.test_scales == [1.0]
    colors, crop, resize, _ = cfg.dataloader.train.mapper.augmentations
    assert colors.image_format == cfg.dataloader.train.mapper.image_format == "RGB"
    assert crop.pad_value == cfg.model.pixel_mean
    assert crop.crop_size == resize.shape == [511, 511]
    assert cfg.dataloader.val.mapper.augmentations == []
    cfg.optimizer.params.model = torch.nn.Sequential(torch.nn.Linear(1, 1), torch.nn.BatchNorm1d(1))
    optimizer = instantiate(cfg.optimizer)
    assert type(optimizer) is torch.optim.Adam
    assert {group["weight_decay"] for group in optimizer.param_groups} == {0}


@pytest.mark.slow
def test_the_keypoint_recipe_trains_a_step_and_evaluates(repo, train_net, tiny_coco, tmp_path):
    shutil.copytree(tiny_coco / "coco", tmp_path / "coco")
    for split in ("train", "val"):
        folder = tmp_path / "coco" / "annotations"
        content = json.loads((folder / f"instances_{split}2017.json").read_text())
        for annotation in content["annotations"]:
            left, top, width, height = annotation["bbox"]
            points = [[left + width * i / 17, top + height * i / 17, 2] for i in range(17)]
            annotation |= dict(category_id=1, num_keypoints=17, keypoints=sum(points, []))
        person = dict(id=1, name="person", keypoints=list(COCO_PERSON_KEYPOINT_NAMES))
        content["categories"] = [person]
        (folder / f"person_keypoints_{split}2017.json").write_text(json.dumps(content))
    untrained = ["optimizer.lr=1e-9", "model.roi_heads.box_predictor.test_score_thresh=0.0"]
    options = ["--work-dir", tmp_path / "run", f"data.root={tmp_path}", *ONE_STEP, *untrained]
    done = train_net(*options, config=repo / KEYPOINT)
    assert done.status == 0, done.stderr
    results = json.loads((tmp_path / "run" / "results.json").read_text())["last"]["results"]
    assert {key.split("/")[2] for key in results} == {"bbox", "keypoints"}
    assert results["coco_keypoints_val/coco/keypoints/AP"] is not None


def test_missing_label_maps_are_a_one_line_error(repo, train_net, tiny_coco, tmp_path):
    """The error names the command that fetches them, and what trains without them."""
    options = ["--no-validate", "--work-dir", tmp_path, f"data.root={tiny_coco}", *ONE_STEP]
    maps = tmp_path / "coco" / "stuffthingmaps" / "train2017"
    options.append(f"datasets.coco_train.label_root={maps}")
    done = train_net("--dry-run", *options, config=repo / f"{SCNET}_r50_fpn_1x_coco.py")
    assert done.status == 2 and len(done.stderr.strip().splitlines()) == 1
    assert f"{maps} does not exist" in done.stderr
    assert re.search(r"prepare_data\.py'? coco --stuff", done.stderr)


def _cityscapes(repo, root, *options):
    """Train in a new process: Detectron2 registers its datasets when it is imported."""
    return subprocess.run(
        [sys.executable, repo / "tools/train_net.py", "--config-file", repo / CITYSCAPES, *options],
        env={**os.environ, "DETECTRON2_DATASETS": str(root)},
        capture_output=True,
        text=True,
    )


def test_missing_cityscapes_photos_are_a_one_line_error(repo, tmp_path):
    done = _cityscapes(repo, tmp_path, "--dry-run")
    assert done.returncode == 2
    assert "train holds no images; put Cityscapes there (python " in done.stderr
    assert "Traceback" not in done.stderr


def test_the_cityscapes_recipe_trains_a_step_and_evaluates(repo, tiny_cityscapes, tmp_path):
    """The image ids of Cityscapes are strings."""
    untrained = ["optimizer.lr=1e-9", "model.roi_heads.box_predictor.test_score_thresh=0.0"]
    done = _cityscapes(repo, tiny_cityscapes, "--work-dir", tmp_path, *ONE_STEP, *untrained)
    assert done.returncode == 0, done.stderr
    results = json.loads((tmp_path / "results.json").read_text())["last"]["results"]
    assert results["cityscapes_fine_instance_seg_val/coco/segm/AP"] is not None
    predictions = json.loads(
        (tmp_path / "predictions" / "cityscapes_fine_instance_seg_val.json").read_text()
    )
    assert {p["image_id"] for p in predictions} == {"town_000000_000019_leftImg8bit.png"}
    assert len(list((tmp_path / "overlays").glob("*/*.jpg"))) == 1
    assert re.search(r"cityscapes_fine_instance_seg_train +2 +4  person 2, rider 0", done.stdout)
    weights = torch.load(tmp_path / "model_final.pth", weights_only=True)["model"]
    assert len(weights["roi_heads.box_predictor.cls_score.bias"]) == 9


def test_a_recipe_loads_a_model_zoo_pickle(repo, train_net, tiny_coco, tmp_path):
    """ImageNet weights of the zoo are numpy arrays with the names of Detectron2's ResNet."""
    recipe = repo / f"{FASTER}_caffe_fpn_1x_coco.py"
    torch.manual_seed(1)
    state = instantiate(load_config(recipe).model.backbone.bottom_up).state_dict()
    content = {
        "model": {name: tensor.numpy() for name, tensor in state.items()},
        "__author__": "a test",
        "matching_heuristics": True,
    }
    Path(tmp_path / "R-50.pkl").write_bytes(pickle.dumps(content))
    options = ["--no-validate", "--work-dir", tmp_path / "run", f"data.root={tiny_coco}", *ONE_STEP]
    options.append(f"train.init_checkpoint={tmp_path / 'R-50.pkl'}")
    done = train_net(*options, config=recipe)
    assert done.status == 0, done.stderr
    assert f"Loaded {len(state)} of the model's" in done.stdout
    trained = torch.load(tmp_path / "run" / "model_final.pth", weights_only=True)["model"]
    stem = "stem.conv1.weight"  # frozen
    assert torch.equal(trained[f"backbone.bottom_up.{stem}"], state[stem])
