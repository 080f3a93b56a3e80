"""CornerNet with Hourglass-104, which starts from random weights.

On a GPU with little memory, set `model.activation_checkpointing=True`: training then keeps only the
inputs of residual blocks and heads, and computes their layers twice.
"""

from detectron2 import model_zoo
from detectron2.config import LazyCall as L

from d2ext.modeling.backbones.hourglass import HourglassNet
from d2ext.modeling.cornernet import CornerNet

_constants = model_zoo.get_config("common/data/constants.py").constants

model = L(CornerNet)(
    backbone=L(HourglassNet)(
        channels=[256, 256, 384, 384, 384, 512],
        blocks=[2, 2, 2, 2, 2, 4],
        num_stacks=2,
        activation_checkpointing="${model.activation_checkpointing}",
    ),
    num_classes=None,  # set from the training data
    pixel_mean=_constants.imagenet_rgb256_mean,
    pixel_std=_constants.imagenet_rgb256_std,
    input_format="RGB",
    test_scales=[1.0],
    test_flip=True,
    activation_checkpointing=False,
)
