"""COCO 2017 with COCO-Stuff's label map of each photo, and loaders for it.

A label map has a class of things or stuff for each pixel (0 to 181, or 255 for none). Those of
val2017 are for the validation loss only; evaluation needs no maps. `d2ext prepare coco --stuff`
downloads photos, annotations and maps to the default of data.root; for another folder, set
`data.root=/elsewhere`.
"""

from .coco import data, dataloader, datasets

for _name in ("train", "val"):
    datasets[f"coco_{_name}"].label_root = f"${{data.root}}/coco/stuffthingmaps/{_name}2017"
