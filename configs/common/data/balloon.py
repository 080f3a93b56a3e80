"""The balloon dataset (61 + 13 photos, one class), read directly from its VIA annotations.

A checkout contains the photos, reduced to a short side of at most 640 pixels; without a checkout,
`d2ext prepare balloon` downloads the original photos. To train on the originals in a checkout, run
`d2ext prepare balloon --full --root DIR` and set `data.root=DIR`.
"""

from detectron2.config import LazyCall as L

from d2ext.data.datasets.declare import via_dataset
from d2ext.data.prepare.balloon import PHOTOS

from .root import data

if PHOTOS.is_dir():  # ignore $DETECTRON2_DATASETS, so that all checkouts use the same photos
    data.root = str(PHOTOS.parent)


def _split(name):
    return L(via_dataset)(
        json_file=f"${{data.root}}/balloon/{name}/via_region_data.json",
        image_root=f"${{data.root}}/balloon/{name}",
        classes=["balloon"],
        palette=[[220, 20, 60]],
    )


datasets = dict(balloon_train=_split("train"), balloon_val=_split("val"))
