"""Keypoint R-CNN for one class with three keypoints."""

from detectron2 import model_zoo
from detectron2.data.datasets import register_coco_instances
from detectron2.data.detection_utils import create_keypoint_hflip_indices

from tests.detectron2_style.tiny_models import CHANNELS, shrink_rcnn

from .common import dataloader, lr_multiplier, optimizer, root, train

keypoints = dict(
    keypoint_names=["head", "left_foot", "right_foot"],
    keypoint_flip_map=[("left_foot", "right_foot")],
)
for split in ("train", "val"):
    name = f"tiny_people_{split}"
    register_coco_instances(name, keypoints, f"{root}/people_{split}.json", f"{root}/{split}")

model = model_zoo.get_config("common/models/keypoint_rcnn_fpn.py").model
shrink_rcnn(model)
model.roi_heads.num_classes = 1
head = model.roi_heads.keypoint_head
head.num_keypoints = 3
head.input_shape.channels = CHANNELS
head.conv_dims = [CHANNELS]

dataloader.train.dataset.min_keypoints = 1
dataloader.train.dataset.names = "tiny_people_train"
dataloader.test.dataset.names = "tiny_people_val"
dataloader.train.mapper.update(
    use_instance_mask=False,
    use_keypoint=True,
    keypoint_hflip_indices=create_keypoint_hflip_indices("tiny_people_train"),
)
dataloader.evaluator.kpt_oks_sigmas = [0.05, 0.1, 0.1]
