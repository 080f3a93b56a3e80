"""The values of a config that the rules read."""

import pytest

import d2ext
from d2ext.data.fitting.fit import recipe_values

RECIPE = "custom/mask_rcnn_lite0_fpn.py"


@pytest.mark.parametrize(
    ("augmentation", "crops"),
    [
        ("light", False),
        ("[{_target_: detectron2.data.transforms.RandomFlip}]", False),
        ("[light, {_target_: d2ext.data.loading.augment.scale.LargeScaleJitter}]", True),
    ],
)
def test_sizes_in_data_augmentation_are_the_users(augmentation, crops):
    cfg = d2ext.get_config(RECIPE, [f"data.augmentation={augmentation}"])
    assert recipe_values(cfg).crops is crops


def test_a_loader_with_a_batch_of_its_own_does_not_follow():
    assert recipe_values(d2ext.get_config(RECIPE)).follows
    cfg = d2ext.get_config(RECIPE, ["dataloader.train.total_batch_size=4"])
    assert not recipe_values(cfg).follows
