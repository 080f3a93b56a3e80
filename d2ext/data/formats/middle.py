"""MMDetection's middle format: {"metainfo": {...}, "data_list": [...]}.

https://mmdetection.readthedocs.io/en/latest/advanced_guides/customize_dataset.html
"""

import logging
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from d2ext.data.formats.coco_objects import MALFORMED, image_record, mask_area, read_object
from d2ext.data.formats.file_head import FileHead
from d2ext.data.formats.format import Format, read_as_it_is
from d2ext.data.formats.json_io import nearest, not_read, outline, read_json, short
from d2ext.errors import UserError

logger = logging.getLogger(__name__)


def middle_classes(json_file: str | Path) -> tuple[str, ...]:
    """Return the class names in `metainfo`, indexed by `bbox_label`; raise like `read_middle`."""
    return _classes(_load(json_file, ("metainfo",)), json_file)


def read_middle(
    json_file: str | Path,
    image_root: str | Path,
    classes: Sequence[str] | None = None,
    info: dict | None = None,
) -> list[dict]:
    """Read a file in MMDetection's middle format into Detectron2's dataset dicts.

    Objects with `ignore_flag` become crowds, as in MMDetection's own conversion to COCO. Objects
    without a box of positive size or without a valid polygon are skipped and counted in a warning;
    objects of classes that are not in `classes` are skipped as well.

    Args:
        json_file: The annotation file. Boxes are [x0, y0, x1, y1] in pixels; `mask`, if present,
            holds polygons or an RLE.
        image_root: The folder that `img_path` is relative to.
        classes: Class names; `category_id` is an index into them. None uses those of `metainfo`.
        info: Receives `left_out`, the number of skipped objects by reason.

    Returns:
        One dict per image, in file order. `image_id` is `img_id` if all images have one, otherwise
        images are numbered from 1.

    Raises:
        UserError: The file is missing or in another format, lacks one of `classes`, repeats an
            image id, names an image outside of the folder, or holds an invalid value.
    """
    content = _load(json_file)
    known = _classes(content, json_file)
    for name in classes or ():
        if name not in known:
            raise UserError(f"{json_file} has no class {name!r}; {nearest(name, known)}")
    wanted = {name: i for i, name in enumerate(known if classes is None else classes)}
    images, others = content["data_list"], 0
    records: list[dict] = []
    left_out: Counter = Counter()
    numbered = all(isinstance(image, dict) and "img_id" in image for image in images)
    for i, image in enumerate(images):
        where = f"{json_file}: data_list[{i}]"
        try:
            size = image["height"], image["width"]
            image_id = image["img_id"] if numbered else i + 1
            record = image_record(image_root, image["img_path"], image_id, size, where)
            for k, instance in enumerate(image.get("instances") or ()):
                where = f"{json_file}: data_list[{i}].instances[{k}]"
                category = wanted.get(_label(instance["bbox_label"], known))
                read, problem = _read_instance(instance, record)
                if problem:
                    left_out[problem] += 1
                elif category is None:
                    others += 1
                else:
                    record["annotations"].append({**read, "category_id": category})
        except MALFORMED as e:
            raise UserError(f"{where} is malformed ({short(e)}); correct it") from e
        records.append(record)
    if len({r["image_id"] for r in records}) < len(records):
        raise UserError(f"{json_file}: an img_id appears twice; renumber the images")
    if left_out:
        counts = ", ".join(f"{n} {problem}" for problem, n in left_out.items())
        logger.warning("%s: %d instances skipped: %s", json_file, left_out.total(), counts)
    if info is not None:
        info["left_out"] = not_read(left_out, others)
    return records


def _load(json_file: str | Path, keys: Sequence[str] | None = None) -> dict:
    content = read_json(json_file) if keys is None else outline(json_file, keys)
    for key, kind in (("metainfo", dict), ("data_list", list)):
        if not isinstance(content, dict) or not isinstance(content.get(key), kind):
            raise UserError(
                f"{json_file} is not in MMDetection's middle format: it has no {kind.__name__}"
                f" {key!r}"
            )
    return content


def _classes(content: dict, json_file: str | Path) -> tuple[str, ...]:
    metainfo = content["metainfo"]
    classes = metainfo.get(
        "classes", metainfo.get("CLASSES")
    )  # MMDetection 3.0's release candidates
    texts = isinstance(classes, list) and all(isinstance(c, str) for c in classes)
    if not texts or not classes or len(set(classes)) < len(classes):
        raise UserError(
            f"{json_file}: metainfo.classes={short(classes)}; give the list of class names"
        )
    return tuple(classes)


def _label(label: object, known: Sequence[str]) -> str:
    if type(label) is not int or not 0 <= label < len(known):
        raise ValueError(f"bbox_label is {label!r}, but there are {len(known)} classes")
    return known[label]


def _read_instance(instance: dict, record: dict) -> tuple[dict, str]:
    read, problem = read_object(
        instance["bbox"], instance.get("mask"), record["height"], record["width"]
    )
    if problem:
        return {}, problem
    if (ignore := instance.get("ignore_flag", 0)) not in (0, 1):
        raise ValueError(f"ignore_flag is {ignore!r}")
    x0, y0, x1, y1 = read["bbox"]
    area = mask_area(read.get("segmentation"), x1 - x0, y1 - y0)
    return {**read, "iscrowd": int(ignore), "area": area}, ""


def _read(
    source: str | Path, image_root: str | Path, classes: Sequence[str] | None = None
) -> tuple[list[dict], tuple[str, ...]]:
    names = middle_classes(source) if classes is None else tuple(classes)
    return read_middle(source, image_root, names), names


def _detect(head: FileHead) -> bool:
    if not isinstance(head.value, dict):
        return False
    has_list = isinstance(head.value.get("data_list"), list)
    return has_list or {"metainfo", "data_list"} <= head.value.keys()


FORMAT = Format(
    name="middle",
    title="MMDetection's middle format (metainfo, data_list)",
    advice=read_as_it_is("in MMDetection's middle format"),
    detect=_detect,
    read=_read,
    in_training=True,
    dataset="d2ext.data.datasets.declare.middle_dataset",
)
