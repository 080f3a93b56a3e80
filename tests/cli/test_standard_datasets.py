"""Runs on Pascal VOC, Open Images and COCO, each with its own metric and another one."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

COCO = "+evaluators.coco={_target_: d2ext.evaluation.coco.CocoMetric, tasks: [bbox]}"
VOC = "+evaluators.voc={_target_: d2ext.evaluation.voc.VocMetric, mode: 11points}"
# A recipe with the model for laptops.
CONFIG = """import d2ext

recipe = d2ext.get_config("{recipe}")
data, datasets, dataloader = recipe.data, recipe.datasets, recipe.dataloader
evaluators, lr_multiplier, optimizer = recipe.evaluators, recipe.lr_multiplier, recipe.optimizer
train = recipe.train
model = d2ext.get_config("common/models/faster_rcnn_lite0_fpn.py").model
del recipe
"""
QUICK = [
    "train.init_checkpoint=",
    "train.max_iter=1",
    "train.reference_world_size=1",
    "train.reference_batch_size=2",
    "dataloader.train.num_workers=0",
    "dataloader.val.num_workers=0",
    "dataloader.train.mapper.augmentations[0].short_edge_length=96",
    "dataloader.val.mapper.augmentations[0].short_edge_length=96",
    "model.roi_heads.box_predictor.test_score_thresh=0.0",
]


@pytest.fixture
def train(train_net: Callable, tmp_path: Path) -> Callable:
    """Return a function that trains a step of a recipe; it returns the results and the output."""

    def run(recipe: str, *overrides: str) -> tuple[dict, str]:
        config = tmp_path / "config.py"
        config.write_text(CONFIG.format(recipe=recipe))
        done = train_net("--work-dir", tmp_path / "out", *QUICK, *overrides, config=config)
        assert done.status == 0, done.stderr
        content = json.loads((tmp_path / "out" / "results.json").read_text())
        return content["last"]["results"], done.stdout

    return run


def test_voc_with_its_own_metric_and_coco_s(train: Callable, tiny_voc: Path) -> None:
    sides = "datasets.voc2007_trainval.min_box_side=0"
    recipe = "faster_rcnn/faster_rcnn_r50_fpn_1x_voc0712.py"
    results, text = train(recipe, f"data.root={tiny_voc}", COCO, sides)
    assert "5 images (1 without objects dropped" in text  # of both years
    assert "4 of 26 annotations are not trained on: 4 marked difficult or ignore" in text
    for key in ("voc/bbox/AP50", "voc/bbox/AP50-cat", "coco/bbox/AP", "coco/bbox/AP-boat"):
        assert results[f"voc2007_test/{key}"] is not None, key
    assert {key.split("/")[1] for key in results} == {"voc", "coco"}
    assert results["voc2007_test/voc/bbox/AP50-sofa"] is None  # no object


def test_open_images_with_its_own_metric_coco_s_and_voc_s(
    train: Callable, tiny_open_images: Path
) -> None:
    recipe = "faster_rcnn/faster_rcnn_r50_fpn_32x2_1x_openimages.py"
    results, text = train(recipe, f"data.root={tiny_open_images}", COCO, VOC)
    assert "6 groups (is_group_of)" in text and "1 missing image skipped" in text
    for key in ("open_images/bbox/AP50-Toy", "voc/bbox/AP50", "coco/bbox/AP-Kite"):
        assert results[f"open_images_val/{key}"] is not None, key
    # Toy is above Kite in the hierarchy, which only Open Images' metric has.
    assert results["open_images_val/voc/bbox/AP50-Toy"] is None
    assert {key.split("/")[1] for key in results} == {"open_images", "coco", "voc"}


def test_coco_with_voc_s_metric(train: Callable, tiny_coco: Path) -> None:
    recipe = "faster_rcnn/faster_rcnn_r50_caffe_fpn_1x_coco.py"
    results, _ = train(recipe, f"data.root={tiny_coco}", VOC)
    for key in ("voc/bbox/AP50-sports ball", "coco/bbox/AP50"):
        assert results[f"coco_val/{key}"] is not None, key
    assert {key.split("/")[1] for key in results} == {"voc", "coco"}


@pytest.mark.parametrize(
    ("recipe", "file", "name"),
    [
        ("retinanet/retinanet_r50_fpn_1x_voc0712.py", "trainval.txt", "voc"),
        (
            "faster_rcnn/faster_rcnn_r50_fpn_32x2_1x_openimages.py",
            "class-descriptions-boxable.csv",
            "open_images",
        ),
    ],
)
def test_missing_data_is_an_error_of_one_line(
    repo: Path, train_net: Callable, tmp_path: Path, recipe: str, file: str, name: str
) -> None:
    root = f"data.root={tmp_path}"
    done = train_net("--work-dir", tmp_path / "out", root, config=repo / "configs" / recipe)
    assert done.status == 2
    (line,) = done.stderr.splitlines()
    assert f"{file} does not exist; check the path" in line
    assert line.endswith(f" {name} --root DIR and train with data.root=DIR")
    assert not (tmp_path / "out").exists()
