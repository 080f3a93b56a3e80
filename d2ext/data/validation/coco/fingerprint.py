"""Compute the fingerprint of a COCO file, to which `data.auto` fits a recipe."""

import numpy as np

from d2ext.data.fitting.fingerprint import Fingerprint, fingerprint
from d2ext.data.validation.coco import locations
from d2ext.data.validation.coco.table import CocoTable


def table_fingerprint(c: CocoTable) -> Fingerprint | None:
    """Return the fingerprint of the objects that training uses; None without any."""
    images, categories = locations.image_rows(c), locations.category_rows(c)
    used = c.good["annotations"] & ~c.crowd & ~c.ignored & (images >= 0) & (categories >= 0)
    rows = np.flatnonzero(used)
    boxes = c.box[rows]
    with np.errstate(over="ignore", invalid="ignore"):
        corners = np.hstack([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]])
    return fingerprint(
        c.image_size[:, 0],
        c.image_size[:, 1],
        images[rows],
        corners,
        categories[rows],
        len(c.category_id),
    )
