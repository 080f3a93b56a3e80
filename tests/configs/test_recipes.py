"""Every recipe: loads, states its reference, and trains a step of the model it describes."""

import pytest

from d2ext.config.load import load_config
from d2ext.config.scaling import check_name

RECIPES = [
    "configs/balloon/mask_rcnn_lite0_fpn_balloon.py",
    "configs/balloon/mask_rcnn_r50_caffe_fpn_ms_poly_1x_balloon.py",
]


def test_the_list_is_whole(repo):
    found = {str(p.relative_to(repo)) for p in (repo / "configs").glob("*/*.py")}
    assert {p for p in found if not p.startswith("configs/common")} == set(RECIPES)


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_recipe_states_its_reference_and_its_command(repo, recipe):
    cfg = load_config(repo / recipe)
    assert cfg.dataloader.train.total_batch_size == cfg.train.reference_batch_size
    assert cfg.train.reference_batch_size % cfg.train.reference_world_size == 0
    check_name(recipe, cfg.train.reference_world_size, cfg.train.reference_batch_size)
    text = (repo / recipe).read_text()
    assert f"CONFIG={recipe}\n" in text
    assert "python tools/train_net.py --config-file $CONFIG\n" in text


def test_the_guide_s_example(repo):
    cfg = load_config(repo / RECIPES[1])
    assert cfg.model.roi_heads.num_classes == 1
    assert cfg.model.roi_heads.box_predictor.num_classes == 1
    assert cfg.model.roi_heads.mask_head.num_classes == 1
    assert cfg.datasets.balloon_train.classes == ["balloon"]
    assert cfg.datasets.balloon_train.palette == [[220, 20, 60]]
    assert cfg.train.max_epochs == 12
    assert cfg.train.reference_batch_size == cfg.train.reference_world_size == 1
    assert "detectron2://COCO-InstanceSegmentation/mask_rcnn" in cfg.train.init_checkpoint


def test_the_r50_recipe_trains_a_step(repo, train_net, tiny_root, tmp_path):
    """From random weights (the zoo's need the network) on tiny images."""
    done = train_net(
        "--no-validate",
        "--work-dir",
        tmp_path,
        f"data.root={tiny_root}",
        "train.init_checkpoint=",
        "train.max_iter=1",
        "dataloader.train.num_workers=0",
        "dataloader.train.mapper.augmentations[0].short_edge_length=96",
        config=repo / RECIPES[1],
    )
    assert done.status == 0, done.stderr
    assert (tmp_path / "model_final.pth").is_file()
