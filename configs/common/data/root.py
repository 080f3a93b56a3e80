"""The folder of data sets: $DETECTRON2_DATASETS, else datasets; `data.root=/elsewhere` moves it."""

import os

data = dict(root="${oc.env:DETECTRON2_DATASETS,datasets}")
if os.environ.get("DETECTRON2_DATASETS") == "":  # as if unset
    data["root"] = "datasets"
