"""COCO 2017 with COCO-stuff's label maps (182 classes of things and stuff), and loaders for it.

`d2ext prepare coco --stuff` downloads both to the default of data.root; for another folder, set
`data.root=/elsewhere`.
"""

from .coco import data, dataloader, datasets

for _name in ("train2017", "val2017"):
    _dataset = datasets[f"coco_{_name.removesuffix('2017')}"]
    _dataset.label_root = f"${{data.root}}/coco/stuffthingmaps/{_name}"
