"""COCO 2017 with COCO-Stuff's label map of each training photo, and loaders for it.

A label map has a class of things or stuff for each pixel (0 to 181, or 255 for none). Evaluation
needs no maps. `d2ext prepare coco --stuff` downloads photos, annotations and maps to the default of
data.root; for another folder, set `data.root=/elsewhere`.
"""

from .coco import data, dataloader, datasets

datasets["coco_train"].label_root = "${data.root}/coco/stuffthingmaps/train2017"
