"""A model with a keypoint head trains on your own COCO file, also with several processes."""

import json
import shutil

import pytest

from d2ext.data.formats.coco import to_coco
from d2ext.data.formats.via import read_via

pytestmark = pytest.mark.slow
CONFIG = """
from detectron2.config import LazyCall as L
from detectron2.layers import ShapeSpec
from detectron2.modeling.poolers import ROIPooler
from detectron2.modeling.roi_heads import KRCNNConvDeconvUpsampleHead

import d2ext
from d2ext.data.datasets.keypoints import flip_indices

_recipe = d2ext.get_config("custom/faster_rcnn_lite0_fpn.py")
_heads = _recipe.model.roi_heads
_heads.keypoint_in_features = _heads.box_in_features
_heads.keypoint_pooler = L(ROIPooler)(
    output_size=14, scales="${..box_pooler.scales}", sampling_ratio=0, pooler_type="ROIAlignV2"
)
_heads.keypoint_head = L(KRCNNConvDeconvUpsampleHead)(
    input_shape=L(ShapeSpec)(channels="${....backbone.out_channels}", width=14, height=14),
    num_keypoints=4,
    conv_dims=[8],
)
_recipe.dataloader.train.dataset.min_keypoints = 1
_recipe.dataloader.train.mapper.use_keypoint = True
_recipe.dataloader.train.mapper.keypoint_hflip_indices = L(flip_indices)(
    dataset_names="${dataloader.train.dataset.names}"
)
globals().update(_recipe)
"""
QUICK = ["train.max_iter=2", "train.reference_batch_size=2", "train.init_checkpoint="]
QUICK += ["dataloader.train.num_workers=1", "train.log_period=1", "train.channels_last=True"]


@pytest.fixture
def own(tiny_root, tmp_path):
    """Write a config and the tiny balloons with keypoints at their boxes' corners."""
    source = tiny_root / "balloon" / "train"
    shutil.copytree(source, tmp_path / "imgs")
    records = read_via(source / "via_region_data.json", source, ["balloon"])
    content = to_coco(records, ["balloon"], source)
    content["categories"][0]["keypoints"] = ["top_left", "top_right", "left_foot", "right_foot"]
    for a in content["annotations"]:
        x, y, w, h = map(int, a["bbox"])
        corners = [(x, y), (x + w - 1, y), (x, y + h - 1), (x + w - 1, y + h - 1)]
        a["keypoints"] = [value for x, y in corners for value in (x, y, 2)]
    (tmp_path / "a.json").write_text(json.dumps(content))
    (tmp_path / "mine.py").write_text(CONFIG)
    return tmp_path


def _options(own):
    return [f"data.train.json={own / 'a.json'}", f"data.train.images={own / 'imgs'}", *QUICK]


def _rewrite(own, change):
    content = json.loads((own / "a.json").read_text())
    change(content)
    (own / "a.json").write_text(json.dumps(content))


def test_the_plan_refuses_keypoints_that_the_model_cannot_learn(own, train_net):
    flags = ["--no-validate", "--dry-run", *_options(own)]
    number = "model.roi_heads.keypoint_head.num_keypoints=17"
    done = train_net(*flags, number, config=own / "mine.py")
    assert done.status == 2
    assert "num_keypoints=17, but dataset 'custom_train' has 4 keypoints" in done.stderr
    _rewrite(own, lambda c: c["categories"][0].update(keypoints=["a", "b", "c", "d"]))
    done = train_net(*flags, config=own / "mine.py")
    assert done.status == 0, done.stderr
    assert "no two keypoints (a, b, c, d) are known to be mirror images" in done.stdout
    pairs = "datasets.custom_train.flip_map=[[a, b], [c, d]]"
    done = train_net(*flags, pairs, config=own / "mine.py")
    assert done.status == 0 and "mirror images" not in done.stdout
    _rewrite(own, lambda c: [a.pop("keypoints") for a in c["annotations"]])
    done = train_net(*flags, config=own / "mine.py")
    assert done.status == 2
    assert "keypoint_head needs keypoints, but dataset 'custom_train' has none" in done.stderr


@pytest.mark.nightly
def test_two_processes_train_keypoints_as_one_does(own, train_net):
    losses = []
    for processes in ("1", "2"):
        run = own / processes
        flags = ["--no-validate", "--num-gpus", processes, "--work-dir", run, *_options(own)]
        done = train_net(*flags, config=own / "mine.py")
        assert done.status == 0, done.stderr
        lines = map(json.loads, (run / "metrics.json").read_text().splitlines())
        losses.append([line["loss_keypoint"] for line in lines if "loss_keypoint" in line])
        assert "flip_indices" in (run / "config.yaml").read_text()
    assert len(losses[0]) == 2 and losses[0][0] > 0
    assert losses[1] == pytest.approx(losses[0], rel=0.2)  # normalized by each process's keypoints
    done = train_net("--no-validate", "--work-dir", own / "again", config=own / "1" / "config.yaml")
    assert done.status == 0, done.stderr
