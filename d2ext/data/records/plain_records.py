"""Convert the dataset dicts of a user's function to those that file readers return.

Such a function may return numbers and arrays of numpy or torch, tuples, paths and mask arrays;
Detectron2, metrics and caches require plain Python numbers, lists and strings.
"""

import math
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from d2ext.data.formats.coco_objects import MALFORMED, read_object
from d2ext.data.formats.json_io import short, truncate_repr
from d2ext.errors import UserError

_XYXY, _XYWH = 0, 1  # BoxMode.XYXY_ABS and XYWH_ABS, which would need torch
_MARKS = ("iscrowd", "difficult", "ignore", "is_group_of")


def plain_records(records: Sequence[Any], dataset: str, left_out: Counter) -> list[dict]:
    """Return Detectron2's dataset dicts with plain values; the input is not modified.

    Boxes become XYXY_ABS, bitmasks and RLE become compressed RLE, polygons become lists of numbers.
    As in the readers, annotations without a box of positive size or without a valid polygon are
    dropped. `check_dataset` checks sizes, ids and classes.

    Args:
        records: Dataset dicts returned by the user's function.
        dataset: Name of the dataset, for messages.
        left_out: Receives the number of dropped annotations by reason.

    Raises:
        UserError: A value does not suit Detectron2; the message names the record and the key.
    """
    return [_record(r, f"datasets.{dataset}: record {i}", left_out) for i, r in enumerate(records)]


def _record(record: Any, where: str, left_out: Counter) -> dict:
    if not isinstance(record, Mapping):
        raise UserError(f"{where} is a {type(record).__name__}; return Detectron2's dataset dicts")
    made = dict(record)
    for key in ("file_name", "sem_seg_file_name", "pan_seg_file_name"):
        if key in made or key == "file_name":
            made[key] = _path(made.get(key), f"{where}: {key}")
    where = f"{where} ({made['file_name']})"
    for key in ("height", "width", "image_id"):
        if key in made:
            made[key] = _whole(made[key])
    if not isinstance(made.get("image_id"), int | str | None):
        raise UserError(
            f"{where}: image_id={truncate_repr(made['image_id'])}: give an integer or a string"
        )
    annotations = made.get("annotations")
    annotations = [] if annotations is None else _listed(annotations)
    if not isinstance(annotations, list) or not all(isinstance(a, Mapping) for a in annotations):
        raise UserError(f"{where}: annotations={truncate_repr(annotations)}: give a list of dicts")
    made["annotations"] = []
    for i, annotation in enumerate(annotations):
        place = f"{where}: annotations[{i}]"
        box = _corners(annotation, place)
        try:
            read, problem = _annotation(annotation, box, made.get("height"), made.get("width"))
        except MALFORMED as e:
            raise UserError(f"{place}: {short(e)}; correct it") from e
        if problem:
            left_out[problem] += 1
        else:
            made["annotations"].append(read)
    return made


def _path(value: Any, where: str) -> str:
    if not isinstance(value, str | os.PathLike) or not os.fspath(value):
        raise UserError(f"{where}={truncate_repr(value)}: give the path of a file")
    return str(os.fspath(value))


def _annotation(annotation: Mapping, box: list[float], height: Any, width: Any) -> tuple[dict, str]:
    """Return the annotation, or an empty dict and the reason to drop it."""
    made = dict(annotation)
    try:
        read, problem = _shape(box, made.pop("segmentation", None), height, width)
    except MALFORMED as e:
        raise ValueError(f"segmentation: {short(e)}") from e
    if problem:
        return {}, problem
    for name in _MARKS:
        if (mark := _whole(made.get(name))) not in (0, 1, None):
            raise ValueError(f"{name}={truncate_repr(mark)}, which is neither 0 nor 1")
        if name in made:
            made[name] = int(mark or 0)
    if made.get("ignore"):
        made["difficult"] = 1
    if "area" in made:
        made["area"] = _plain(made["area"])
        if type(made["area"]) not in (int, float) or not math.isfinite(made["area"]):
            raise ValueError(f"area={truncate_repr(made['area'])}, which is not a finite number")
    if "category_id" in made:
        made["category_id"] = _whole(made["category_id"])
    if "keypoints" in made:
        made["keypoints"] = _keypoints(_plain(made["keypoints"]))
    return made | read, ""


def _keypoints(values: Any) -> list[float]:
    """Return keypoints, possibly a list of [x, y, visibility], as a flat list."""
    flat = _flat(values) if isinstance(values, list) and values else values
    if flat is None:
        return []
    if not isinstance(flat, list) or len(flat) % 3 or not set(map(type, flat)) <= {int, float}:
        raise ValueError(f"keypoints={truncate_repr(values)}: give x, y and visibility of each")
    return flat


def _corners(annotation: Mapping, where: str) -> list[float]:
    """Return the box as x0, y0, x1, y1."""
    box, mode = _plain(annotation.get("bbox")), _whole(annotation.get("bbox_mode"))
    numbers = isinstance(box, list) and len(box) == 4 and set(map(type, box)) <= {int, float}
    if not numbers or not all(map(math.isfinite, box)) or mode not in (_XYXY, _XYWH):
        raise UserError(
            f"{where} needs a bbox of four numbers, and bbox_mode 0 (x0, y0, x1, y1) or 1 (x, y,"
            f" width, height); it has bbox={truncate_repr(box)}, bbox_mode={truncate_repr(mode)}"
        )
    x0, y0, x1, y1 = box
    return [x0, y0, x0 + x1, y0 + y1] if mode == _XYWH else box


def _shape(box: list[float], segmentation: Any, height: Any, width: Any) -> tuple[dict, str]:
    """Return box and mask like `read_object`; a list of RLEs is one object, their union."""
    several = isinstance(segmentation, list | tuple) and len(segmentation) > 0
    if not several or not all(isinstance(part, Mapping) for part in segmentation):
        return read_object(box, _segmentation(segmentation, height, width), height, width)
    parts = [read_object(box, _rle(part), height, width) for part in segmentation]
    read, problem = parts[0]
    if not problem:
        from pycocotools import mask

        read["segmentation"] = _rle(mask.merge([part["segmentation"] for part, _ in parts]))
    return read, problem


def _rle(value: Mapping) -> dict:
    """Return an RLE with its counts as a string or a list."""
    counts = value["counts"]
    text = counts.decode() if isinstance(counts, bytes) else _plain(counts)
    return {"size": _plain(value["size"]), "counts": text}


def _segmentation(value: Any, height: Any, width: Any) -> dict | list:
    """Return polygons, each a list of numbers, or an RLE."""
    if isinstance(value, Mapping):
        return _rle(value)
    shape = tuple(getattr(value, "shape", ()))
    if shape == (height, width):
        from pycocotools import mask

        return _rle(mask.encode(np.asfortranarray(np.asarray(value) != 0, np.uint8)))
    if shape == (width, height) or shape and _is_bitmask(np.asarray(value)):
        raise ValueError(f"the mask has the shape {shape}, but its image has {(height, width)}")
    polygons = _plain(value)
    if not polygons:
        return []
    if not isinstance(polygons, list):
        raise TypeError(f"{truncate_repr(polygons)} is neither a list of polygons nor a mask")
    kinds = set(map(type, polygons))
    points = kinds == {list} and set(map(len, polygons)) == {2}
    if points or kinds and list not in kinds:  # a single polygon instead of a list
        polygons = [polygons]
    return [_flat(p) if isinstance(p, list) else p for p in polygons]


def _is_bitmask(array: np.ndarray) -> bool:
    """Return whether an array is a bitmask; polygons never consist of only 0 and 1."""
    return array.dtype.kind in "bui" and array.size > 0 and array.max() <= 1


def _flat(polygon: list) -> list:
    points = set(map(type, polygon)) == {list}
    return [number for point in polygon for number in point] if points else polygon


def _plain(value: Any) -> Any:
    """Convert numpy and torch numbers to Python's, and arrays and tuples to lists."""
    if isinstance(value, list | tuple):
        return list(value) if set(map(type, value)) <= {int, float} else list(map(_plain, value))
    return value.tolist() if hasattr(value, "tolist") else value


def _listed(value: Any) -> Any:
    """Convert a tuple or an array to a list without converting a tuple's elements."""
    if hasattr(value, "tolist"):
        return value.tolist()
    return list(value) if isinstance(value, tuple) else value


def _whole(value: Any) -> Any:
    """Convert a number without a fraction to an integer; return other values unchanged."""
    if value is None or type(value) is int:
        return value
    value = _plain(value)
    return int(value) if isinstance(value, float) and value.is_integer() else value
