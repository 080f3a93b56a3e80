"""ViTDet: Mask R-CNN on a plain ViT-B, Detectron2's own model, for inputs of 1024 x 1024 pixels."""

from detectron2 import model_zoo

model = model_zoo.get_config("common/models/mask_rcnn_vitdet.py").model
model.roi_heads.num_classes = None  # set from the training data
