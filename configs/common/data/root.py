"""Folder of the datasets: $DETECTRON2_DATASETS or datasets; `data.root=/elsewhere` overrides it."""

import os

data = dict(root="${oc.env:DETECTRON2_DATASETS,datasets}", augmentation=None)
if os.environ.get("DETECTRON2_DATASETS") == "":  # as if unset
    data["root"] = "datasets"
