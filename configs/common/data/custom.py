"""Your own data, given on the command line; the format is detected.

    data.train.json=a.json data.train.images=imgs data.val.json=b.json data.val.images=imgs
    data.json=a.json data.images=imgs

The second line splits one file into training and validation; the run keeps the split.
`data.classes=[cat, dog]` trains only on these classes; `data.palette` is a color for each of them.
`d2ext print-config FILE --docs` prints the meaning of each key.
"""

from detectron2.config import LazyCall as L

from d2ext.data.datasets.declare import annotated_dataset

from .loader import dataloader

data = dict(
    json=None,
    images=None,
    val_fraction=0.2,
    split_seed=0,
    group_by=None,
    near_duplicates=True,
    train=dict(json="${data.json}", images="${data.images}"),
    val=dict(json="${data.json}", images="${data.images}"),
    classes=None,
    boxes_as_masks=False,
    class_attribute=None,
    palette=None,
    augmentation=None,
    auto=False,  # recipes in configs/custom set it
    recipe=None,
    by_hand=[],
    tiles=None,
    tile_overlap=0.2,
    tile_min_share=0.1,
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
