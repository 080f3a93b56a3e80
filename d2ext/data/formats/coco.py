"""COCO annotations (https://cocodataset.org/#format-data), read and made without torch."""

import os
from collections.abc import Iterable, Sequence
from pathlib import Path

import msgspec

from d2ext.data.formats.coco_file import (
    PARTS,
    category_names,
    read_content,
    repaired_records,
    require_lists,
)
from d2ext.data.formats.coco_objects import mask_area
from d2ext.data.formats.file_head import FileHead
from d2ext.data.formats.format import Format, read_as_it_is
from d2ext.data.formats.json_io import outline
from d2ext.data.formats.rle import compressed
from d2ext.errors import UserError
from d2ext.files import atomic_write

_XYXY, _XYWH = 0, 1  # BoxMode.XYXY_ABS and XYWH_ABS, which would need torch


def coco_classes(json_file: str | Path) -> tuple[str, ...]:
    """Return the category names of a COCO file in the order of their ids.

    Raises:
        UserError: as `read_coco` does.
    """
    content = outline(json_file, ("categories",))
    require_lists(content, json_file)
    return tuple(category_names(content["categories"], json_file).values())


def read_coco(
    json_file: str | Path,
    image_root: str | Path,
    classes: Sequence[str] | None = None,
    info: dict | None = None,
) -> tuple[list[dict], dict[int, int]]:
    """Read a COCO file into Detectron2's dataset dicts; the images need not exist.

    This is the policy `repair` of `coco_file`. Annotations without a box of positive size or
    without a valid polygon are dropped (a warning counts them), and so are those of categories
    that are not in `classes`. One that is marked `ignore` or `difficult` has `difficult` 1, one
    that is marked `is_group_of` has that: no training takes them (`columns.is_object`), and metrics
    know what they are. An absent `iscrowd` is 0, an absent `bbox` or `area` that of the mask, and a
    line says so; keypoints are not read.

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
    return repaired_records(read_content(json_file), json_file, image_root, classes, info)


def to_coco(
    records: Iterable[dict], classes: Sequence[str], image_root: str | Path | None = None
) -> dict:
    """Make a COCO dict of Detectron2's dataset dicts.

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
    records: Sequence[dict],
    classes: Sequence[str],
    made: Path,
    images: str | Path | None = None,
) -> dict[str, int]:
    """Write a COCO file with all keys that MMDetection's guide lists.

    Objects without a mask have the `segmentation` [], ids count from 1, and the same input gives
    the same bytes.

    Args:
        records: dataset dicts.
        classes: class names by `category_id`.
        made: the JSON to write.
        images: the folder that file names shall be relative to; None leaves them as they are.

    Returns:
        The numbers of images and objects.

    Raises:
        UserError: the file cannot be written; then there is no new file.
    """
    content = to_coco(records, classes)
    root = "" if images is None else os.path.join(images, "")
    for image in content["images"]:  # os.path.relpath takes as long as reading the image's size
        image["file_name"] = image["file_name"].removeprefix(root)
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
    return {"images", "annotations"} <= lists or set(PARTS) <= head.value.keys()


FORMAT = Format(
    name="coco",
    title="COCO (images, annotations, categories)",
    advice=read_as_it_is("a COCO annotation file"),
    detect=_detect,
    read=_read,
    in_training=True,
    dataset="d2ext.data.datasets.declare.coco_dataset",
    write={"coco": write_coco},
)
