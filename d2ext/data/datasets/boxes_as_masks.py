"""Use boxes as outlines of objects without a mask."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from d2ext.data.formats.annotation_kinds import NO_MASK, POLYGON, mask_kind
from d2ext.data.formats.geometry import rectangle
from d2ext.data.records.columns import Columns
from d2ext.data.records.records import applied

_XYWH = 1  # BoxMode.XYWH_ABS, which would need torch


def with_outlines(records: Sequence[dict]) -> Sequence[dict]:
    """Return Detectron2's dataset dicts in which every annotation has a `segmentation`.

    An annotation without a mask gets its box as a polygon; its `area` is kept.
    """
    return applied(records, _BoxesAsMasks())


@dataclass(frozen=True)
class _BoxesAsMasks:
    def __call__(self, record: dict) -> dict:
        annotations = [
            {**a, "segmentation": [_outline(a)]} if mask_kind(a) == NO_MASK else a
            for a in record.get("annotations", ())
        ]
        return {**record, "annotations": annotations}

    def columns(self, columns: Columns) -> Columns:
        masks = np.where(columns.masks == NO_MASK, np.int8(POLYGON), columns.masks)
        return replace(columns, masks=masks)


def _outline(annotation: dict) -> list[float]:
    x0, y0, x1, y1 = annotation["bbox"]
    if annotation["bbox_mode"] == _XYWH:
        x1, y1 = x0 + x1, y0 + y1
    return rectangle(x0, y0, x1, y1)
