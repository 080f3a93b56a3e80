"""COCO annotations (https://cocodataset.org/#format-data), read and made without torch."""

import logging
import math
import os
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

import msgspec

from d2ext.data.formats.coco_objects import (
    MALFORMED,
    image_record,
    mask_area,
    read_object,
    short,
)
from d2ext.data.formats.format import FileHead, Format, read_as_it_is
from d2ext.data.formats.json_io import nearest, not_read, outline, read_json
from d2ext.data.formats.other_formats import advice
from d2ext.data.formats.rle import compressed
from d2ext.errors import UserError
from d2ext.files import atomic_write

logger = logging.getLogger(__name__)

_XYXY, _XYWH = 0, 1  # BoxMode.XYXY_ABS and XYWH_ABS, which would need torch


def coco_classes(json_file: str | Path) -> tuple[str, ...]:
    """The category names of a COCO file in the order of their ids; raises as `read_coco` does."""
    return tuple(_categories(_load(json_file, ("categories",)), json_file).values())


def read_coco(
    json_file: str | Path,
    image_root: str | Path,
    classes: Sequence[str] | None = None,
    info: dict | None = None,
) -> tuple[list[dict], dict[int, int]]:
    """Reads a COCO file into Detectron2's dataset dicts; whether the images exist is not looked at.

    Left out are annotations without a box of positive size or without a valid polygon (a warning
    counts them), and those of categories that are not in `classes`. One that is marked `ignore` or
    `difficult` has `difficult` 1, one that is marked `is_group_of` has that: no training takes them
    (`columns.is_object`), and metrics know what they are.
    An absent `iscrowd` is 0, an absent `bbox` or `area` that of the mask, and a line says so;
    keypoints are not looked at.

    Args:
        json_file: the COCO JSON.
        image_root: the folder that its file names are relative to.
        classes: category names; `category_id` is an index into them. None takes all of the file
            in the order of their ids.
        info: receives `left_out`, the number of annotations that are not in the records by reason,
            and `keypoints`, the number of annotations whose keypoints are not read.

    Returns:
        One dict an image, also for images without annotations, by rising `image_id` (the file's);
        segmentations are lists of polygons or compressed RLE, both also in one image. And the
        file's id of each class to its index into `classes`.

    Raises:
        UserError: the file is absent or no COCO file, lacks a category of `classes` or a key,
            repeats an image id, names an image outside of the folder, or has an annotation that is
            damaged or of an unknown image or category.
    """
    content = _load(json_file)
    category_ids = _category_ids(_categories(content, json_file), classes, json_file)
    records = {}
    for i, image in enumerate(content["images"]):
        where = f"{json_file}: images[{i}]"
        try:
            image_id, size = image["id"], (image["height"], image["width"])
            record = image_record(image_root, image["file_name"], image_id, size, where)
        except MALFORMED as e:
            raise UserError(f"{where} is malformed ({short(e)}); correct it") from e
        if image_id in records:
            raise UserError(f"{json_file}: the image id {image_id} appears twice; renumber them")
        records[image_id] = record

    left_out, repaired, others, keypoints = Counter(), Counter(), 0, 0
    for i, annotation in enumerate(content["annotations"]):
        where = f"{json_file}: annotations[{i}]"
        try:
            image_id, category = annotation["image_id"], annotation["category_id"]
            if image_id not in records:
                raise UserError(f"{where} is of the image {short(image_id)}, which `images` lacks")
            if category not in category_ids:
                raise UserError(
                    f"{where} is of the category {short(category)}, which `categories` lacks"
                )
            if category_ids[category] is None:
                others += 1
                continue
            keypoints += bool(annotation.get("keypoints"))
            record = records[image_id]
            read, problem = _read_annotation(
                annotation, record["height"], record["width"], repaired
            )
        except MALFORMED as e:
            raise UserError(f"{where} is malformed ({short(e)}); correct it") from e
        if problem:
            left_out[problem] += 1
        else:
            read["category_id"] = category_ids[category]
            record["annotations"].append(read)
    if left_out:
        logger.warning("%s: %s skipped: %s", json_file, *_counts(left_out))
    if repaired:
        logger.info("%s: %s repaired: %s", json_file, *_counts(repaired))
    if info is not None:
        info |= {"left_out": not_read(left_out, others), "keypoints": keypoints}
    indices = {id_: index for id_, index in category_ids.items() if index is not None}
    return [records[image_id] for image_id in sorted(records)], indices


def _load(json_file: str | Path, keys: Sequence[str] | None = None) -> dict:
    content = read_json(json_file) if keys is None else outline(json_file, keys)
    require_lists(content, json_file)
    return content


def require_lists(content: object, json_file: str | Path) -> None:
    """Check that a JSON value has the three lists of a COCO file.

    Raises:
        UserError: one is missing; it says what the file is, if that is known.
    """
    for key in ("images", "annotations", "categories"):
        if not isinstance(content, dict) or not isinstance(content.get(key), list):
            known = f"; it is {text}" if (text := advice(json_file, "coco")) else ""
            raise UserError(
                f"{json_file} is not a COCO annotation file: it has no list {key!r}{known}"
            )


def _categories(content: dict, json_file: str | Path) -> dict[int, str]:
    """Id to name, by rising id."""
    try:
        names = {c["id"]: c["name"] for c in sorted(content["categories"], key=lambda c: c["id"])}
        distinct = set(names.values())
        if wrong := [n for n in names.items() if tuple(map(type, n)) != (int, str)]:
            raise TypeError(f"{wrong[0][0]!r} and {wrong[0][1]!r} are no integer id and text")
    except (KeyError, TypeError) as e:
        reason = short(e)
        raise UserError(f"{json_file}: `categories` is malformed ({reason}); correct it") from e
    if len(distinct) < len(content["categories"]):
        raise UserError(f"{json_file}: `categories` repeats an id or a name; make them distinct")
    return names


def _category_ids(
    categories: dict[int, str], classes: Sequence[str] | None, json_file: str | Path
) -> dict[int, int | None]:
    """The file's category ids to indices into `classes`; None for those that are not wanted."""
    if classes is None:
        classes = list(categories.values())
    for name in classes:
        if name not in categories.values():
            hint = nearest(name, categories.values())
            raise UserError(f"{json_file} has no category {name!r}; {hint}")
    index = {name: i for i, name in enumerate(classes)}
    return {category_id: index.get(name) for category_id, name in categories.items()}


def _read_annotation(
    annotation: dict, height: int, width: int, repaired: Counter
) -> tuple[dict, str]:
    """The annotation without its category, or the reason to leave it out."""
    box = annotation.get("bbox") or None
    if box is not None:
        x, y, w, h = box
        box = [x, y, x + w, y + h]
    read, problem = read_object(box, annotation.get("segmentation"), height, width)
    if problem:
        return {}, problem
    if box is None:
        repaired["without bbox (the mask's)"] += 1
    crowd, area = annotation.get("iscrowd"), annotation.get("area")
    if crowd is None:
        crowd = 0
        repaired["without iscrowd (0)"] += 1
    if crowd not in (0, 1):
        raise ValueError(f"iscrowd is {crowd!r}")
    if area is None:
        x0, y0, x1, y1 = read["bbox"]
        area = mask_area(read.get("segmentation"), x1 - x0, y1 - y0)
        repaired["without area (the mask's, else the box's)"] += 1
    if not math.isfinite(area):
        raise ValueError(f"the area is {area}")
    # Detectron2 ignores the area; APs, APm and APl are defined by it.
    read |= {"iscrowd": int(crowd), "area": area}
    if _flag(annotation, "ignore") | _flag(annotation, "difficult"):
        read["difficult"] = 1
    if _flag(annotation, "is_group_of"):
        read["is_group_of"] = 1
    return read, ""


def _flag(annotation: dict, name: str) -> bool:
    value = annotation.get(name)
    if value not in (0, 1, None):
        raise ValueError(f"{name} is {value!r}")
    return bool(value)


def _counts(counter: Counter) -> tuple[str, str]:
    parts = ", ".join(f"{n} {what}" for what, n in counter.items())
    return f"{counter.total()} annotations", parts


def to_coco(
    records: Iterable[dict], classes: Sequence[str], image_root: str | Path | None = None
) -> dict:
    """Makes a COCO dict of Detectron2's dataset dicts.

    Annotation ids count from 1: pycocotools takes 0 for "no match", which costs a detection its
    true positive. Category ids are the dataset dicts' plus 1. An annotation without `area` has
    that of its mask, else of its box.

    Args:
        records: dataset dicts; boxes are XYXY_ABS or XYWH_ABS.
        classes: class names by `category_id`.
        image_root: the folder that file names shall be relative to; None leaves them as they are.

    Raises:
        UserError: boxes are of another mode.
    """
    images, annotations = [], []
    for record in records:
        name = os.fspath(record["file_name"])
        images.append(
            {
                "id": record["image_id"],
                "file_name": name if image_root is None else os.path.relpath(name, image_root),
                "width": record["width"],
                "height": record["height"],
            }
        )
        for a in record.get("annotations", ()):
            if a["bbox_mode"] not in (_XYXY, _XYWH):
                raise UserError(f"{name}: boxes of the mode {a['bbox_mode']!r} are not supported")
            x, y, w, h = map(float, a["bbox"])
            if a["bbox_mode"] == _XYXY:
                w, h = w - x, h - y
            made = {
                "id": len(annotations) + 1,
                "image_id": record["image_id"],
                "category_id": a["category_id"] + 1,
                "bbox": [x, y, w, h],
                "iscrowd": a.get("iscrowd", 0),
            }
            made |= {name: 1 for name in ("difficult", "is_group_of") if a.get(name)}
            if segmentation := a.get("segmentation"):
                is_rle = isinstance(segmentation, dict)
                made["segmentation"] = compressed(segmentation) if is_rle else segmentation
            made["area"] = float(a["area"] if "area" in a else mask_area(segmentation, w, h))
            annotations.append(made)
    categories = [{"id": i, "name": name} for i, name in enumerate(classes, start=1)]
    return {"info": {}, "images": images, "annotations": annotations, "categories": categories}


def write_coco(
    records: Sequence[dict], classes: Sequence[str], made: Path, images: str | Path
) -> dict[str, int]:
    """Write a COCO file with all keys that MMDetection's guide lists.

    Objects without a mask have the `segmentation` [], ids count from 1, and the same input gives
    the same bytes.

    Args:
        records: dataset dicts, whose file names are in `images`.
        classes: class names by `category_id`.
        made: the JSON to write.
        images: the folder that file names shall be relative to.

    Returns:
        The numbers of images and objects.

    Raises:
        UserError: the file cannot be written; then there is no new file.
    """
    content = to_coco(records, classes)
    root = len(os.path.join(images, ""))
    for image in content["images"]:  # os.path.relpath takes as long as reading the image's size
        image["file_name"] = image["file_name"][root:]
    for annotation in content["annotations"]:
        annotation.setdefault("segmentation", [])
    for category in content["categories"]:
        category.setdefault("supercategory", "")
    with atomic_write(made, "wb", durable=False) as f:
        f.write(msgspec.json.encode(content))
    return {"images": len(content["images"]), "objects": len(content["annotations"])}


def _read(
    source: str | Path, image_root: str | Path, classes: Sequence[str] | None = None
) -> tuple[list[dict], tuple[str, ...]]:
    records, _ = read_coco(source, image_root, classes)
    return records, coco_classes(source) if classes is None else tuple(classes)


def _detect(head: FileHead) -> bool:
    if not isinstance(head.value, dict):
        return False
    lists = {key for key, value in head.value.items() if isinstance(value, list)}
    return {"images", "annotations"} <= lists


FORMAT = Format(
    name="coco",
    title="COCO (images, annotations, categories)",
    advice=read_as_it_is("a COCO annotation file"),
    detect=_detect,
    read=_read,
    dataset="d2ext.data.datasets.declare.coco_dataset",
    write={"coco": write_coco},
)
