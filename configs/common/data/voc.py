"""Pascal VOC: trainval of 2007 and 2012 (5,011 + 11,540 photos), test of 2007 (4,952 photos).

`d2ext prepare voc` downloads the photos to the default of data.root; for another folder, such as a
VOCdevkit with VOC2007 and VOC2012, set `data.root=/elsewhere/VOCdevkit`.
"""

from detectron2.config import LazyCall as L

from d2ext.data.datasets.declare import voc_dataset
from d2ext.data.formats.voc import CLASSES

from .loader import dataloader
from .root import data


def _image_set(year, name, **options):
    folder = f"${{data.root}}/VOC{year}"
    return L(voc_dataset)(
        list_file=f"{folder}/ImageSets/Main/{name}.txt",
        annotation_root=f"{folder}/Annotations",
        image_root=f"{folder}/JPEGImages",
        classes=list(CLASSES),
        **options,
    )


# Like MMDetection, do not train on objects with a side below 32 pixels. (The names voc_2007_test
# and so on are Detectron2's own datasets.)
datasets = dict(
    voc2007_trainval=_image_set(2007, "trainval", min_box_side=32),
    voc2012_trainval=_image_set(2012, "trainval", min_box_side=32),
    voc2007_test=_image_set(2007, "test"),
)
dataloader.train.dataset.names = ["voc2007_trainval", "voc2012_trainval"]
dataloader.val.dataset.names = "voc2007_test"

# Photos have at most 500 x 500 pixels.
dataloader.train.mapper.use_instance_mask = False
for _loader in (dataloader.train, dataloader.val):
    _loader.mapper.augmentations[0].short_edge_length = 600
    _loader.mapper.augmentations[0].max_size = 1000
dataloader.tta = dict(min_sizes=[480, 600, 720], max_size=1200, flip=True)
