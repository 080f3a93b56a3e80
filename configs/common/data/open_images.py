"""Open Images V6: 1,743,042 photos for training, 41,620 for validation, 601 classes.

The folders are MMDetection's, in data.root/OpenImages: `annotations`, `OpenImages/train` and
`OpenImages/validation`. `d2ext prepare open_images` checks them and says what to download. A part
of the photos is enough; missing ones are skipped and counted.
"""

from detectron2.config import LazyCall as L

from d2ext.data.datasets.declare import open_images_dataset

from .loader import dataloader
from .root import data

_FOLDER = "${data.root}/OpenImages"


def _split(name, boxes):
    return L(open_images_dataset)(
        annotation_file=f"{_FOLDER}/annotations/{boxes}",
        image_root=f"{_FOLDER}/OpenImages/{name}",
        class_file=f"{_FOLDER}/annotations/class-descriptions-boxable.csv",
    )


datasets = dict(
    open_images_train=_split("train", "oidv6-train-annotations-bbox.csv"),
    open_images_val=_split("validation", "validation-annotations-bbox.csv"),
)
dataloader.train.dataset.names = "open_images_train"
dataloader.val.dataset.names = "open_images_val"

# Photos have at most 1024 x 768 pixels.
dataloader.train.mapper.use_instance_mask = False
for _loader in (dataloader.train, dataloader.val):
    _loader.mapper.augmentations[0].short_edge_length = 800
    _loader.mapper.augmentations[0].max_size = 1024
