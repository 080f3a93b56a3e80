"""RetinaNet with a ResNet-50 FPN, pytorch style, by MMDetection's rules.

P7 is computed without a ReLU before it, and the losses are divided by the number of positives.
"""

from detectron2 import model_zoo
from detectron2.config import LazyCall as L

from d2ext.modeling.backbones.extra_levels import LinearP6P7
from d2ext.modeling.matcher import MaxIoUMatcher
from d2ext.modeling.retinanet import RetinaNet

from .pytorch_style import to_pytorch_style

model = model_zoo.get_config("common/models/retinanet.py").model
model._target_ = RetinaNet
model.backbone.bottom_up.freeze_at = 2
model.backbone.top_block._target_ = LinearP6P7
model.anchor_matcher = L(MaxIoUMatcher)(negative=0.4, positive=0.5, min_positive=0.0)
model.num_classes = None  # set from the training data
to_pytorch_style(model)
