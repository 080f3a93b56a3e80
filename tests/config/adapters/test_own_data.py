from pathlib import Path

import pytest
from detectron2 import model_zoo

from d2ext import get_config, load_config
from d2ext.config.check import target_name
from d2ext.errors import UserError

ZOO = Path(model_zoo.__file__).parent / "configs"
MASK_RCNN = "COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_1x.py"
DATA = [
    "data.train.json=a.json",
    "data.train.images=photos",
    "data.val.json=b.json",
    "data.val.images=photos",
]


def test_a_config_of_detectron2_reads_your_files():
    cfg = load_config(ZOO / MASK_RCNN, [*DATA, "data.classes=[cat]"])
    assert cfg.dataloader.train.dataset.names == "custom_train"
    assert cfg.dataloader.val.dataset.names == cfg.dataloader.test.dataset.names == "custom_val"
    assert cfg.datasets.custom_train.json_file == "a.json"
    assert cfg.datasets.custom_val.classes == ["cat"]
    assert cfg.model.roi_heads.num_classes is None
    assert cfg.model.roi_heads.mask_head.num_classes is None
    assert "dataloader.train.dataset.names: coco_2017_train -> custom_train" in cfg.origin.changes


def test_a_recipe_for_coco_reads_your_files():
    cfg = get_config("mask_rcnn/mask_rcnn_r50_fpn_1x_coco.py", DATA)
    assert cfg.dataloader.train.dataset.names == "custom_train"
    assert cfg.dataloader.val.dataset.names == "custom_val"
    assert cfg.data.root == "datasets"
    assert list(cfg.evaluators) == ["coco"]


def test_a_recipe_for_your_own_data_does_not_change():
    cfg = get_config("custom/mask_rcnn_lite0_fpn.py", DATA)
    assert "origin" not in cfg


def test_only_the_validation_set():
    cfg = load_config(ZOO / MASK_RCNN, ["data.val.json=b.json", "data.val.images=photos"])
    assert cfg.dataloader.train.dataset.names == "coco_2017_train"
    assert cfg.dataloader.val.dataset.names == "custom_val"
    assert cfg.model.roi_heads.num_classes == 80


def test_metrics_of_another_dataset_are_replaced():
    before = get_config("cityscapes/mask_rcnn_r50_fpn_1x_cityscapes.py")
    assert "cityscapes" in before.evaluators
    cfg = get_config("cityscapes/mask_rcnn_r50_fpn_1x_cityscapes.py", DATA)
    assert list(cfg.evaluators) == ["coco"]
    assert "evaluators.cityscapes (CityscapesMetric) is removed" in cfg.origin.changes


def test_replaced_datasets_need_no_files():
    """Those of Open Images read the names of their classes as soon as they are declared."""
    cfg = get_config("faster_rcnn/faster_rcnn_r50_fpn_32x2_1x_openimages.py", DATA)
    assert set(cfg.datasets) == {"custom_train", "custom_val"}
    assert cfg.evaluators.open_images.hierarchy_file is None
    assert "evaluators.open_images.hierarchy_file is removed" in cfg.origin.changes
    only_val = get_config("mask_rcnn/mask_rcnn_r50_fpn_1x_coco.py", DATA[2:])
    assert set(only_val.datasets) == {"coco_train", "custom_train", "custom_val"}


def test_flips_of_keypoints_follow_your_data():
    cfg = load_config(ZOO / "COCO-Keypoints/keypoint_rcnn_R_50_FPN_1x.py", DATA)
    assert cfg.dataloader.train.mapper.keypoint_hflip_indices.dataset_names == "custom_train"
    assert cfg.model.roi_heads.num_classes is None


@pytest.mark.parametrize("name", ["COCO-Detection/retinanet_R_50_FPN_1x.py", MASK_RCNN])
def test_overrides_still_win(name):
    cfg = load_config(ZOO / name, [*DATA, "dataloader.train.dataset.filter_empty=False"])
    assert cfg.dataloader.train.dataset.filter_empty is False


def _kept_loader(tmp_path, text):
    file = tmp_path / "theirs.py"
    file.write_text(f"""
from detectron2 import model_zoo
from detectron2.config import LazyCall as L
_cfg = model_zoo.get_config({MASK_RCNN!r})
model, dataloader, train = _cfg.model, _cfg.dataloader, _cfg.train
optimizer, lr_multiplier = _cfg.optimizer, _cfg.lr_multiplier
{text}
""")
    return file


def test_a_loader_that_stays_reads_your_files(tmp_path):
    text = """
from torch.utils.data import RandomSampler
dataloader.train.sampler = L(RandomSampler)(data_source="${dataloader.train.dataset}")
"""
    cfg = load_config(_kept_loader(tmp_path, text), DATA)
    name = "detectron2.data.build.get_detection_dataset_dicts"
    assert target_name(cfg.dataloader.train.dataset._target_) == name
    assert cfg.dataloader.train.dataset.names == "custom_train"


def test_the_data_of_a_loader_of_your_own_cannot_be_replaced(tmp_path):
    text = "dataloader.train = L(iter)(total_batch_size=2)"
    message = "dataloader.train is a loader of the config .builtins.iter., whose data d2ext cannot"
    with pytest.raises(UserError, match=message):
        load_config(_kept_loader(tmp_path, text), DATA)


def test_classes_alone_do_not_replace_the_data():
    with pytest.raises(UserError, match="unknown key 'data.classes'"):
        get_config("mask_rcnn/mask_rcnn_r50_fpn_1x_coco.py", ["data.classes=[cat]"])
