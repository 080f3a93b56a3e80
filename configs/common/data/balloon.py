"""The balloon data set (61 + 13 photos, one class), read straight from its VIA annotations.

`python tools/prepare_data.py balloon` puts it under data.root; `data.root=/elsewhere` moves it.
"""

from detectron2.config import LazyCall as L

from d2ext.data.catalog import via_dataset

from .root import data


def _split(name):
    return L(via_dataset)(
        json_file=f"${{data.root}}/balloon/{name}/via_region_data.json",
        image_root=f"${{data.root}}/balloon/{name}",
        classes=["balloon"],
        palette=[[220, 20, 60]],
    )


datasets = dict(balloon_train=_split("train"), balloon_val=_split("val"))
