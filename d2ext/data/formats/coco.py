"""Read and write COCO annotations (https://cocodataset.org/#format-data) without torch."""

import os
from collections.abc import Iterable, Sequence
from pathlib import Path

import msgspec

from d2ext.data.formats.annotation_kinds import count_keypoints
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
    """Return the category names of a COCO file, ordered by id.

    Raises:
        UserError: As in `read_coco`.
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

    This implements the policy `repair` of `coco_file`. Annotations without a box of positive size
    or without a valid polygon are dropped and counted in a warning; annotations of categories that
    are not in `classes` are dropped as well. An annotation marked `ignore` or `difficult` gets
    `difficult` 1, and `is_group_of` is kept: such annotations are not trained on
    (`annotation_kinds.is_object`), but the metrics need them. A missing `iscrowd` becomes 0 and a
    missing `bbox` or `area` that of the mask; the log counts these. Keypoints are shifted by half a
    pixel, as in Detectron2's `load_coco_json`; malformed ones are dropped and counted.

    Args:
        json_file: Path of the COCO JSON.
        image_root: The folder that its file names are relative to.
        classes: Category names; `category_id` is an index into them. None uses all categories of
            the file, ordered by id.
        info: Receives `left_out`, the number of dropped annotations by reason; `keypoints`, the
            names of the keypoints of all requested categories that have some; and `skeleton`,
            pairs of indices into these names, from 1. The lists are empty if the categories name no
            keypoints, or different ones.

    Returns:
        One dict per image, with or without annotations, ordered by `image_id` (as in the file);
        segmentations are lists of polygons or compressed RLE, possibly both in one image. Also a
        mapping from the file's category ids to indices into `classes`.

    Raises:
        UserError: The file is missing or not a COCO file, lacks a category of `classes` or a key,
            repeats an image id, names an image outside of the folder, or has an annotation that is
            malformed or refers to an unknown image or category.
    """
    return repaired_records(read_content(json_file), json_file, image_root, classes, info)


def to_coco(
    records: Iterable[dict], classes: Sequence[str], image_root: str | Path | None = None
) -> dict:
    """Convert Detectron2's dataset dicts to a COCO dict.

    Annotation ids start at 1: pycocotools reads 0 as "no match", which costs a detection its true
    positive. Category ids are those of the dataset dicts plus 1. A missing `area` is computed from
    the mask or, without a mask, from the box. Keypoints become indices of pixels again (see
    `read_keypoints`).

    Args:
        records: Dataset dicts with boxes in mode XYXY_ABS or XYWH_ABS.
        classes: Class names by `category_id`.
        image_root: The folder to which file names become relative; None keeps them unchanged.

    Raises:
        UserError: A box has another mode.
    """
    images: list[dict] = []
    annotations: list[dict] = []
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
                raise UserError(f"{name}: boxes of mode {a['bbox_mode']!r} are not supported")
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
            if "score" in a:  # a prediction to be corrected
                made["score"] = a["score"]
            if segmentation := a.get("segmentation"):
                is_rle = isinstance(segmentation, dict)
                made["segmentation"] = compressed(segmentation) if is_rle else segmentation
            if keypoints := a.get("keypoints"):
                made["keypoints"] = [v if i % 3 == 2 else v - 0.5 for i, v in enumerate(keypoints)]
                made["num_keypoints"] = count_keypoints(keypoints)[1]
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
    """Write a COCO file with all keys that MMDetection's documentation lists.

    Objects without a mask get an empty `segmentation` list, ids start at 1, and equal input gives
    identical bytes.

    Args:
        records: Dataset dicts.
        classes: Class names by `category_id`.
        made: Path of the JSON to write.
        images: The folder to which file names become relative; None keeps them unchanged.

    Returns:
        The numbers of images and objects.

    Raises:
        UserError: The file cannot be written; no partial file is left.
    """
    content = to_coco(records, classes)
    root = "" if images is None else os.path.join(images, "")
    for image in content["images"]:  # os.path.relpath would be as slow as reading image sizes
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
