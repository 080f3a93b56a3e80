"""Describe the datasets of a run for its report: counts, sizes, and contact sheets."""

import logging
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.detection_utils import check_image_size

from d2ext.data.loading.image_io import read_photo
from d2ext.data.records.records import columns_of, select
from d2ext.errors import format_exception
from d2ext.evaluation.instances import ground_truth_columns
from d2ext.files import atomic_write
from d2ext.run_dir.schema import DatasetOverview, write_record

logger = logging.getLogger(__name__)

_PICTURES = 24  # images to decode, in all training sets together
_MEASURED = 1000  # images whose objects are measured, because no column holds their areas
_SMALL, _LARGE = 32**2, 96**2  # COCO's limits in square pixels


def write_overview(names: Sequence[str], training: Collection[str], out: Path) -> None:
    """Write `overview/<dataset>.json`, and for training sets also `overview/<dataset>.jpg`.

    Datasets and images that cannot be read are logged and skipped; they do not end the run.

    Args:
        names: Names of registered datasets.
        training: Names of the training sets among them.
        out: Run directory.
    """
    share = max(1, _PICTURES // max(1, len(training)))
    for name in names:
        file = out / "overview" / f"{name}.json"
        try:
            records, metadata = DatasetCatalog.get(name), MetadataCatalog.get(name)
            write_record(file, summary(records, metadata.thing_classes))
            if name in training:
                _write_sheet(records, metadata, file.with_suffix(".jpg"), share)
        except Exception as e:  # a user's dataset may raise anything
            logger.warning("No overview of %s: %s", name, format_exception(e))


def summary(records: Sequence[dict], classes: Sequence[str]) -> DatasetOverview:
    """Return the counts and sizes of a dataset; objects of evenly spaced images are measured.

    Args:
        records: Detectron2 dataset dicts.
        classes: Class names by `category_id`.
    """
    columns = columns_of(records)
    objects, images = columns.category_counts(len(classes))
    rows = _spread(np.arange(len(records)), _MEASURED)
    ground_truth = ground_truth_columns(select(records, rows), classes)
    areas = ground_truth.areas[
        ~(ground_truth.crowd | ground_truth.difficult | ground_truth.group_of)
    ]
    sizes = np.bincount(np.digitize(areas, (_SMALL, _LARGE)), minlength=3).tolist()
    return DatasetOverview(
        images=len(records),
        objects=int(columns.objects.sum()),
        classes=list(zip(classes, objects.tolist(), images.tolist(), strict=True)),
        width=_range(columns.widths),
        height=_range(columns.heights),
        object_sizes=dict(zip(("small", "medium", "large"), sizes, strict=True)),
        measured=len(rows),
    )


def _range(pixels: np.ndarray) -> tuple[int, int, int] | None:
    known = pixels[pixels > 0]
    if not len(known):
        return None
    return int(known.min()), int(np.median(known)), int(known.max())


def _spread(rows: np.ndarray, limit: int) -> np.ndarray:
    """Return at most `limit` of the rows, evenly spaced."""
    return rows[np.linspace(0, len(rows) - 1, min(limit, len(rows))).astype(int)]


def _write_sheet(records: Sequence[dict], metadata: Any, file: Path, limit: int) -> None:
    # Imported here to keep matplotlib out of the startup.
    from d2ext.visualize.sheets import AnnotatedImage, make_sheet, make_thumbnail

    counts = columns_of(records).objects
    rows = np.flatnonzero(counts) if counts.any() else np.arange(len(records))
    tiles = []
    for i in _spread(rows, limit).tolist():
        record = records[i]
        try:
            photo = read_photo(record["file_name"], "RGB")
            check_image_size(record, photo)
            view = AnnotatedImage(photo, record.get("annotations", ()), "", "")
            tiles.append(make_thumbnail(view, metadata))
        except Exception as e:  # Pillow raises many kinds of errors for broken files
            name = record["file_name"]
            logger.warning("%s is not in the contact sheet: %s", name, format_exception(e))
    if tiles:
        with atomic_write(file, "wb") as f:
            make_sheet(tiles).save(f, "JPEG", quality=85)
