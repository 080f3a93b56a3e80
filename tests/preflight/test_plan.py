"""Preflight decisions for machines other than the one that runs the tests."""

import pytest

from d2ext.config.load import load_config
from d2ext.errors import UserError
from d2ext.launch.device import choose_device
from d2ext.preflight.plan import plan_run


def test_the_device_depends_on_the_visible_gpus():
    assert choose_device("cuda", num_gpus=2, visible=2)[0] == "cuda"
    assert choose_device("cpu", num_gpus=1, visible=2)[0] == "cpu"
    device, words = choose_device("cuda", num_gpus=1, visible=0)
    assert device == "cpu" and "no GPU is visible" in words
    assert choose_device("cuda", num_gpus=4, gpu_each=True, visible=1)[0] == "cuda"  # srun's tasks
    with pytest.raises(UserError, match="--num-gpus 3 is more than .* give at most 2"):
        choose_device("cuda", num_gpus=3, visible=2)


def test_a_schedule_made_for_more_images_gets_a_note(repo, tiny):
    def lines(*overrides):
        recipe = repo / "configs/balloon/mask_rcnn_lite0_fpn_balloon.py"
        cfg = load_config(recipe, [*tiny, *overrides])
        return "\n".join(plan_run(cfg, "run", validate=False).lines)

    assert "train.max_epochs=24 is a usual length" in lines("train.max_iter=90000")
    assert "usual length" not in lines("train.max_iter=450")  # 150 epochs
    assert "usual length" not in lines("train.max_epochs=1000")  # chosen for this dataset
