"""COCO 2017's people with keypoints and loaders for them, with Detectron2's settings.

`d2ext prepare coco` downloads the photos and annotations to the default of data.root; for another
folder, set `data.root=/elsewhere`.
"""

from detectron2.config import LazyCall as L

from d2ext.data.datasets.declare import coco_dataset
from d2ext.data.datasets.keypoints import flip_indices

from .loader import dataloader
from .root import data


def _split(name):
    return L(coco_dataset)(
        json_file=f"${{data.root}}/coco/annotations/person_keypoints_{name}.json",
        image_root=f"${{data.root}}/coco/{name}",
        classes=["person"],
    )


datasets = dict(
    coco_keypoints_train=_split("train2017"),
    coco_keypoints_val=_split("val2017"),
)
dataloader.train.dataset.names = "coco_keypoints_train"
dataloader.train.dataset.min_keypoints = 1  # skip images without a labeled keypoint
dataloader.val.dataset.names = "coco_keypoints_val"
dataloader.train.mapper.use_instance_mask = False
dataloader.train.mapper.use_keypoint = True
dataloader.train.mapper.keypoint_hflip_indices = L(flip_indices)(
    dataset_names="${...dataset.names}"
)
