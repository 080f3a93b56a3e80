"""The balloon dataset (61 + 13 photos, one class), read straight from its VIA annotations.

The checkout holds the photos, reduced to a short side of at most 640 pixels. For the original ones
run `python tools/prepare_data.py balloon --full --root DIR` and train with `data.root=DIR`.
"""

from pathlib import Path

from detectron2.config import LazyCall as L

from d2ext.data.datasets.declare import via_dataset

# Not $DETECTRON2_DATASETS: these recipes train on the same photos everywhere.
data = dict(root=str(Path(__file__).resolve().parents[3] / "examples"))  # folder with balloon/


def _split(name):
    return L(via_dataset)(
        json_file=f"${{data.root}}/balloon/{name}/via_region_data.json",
        image_root=f"${{data.root}}/balloon/{name}",
        classes=["balloon"],
        palette=[[220, 20, 60]],
    )


datasets = dict(balloon_train=_split("train"), balloon_val=_split("val"))
