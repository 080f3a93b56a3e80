"""Training with Detectron2's yacs configs, as a user runs it."""

import json
import shutil
from pathlib import Path

import detectron2
import pytest
import torch
from detectron2.data import MetadataCatalog

from d2ext.config.load import load_config

MASK = (
    Path(detectron2.__file__).parent
    / "model_zoo/configs/COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_1x.yaml"
)
# A ResNet-50 with few channels, on small images.
TINY = [
    *("MODEL.RESNETS.STEM_OUT_CHANNELS=8", "MODEL.RESNETS.RES2_OUT_CHANNELS=16"),
    *("MODEL.RESNETS.WIDTH_PER_GROUP=4", "MODEL.FPN.OUT_CHANNELS=8", "MODEL.ROI_BOX_HEAD.FC_DIM=8"),
    *("MODEL.ROI_MASK_HEAD.CONV_DIM=8", "MODEL.WEIGHTS=", "DATALOADER.NUM_WORKERS=0"),
    *("INPUT.MIN_SIZE_TRAIN=(96,)", "INPUT.MIN_SIZE_TEST=96"),
    # Detectron2's own form.
    *("SOLVER.IMS_PER_BATCH", "2", "SOLVER.MAX_ITER", "4", "SOLVER.CHECKPOINT_PERIOD", "2"),
]


def _weights(run):
    return torch.load(run / "model_final.pth", weights_only=True)["model"]


def _write_coco(tiny_coco):
    """Write the tiny COCO to `datasets`, with the category IDs that Detectron2 expects."""
    shutil.copytree(tiny_coco, "datasets")
    ids = sorted(MetadataCatalog.get("coco_2017_val").thing_dataset_id_to_contiguous_id)
    for file in Path("datasets/coco/annotations").iterdir():
        content = json.loads(file.read_text())
        new = {c["id"]: ids[i] for i, c in enumerate(content["categories"])}
        content["categories"] = [{**c, "id": new[c["id"]]} for c in content["categories"]]
        content["annotations"] = [
            {**a, "category_id": new[a["category_id"]]} for a in content["annotations"]
        ]
        file.write_text(json.dumps(content))


@pytest.mark.slow
def test_yacs_config_unchanged(d2ext_command, tiny_coco, tmp_path, monkeypatch):
    """Train on the datasets that it names; a resumed run equals one without a stop."""
    monkeypatch.chdir(tmp_path)
    _write_coco(tiny_coco)
    done = d2ext_command("train", MASK, *TINY)
    assert done.status == 0, done.stderr
    assert "a yacs config of Detectron2" in done.stdout
    assert "coco_2017_val/coco/segm/AP" in done.stdout
    run = Path("work_dirs") / MASK.stem
    expected = _weights(run)
    last = json.loads((run / "results.json").read_text())["last"]
    assert "coco_2017_val/validation_loss/total_loss" in last["losses"]
    (run / "model_final.pth").unlink()
    (run / "model_0000003.pth").unlink()
    done = d2ext_command("train", "--resume", MASK, *TINY)
    assert done.status == 0, done.stderr
    assert f"resumes {run}/model_0000001.pth" in done.stdout
    weights = _weights(run)
    assert all(torch.equal(weights[key], value) for key, value in expected.items())


@pytest.mark.slow
def test_yacs_config_own_data(d2ext_command, tiny_root, tmp_path, monkeypatch):
    """A project's model trains on the user's data, and its run directory is complete."""
    monkeypatch.chdir(tmp_path)
    Path("point_rend.yaml").write_text(
        f"_BASE_: {MASK}\n"
        "INPUT: {MASK_FORMAT: bitmask}\n"
        "MODEL:\n"
        "  ROI_MASK_HEAD: {NAME: PointRendMaskHead, POOLER_TYPE: '', POINT_HEAD_ON: True}\n"
    )
    data = []
    for split in ("train", "val"):
        folder = tiny_root / "balloon" / split
        data += [
            f"data.{split}.json={folder}/via_region_data.json",
            f"data.{split}.images={folder}",
        ]
    done = d2ext_command(
        "train",
        "point_rend.yaml",
        "train.yacs_setup=[detectron2.projects.point_rend.add_pointrend_config]",
        *data,
        "data.classes=[balloon]",
        *TINY,
    )
    assert done.status == 0, done.stderr
    assert "MODEL.POINT_HEAD.NUM_CLASSES=80" in done.stdout
    run = Path("work_dirs/point_rend")
    heads = [key for key in _weights(run) if "point_head.predictor.weight" in key]
    assert [_weights(run)[key].shape[0] for key in heads] == [1]
    saved = load_config(run / "config.yaml")
    assert saved.model.config.MODEL.ROI_MASK_HEAD.NAME == "PointRendMaskHead"
