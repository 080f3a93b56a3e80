"""The commands take a checkpoint of MMDetection as it is."""

import pytest

from d2ext import Predictor
from tests.configs.test_recipes import ONE_STEP
from tests.mmdetection import oracle

NAME = "mask_rcnn_r50_fpn_1x"
RECIPE = "mask_rcnn/mask_rcnn_r50_fpn_1x_coco.py"
CONFIG = """
model = dict(
    backbone=dict(type='ResNet', depth=50, style='pytorch'),
    data_preprocessor=dict(
        type='DetDataPreprocessor', mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375],
        bgr_to_rgb=True))
"""


@pytest.mark.slow
def test_training_evaluation_and_prediction_start_from_a_checkpoint(
    repo, train_net, tiny_coco, tmp_path
):
    oracle.checkpoint(NAME, tmp_path / "mm.pth", {"cfg": CONFIG})
    config = repo / "configs" / RECIPE
    options = ["--work-dir", tmp_path / "run", f"data.root={tiny_coco}", *ONE_STEP[1:]]
    done = train_net("--no-validate", *options, "train.init_checkpoint=mm.pth", config=config)
    assert done.status == 0, done.stderr
    assert "Loaded 307 of the model's 307 tensors from" in done.stdout
    assert "(MMDetection)" in done.stdout and "Unused tensors" not in done.stdout
    assert "which input" not in done.stdout and "different input" not in done.stdout
    done = train_net("--eval-only", "--weights", "mm.pth", *options, config=config)
    assert done.status == 0, done.stderr
    assert "(MMDetection)" in done.stdout
    photo = next((tiny_coco / "coco" / "val2017").iterdir())
    predictor = Predictor.from_config(config, "mm.pth")
    assert predictor.classes == list(oracle.CLASSES)
    assert len(predictor(photo).scores)
