"""Record config and data in checkpoints, so that a resumed run can report what has changed."""

import hashlib
import json
import logging
import os
from collections.abc import Mapping
from typing import Any

from d2ext.config.check import training_fields
from d2ext.config.renamed import current_name
from d2ext.data.loading.loader import Loader
from d2ext.data.records.records import columns_of, file_names_of

logger = logging.getLogger(__name__)

_SMALL = 5000  # images; up to this number, every annotation is hashed
_MAX_SHOWN = 5
_COLUMNS = ("heights", "widths", "annotations", "categories", "masks")


def fingerprint(cfg: Any, loader: Any) -> dict[str, Any]:
    """Return the fields that determine the training, and a hash of the training data.

    The hash covers the names, sizes, classes and mask types of the images, and every annotation of
    datasets with up to 5000 images; it does not cover folders.

    Args:
        cfg: Config returned by `load_config`.
        loader: Training loader; the data of a custom loader is not compared.

    Returns:
        Dict of plain values.
    """
    records = loader.records if isinstance(loader, Loader) else []
    digest = hashlib.sha256()
    columns = columns_of(records).objects_only()
    for name in _COLUMNS:
        digest.update(getattr(columns, name).tobytes())
    names = [os.path.basename(str(name)) for name in file_names_of(records)]
    digest.update(json.dumps(names).encode())
    if len(records) <= _SMALL:
        for record in records:
            objects = [{**a, "bbox_mode": int(a["bbox_mode"])} for a in _objects(record)]
            try:
                text = json.dumps(objects, sort_keys=True, default=str)
            except TypeError:  # keys of different types cannot be sorted
                text = repr(objects)
            digest.update(text.encode())
    data = {"images": len(records), "objects": len(columns.categories)}
    return {"config": training_fields(cfg), "data": {**data, "sha256": digest.hexdigest()}}


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Return a sentence for each difference between two fingerprints."""
    found = []
    then, present = _fields(before), _fields(now)
    fields = [
        f"{key} ({then.get(key, 'absent')} before, {present.get(key, 'absent')} now)"
        for key in sorted(then.keys() | present.keys())
        if then.get(key) != present.get(key)
    ]
    if fields:
        more = f" and {len(fields) - _MAX_SHOWN} more" if len(fields) > _MAX_SHOWN else ""
        found.append(f"the config changed: {', '.join(fields[:_MAX_SHOWN])}{more}")
    if before["data"] != now["data"]:
        both = (before["data"], now["data"])
        old, new = (f"{d['images']} images with {d['objects']} objects" for d in both)
        found.append(f"the training data changed ({old} before, {new} now)")
    return found


def warn_of_changes(resumed: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Log what has changed since a checkpoint was written, if it has a fingerprint."""
    if (before := resumed.get("fingerprint")) and now:
        for difference in differences(before, now):
            logger.warning(
                "Since the checkpoint, %s; the run uses the current values, and so does not"
                " continue exactly",
                difference,
            )


def _fields(made: Mapping[str, Any]) -> dict[str, str]:
    """Return the config of a fingerprint, with names from older versions updated."""
    return {key: current_name(value) for key, value in made["config"].items()}


def _objects(record: dict) -> list[dict]:
    return [a for a in record.get("annotations", ()) if "bbox_mode" in a]
