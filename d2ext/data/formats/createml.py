"""CreateML's JSON (https://developer.apple.com/documentation/createml), as RectLabel writes it too.

d2ext has its own reader because none of the libraries that it uses has one.
"""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from d2ext.data.formats.file_head import FileHead
from d2ext.data.formats.format import Format, convert_advice
from d2ext.data.formats.geometry import LeftOut, add_box, numbers
from d2ext.data.formats.image_folder import ImageFolder, sized_record
from d2ext.data.formats.json_io import by_name, is_text, natural, read_json, truncate_repr
from d2ext.data.formats.other_formats import advice
from d2ext.errors import UserError

logger = logging.getLogger(__name__)


def read_createml(
    source: str | Path, image_root: str | Path, classes: Sequence[str] | None = None
) -> tuple[list[dict], tuple[str, ...]]:
    """Read CreateML's boxes into Detectron2's dataset dicts.

    A box is given by its center, width and height, in pixels from the image's corner.

    Args:
        source: The JSON, a list of images, each with `image` and `annotations`.
        image_root: The folder of the images; `ImageFolder.find` finds them.
        classes: Class names; `category_id` is an index into them. None uses the labels, sorted.

    Returns:
        One dict per image, in file order, and the class names.

    Raises:
        UserError: The file is missing or malformed or repeats an image, or an image is missing.
    """
    source = Path(source)
    entries = [_entry(entry, f"{source}: [{i}]") for i, entry in enumerate(_load(source))]
    names = tuple(sorted({label for *_, boxes in entries for label, _ in boxes}, key=natural))
    wanted = tuple(classes or names)
    index = by_name(names, wanted, source)
    images, left_out = ImageFolder(image_root), LeftOut()
    records: dict[str, dict] = {}
    for where, name, boxes in entries:
        path = images.find(name, where)
        if path in records:
            raise UserError(
                f"{where} repeats the image {truncate_repr(name)}; remove one of the entries"
            )
        records[path] = sized_record(path, len(records) + 1, None, where)
        for label, box in boxes:
            if (category := index[label]) is None:
                left_out[f"of the class {truncate_repr(label)}"] += 1
            else:
                add_box(records[path], category, box, left_out)
    left_out.warn(logger, source)
    return list(records.values()), wanted


def _load(source: Path) -> list:
    content = read_json(source)
    if not isinstance(content, list):
        known = advice(source, "createml")
        reason = f"it is {known}" if known else "it contains no list of images"
        raise UserError(f"{source} is not a CreateML annotation file: {reason}")
    return content


_Entry = tuple[str, str, list[tuple[str, list[float]]]]


def _entry(entry: Any, where: str) -> _Entry:
    """Return the location of an image's entry, the image name, and each box's label and corners."""
    try:
        name = next(entry[key] for key in ("image", "imagefilename", "filename") if key in entry)
        objects = entry["annotations"] if "annotations" in entry else entry["annotation"]
        if not isinstance(name, str) or not isinstance(objects, list):
            raise TypeError("its name or list of annotations is missing")
        boxes = []
        for item in objects:
            label = item["label"].strip()
            if not label or not is_text(label):
                raise ValueError("an annotation has no label")
            x, y, w, h = numbers([item["coordinates"][k] for k in ("x", "y", "width", "height")])
            boxes.append((label, [x - w / 2, y - h / 2, x + w / 2, y + h / 2]))
    except (AttributeError, KeyError, StopIteration, TypeError, ValueError) as e:
        file = where.rpartition(": ")[0]
        if known := advice(file, "createml"):
            raise UserError(f"{file} is not a CreateML annotation file: it is {known}") from None
        reason = f"it lacks {e}" if isinstance(e, KeyError) else e
        raise UserError(f"{where} is malformed ({reason}); correct it") from e
    return where, name, boxes


def _detect(head: FileHead) -> bool:
    entry = head.value[0] if isinstance(head.value, list) and head.value else None
    if not isinstance(entry, dict) or not {"image", "imagefilename", "filename"} & entry.keys():
        return False
    if not {"data", "annotator", "annotation_id"}.isdisjoint(entry):  # keys of Label Studio
        return False
    objects = entry.get("annotations", entry.get("annotation"))
    if not isinstance(objects, list):
        return False
    first = objects[0] if objects else {"label": "", "coordinates": {}}
    return isinstance(first, dict) and {"label", "coordinates"} <= first.keys()


FORMAT = Format(
    name="createml",
    title="CreateML",
    advice=convert_advice("a CreateML JSON", "createml"),
    detect=_detect,
    read=read_createml,
    source="CreateML's boxes: a JSON file",
)
