"""RetinaNet with a ResNet-50 FPN: Detectron2's own model, in pytorch style."""

from detectron2 import model_zoo

from .pytorch_style import to_pytorch_style

model = model_zoo.get_config("common/models/retinanet.py").model
model.backbone.bottom_up.freeze_at = 2
model.num_classes = None  # set from the training data
to_pytorch_style(model)
