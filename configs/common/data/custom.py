"""Data of one's own, given at the command line; the format is recognised.

    data.train.json=a.json data.train.images=imgs data.val.json=b.json data.val.images=imgs

`data.classes=[cat, dog]` trains on these classes only; `data.palette` has a colour for each.
"""

from detectron2.config import LazyCall as L

from d2ext.data.datasets.declare import annotated_dataset

from .loader import dataloader

data = dict(
    train=dict(
        json=None,  # the annotation file [str or null]
        images=None,  # the folder of its photos [str or null]
    ),
    val=dict(
        json=None,  # the annotation file of the validation [str or null]
        images=None,  # the folder of its photos [str or null]
    ),
    classes=None,  # names; None: all of the training file; the validation follows [list or null]
    boxes_as_masks=False,  # objects without an outline have their box as one; False: an error
    class_attribute=None,  # of VIA's regions, holds their class; None: it is found [str or null]
    palette=None,  # [[220, 20, 60], ...]: a colour a class, in pictures [list or null]
)
datasets = dict(
    custom_train=L(annotated_dataset)(
        json_file="${data.train.json}",
        image_root="${data.train.images}",
        classes="${data.classes}",
        palette="${data.palette}",
        attribute="${data.class_attribute}",
        boxes_as_masks="${data.boxes_as_masks}",
    ),
    custom_val=L(annotated_dataset)(
        json_file="${data.val.json}",
        image_root="${data.val.images}",
        classes="${data.classes}",
        missing_ok=True,
        attribute="${data.class_attribute}",
        boxes_as_masks="${data.boxes_as_masks}",
    ),
)
dataloader.train.dataset.names = "custom_train"
dataloader.val.dataset.names = "custom_val"
