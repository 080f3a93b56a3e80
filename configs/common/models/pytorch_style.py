"""Change a model with a ResNet from caffe style to pytorch style, for torchvision's weights.

The stride is in the 3x3 convolution, and the input is RGB with ImageNet's mean and std. BatchNorm
is frozen entirely, as in all of Detectron2's models (MMDetection trains its scale and shift).
"""

from detectron2 import model_zoo

_constants = model_zoo.get_config("common/data/constants.py").constants


def to_pytorch_style(model):
    """Change the config of a model with a ResNet FPN in place."""
    model.backbone.bottom_up.stages.stride_in_1x1 = False
    model.input_format = "RGB"
    model.pixel_mean = _constants.imagenet_rgb256_mean
    model.pixel_std = _constants.imagenet_rgb256_std
